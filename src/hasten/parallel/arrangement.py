"""What was done to a model, for those who sum its gradients, update, save and load it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from hasten.parallel.config import Axis
from hasten.parallel.grid import Grid


class Split(NamedTuple):
    """The part of a parameter that tensor parallelism left here: `length` from `start` of `whole` in `dim`."""

    dim: int
    start: int
    length: int
    whole: int


class Piece(NamedTuple):
    """A box of a whole parameter: where it begins and how far it goes in each dimension."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    whole: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """What to index the whole with."""
        return tuple(slice(at, at + size) for at, size in zip(self.start, self.shape, strict=True))


@dataclass
class Arrangement:
    """A model's parallelism, by the names that its parameters have in the whole model."""

    grid: Grid
    splits: dict[str, Split] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    """Held whole by all processes of `tensor`, each of which sees a part of the gradient."""
    stages: dict[str, ProcessGroup] = field(default_factory=dict)
    """Held by several stages of a pipeline, such as a tied table: each sees a part of the gradient."""
    counted: dict[str, bool] = field(default_factory=dict)
    """Of those, whether this stage's copy is the one that norms count and checkpoints keep."""

    def piece(self, name: str, parameter: Tensor) -> Piece:
        """The box of the whole parameter `name` that this process holds in `local(parameter)`."""
        start, shape, whole = [0] * parameter.dim(), list(parameter.shape), list(parameter.shape)
        if isinstance(parameter, DTensor):
            local, offset = compute_local_shape_and_global_offset(
                parameter.shape, parameter.device_mesh, parameter.placements
            )
            shape, start = list(local), list(offset)
        if split := self.splits.get(name):
            start[split.dim] += split.start
            whole[split.dim] = split.whole
        return Piece(tuple(start), tuple(shape), tuple(whole))

    def pieces(self, model: nn.Module) -> dict[str, Piece]:
        """The box of each parameter of `model` that is here."""
        return {name: self.piece(name, parameter) for name, parameter in model.named_parameters()}

    def is_replica(self, name: str, parameter: Tensor) -> bool:
        """Whether another process keeps the same box and speaks for it in norms and checkpoints.

        Of equal copies the one with the lowest coordinates speaks.
        """
        place = self.grid.place
        sharded = isinstance(parameter, DTensor) and any(
            not isinstance(placement, Replicate) for placement in parameter.placements
        )
        copies: list[Axis] = ["data"]
        copies += [] if sharded else ["shard", "context"]
        copies += [] if name in self.splits else ["tensor"]
        return any(place[axis] for axis in copies) or not self.counted.get(name, True)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is here; a view, whose changes show."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(local_parts: Mapping[Piece, Tensor], dtype: torch.dtype) -> Tensor:
    """The whole from all its boxes, on the CPU."""
    first = next(iter(local_parts))
    whole = torch.empty(first.whole, dtype=dtype)
    for piece, part in local_parts.items():
        whole[piece.slices] = part
    return whole
