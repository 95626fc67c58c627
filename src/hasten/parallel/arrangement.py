"""What was done to a model, for those who sum its gradients, update, save and load it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from hasten.core.runtime import Runtime
from hasten.parallel.config import Axis
from hasten.parallel.grid import Grid


class Split(NamedTuple):
    """What tensor parallelism left here of a parameter: `length` of `whole` from `start`, in `dim`."""

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
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of all trained parameters of the whole model, in its order, where some layers are elsewhere."""
    all_here: bool = True
    speaks_for: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, runtime: Runtime) -> "Arrangement":
        """That of a model which every process holds whole."""
        arrangement = cls(Grid.make(runtime))
        arrangement.note(model)
        return arrangement

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

    @torch.no_grad()
    def held(self, model: nn.Module) -> dict[str, tuple[Piece, Tensor]]:
        """What of each parameter of `model` is here, and which box of the whole that is."""
        return {name: (self.piece(name, p), local(p).detach()) for name, p in model.named_parameters()}

    def note(self, model: nn.Module) -> None:
        """Remember, once a model is arranged, what of it this process speaks for."""
        held = dict(model.named_parameters())
        self.all_here = self.grid.degrees["pipeline"] == 1 and not (
            self.splits or any(map(is_sharded, held.values()))
        )
        self.speaks_for = {name: self.speaks(name, parameter) for name, parameter in held.items()}

    def speaks(self, name: str, parameter: Tensor) -> bool:
        """Whether, of all processes that hold this box, it is this one that counts it and saves it.

        Of equal copies, that with the lowest coordinates.
        """
        copies: list[Axis] = ["data"]
        copies += [] if is_sharded(parameter) else ["shard", "context"]
        copies += [] if name in self.splits else ["tensor"]
        return self.counted.get(name, True) and not any(self.grid.place[axis] for axis in copies)


def is_sharded(parameter: Tensor) -> bool:
    """Whether FSDP has left a part of it here."""
    return isinstance(parameter, DTensor) and any(not isinstance(p, Replicate) for p in parameter.placements)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is here; a view, whose changes show."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
