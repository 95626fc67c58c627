"""A model spread over the grid of processes: the one place that knows in which order that is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hasten.model.config import ModelConfig
from hasten.model.initial import first_value
from hasten.model.transformer import Transformer, assemble
from hasten.parallel.arrangement import Arrangement, local
from hasten.parallel.fsdp import shard
from hasten.parallel.grid import Grid
from hasten.parallel.pipeline import cut
from hasten.parallel.ring import fill_sockets
from hasten.parallel.tensor import split_tensor


def unchanged(model: Transformer) -> None:
    """Leave a model as it is."""


@dataclass(frozen=True)
class Beginning:
    """What a model begins with beside its configuration and its seed: by default nothing."""

    adapt: Callable[[Transformer], None] = unchanged
    """Changes its structure, before anything is divided and while no weight is there."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Whole parameters by name that are taken over; the others are drawn."""
    settle: Callable[[Transformer], None] = unchanged
    """Sets what depends on these weights, once they are there."""


def parallelize(
    config: ModelConfig, seed: int, grid: Grid, precision: str = "fp32", beginning: Beginning | None = None
) -> tuple[Transformer, Arrangement]:
    """This process's part of a model with its first weights, bit for bit those of one process.

    The whole model is described and never held: what is not kept here takes no memory.  `precision` is that
    of the products.
    """
    arrangement, beginning = Arrangement(grid), beginning or Beginning()
    with torch.device("meta"):
        model = assemble(config)
        beginning.adapt(model)
    arrangement.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    cut(model, arrangement)
    split_tensor(model, arrangement, sequence=grid.config.sequence_parallel)
    fill_sockets(model, grid)
    if grid.degrees["shard"] > 1:
        shard(model, grid, half=precision != "fp32")
    model.to_empty(device=grid.device)
    set_first_weights(model, arrangement, config, seed, beginning.weights)
    beginning.settle(model)
    arrangement.note(model)
    return model, arrangement


@torch.no_grad()
def set_first_weights(
    model: nn.Module, arrangement: Arrangement, config: ModelConfig, seed: int, given: Mapping[str, Tensor]
) -> None:
    """Cut each parameter's part here out of its whole first value, given or drawn."""
    for name, parameter in model.named_parameters():
        piece = arrangement.piece(name, parameter)
        value = given[name] if name in given else first_value(name, torch.Size(piece.whole), config, seed)
        local(parameter).copy_(value[piece.slices])
