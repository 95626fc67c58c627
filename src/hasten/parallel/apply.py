"""A model spread over the grid of processes: the one place that knows in which order that is done."""

import torch
from torch import nn

from hasten.model.config import ModelConfig
from hasten.model.initial import first_value
from hasten.model.transformer import Transformer, assemble
from hasten.parallel.arrangement import Arrangement, local
from hasten.parallel.fsdp import shard
from hasten.parallel.grid import Grid
from hasten.parallel.pipeline import cut
from hasten.parallel.ring import fill_sockets
from hasten.parallel.tensor import split_tensor


def parallelize(
    config: ModelConfig, seed: int, grid: Grid, precision: str = "fp32"
) -> tuple[Transformer, Arrangement]:
    """This process's part of a model with its first weights, bit for bit those of one process.

    The whole model is described and never held: what is not kept here takes no memory.  `precision` is that
    of the products.
    """
    arrangement = Arrangement(grid)
    with torch.device("meta"):
        model = assemble(config)
    arrangement.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    cut(model, arrangement)
    split_tensor(model, arrangement, sequence=grid.config.sequence_parallel)
    fill_sockets(model, grid)
    if grid.degrees["shard"] > 1:
        shard(model, grid, half=precision != "fp32")
    model.to_empty(device=grid.device)
    set_first_weights(model, arrangement, config, seed)
    arrangement.note(model)
    return model, arrangement


@torch.no_grad()
def set_first_weights(model: nn.Module, arrangement: Arrangement, config: ModelConfig, seed: int) -> None:
    """Cut each parameter's part here out of its whole first value."""
    for name, parameter in model.named_parameters():
        piece = arrangement.piece(name, parameter)
        value = first_value(name, torch.Size(piece.whole), config, seed)
        local(parameter).copy_(value[piece.slices])
