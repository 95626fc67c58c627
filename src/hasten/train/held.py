"""What of a training this process holds, and which of it it is the one to save."""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.model.transformer import Transformer
from hasten.objective.inner import PROJECTIONS
from hasten.parallel.arrangement import Arrangement, Piece, local
from hasten.parallel.grid import rank_of
from hasten.train.muon import entire
from hasten.train.optim import Optimizer

WEIGHTS, OPTIMIZER = "weights/model", "state/optimizer"
"""The files, without what their names end in, that hold tensors of the whole training."""
SCALAR = Piece((), (), ())
VALUE = "/value"
"""Ends the name of a parameter that is trained beside the model and is none of it: state, as moments are."""


class Held(NamedTuple):
    """What of a tensor is here, live, and which box of the whole that is."""

    piece: Piece
    tensor: Tensor


HeldTensors = dict[str, dict[str, Held]]
"""{WEIGHTS: {name: ...}, OPTIMIZER: {name: ...}}"""


def weights_of(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors by name; a tensor that two modules share is there once.

    Of an adapted model, in which some are frozen, those that are trained.
    """
    live = model.state_dict(keep_vars=True)
    if any(not tensor.requires_grad for tensor in live.values()):
        live = {name: tensor for name, tensor in live.items() if tensor.requires_grad}
    names: dict[int, str] = {}
    for name, tensor in live.items():
        names.setdefault(id(tensor), name)
    return {name: live[name].detach() for name in names.values()}


@torch.no_grad()
def held_here(model: Transformer, optimizer: Optimizer, arrangement: Arrangement | None) -> HeldTensors:
    """What of the weights and of the optimizer's state is here.

    A moment lies where its parameter does; a count of steps belongs to all of the parameter.
    """
    weights = {
        name: Held(arrangement.piece(name, tensor) if arrangement else entire(tensor), local(tensor))
        for name, tensor in weights_of(model).items()
    }
    moments = {
        name: Held(weights[parameter_of(name)].piece if tensor.dim() else SCALAR, tensor)
        for name, tensor in optimizer.state_dict().items()
    }
    aside = [name for name in weights if name.startswith(f"{PROJECTIONS}.")]
    moments |= {f"{name}{VALUE}": weights[name] for name in aside}
    return {WEIGHTS: {name: it for name, it in weights.items() if name not in aside}, OPTIMIZER: moments}


def parameter_of(name: str) -> str:
    """`parameter_of("head.weight/exp_avg")` -> `head.weight`; a parameter's own name is its own."""
    return name.partition("/")[0]


def is_spread_out(arrangement: Arrangement | None) -> bool:
    """Whether no process has the training whole, so that all have to save it together."""
    return arrangement is not None and not (arrangement.all_here or arrangement.grid.alone)


def place_of(arrangement: Arrangement) -> tuple[int, int]:
    """This process's rank, and of how many."""
    degrees = arrangement.grid.degrees
    return rank_of(arrangement.grid.place, degrees), prod(degrees.values())


def spoken_for(held: HeldTensors, arrangement: Arrangement) -> HeldTensors:
    """What of `held` this process is the one to save: each box once, and a count with the first box."""

    def is_mine(name: str, tensor: Tensor) -> bool:
        parameter = parameter_of(name)
        piece, numbers = held[WEIGHTS].get(parameter) or held[OPTIMIZER][f"{parameter}{VALUE}"]
        first = not any(piece.start) and numbers.numel() > 0
        return arrangement.speaks_for[parameter] and (tensor.numel() > 0 if tensor.dim() else first)

    return {
        file: {name: it for name, it in group.items() if is_mine(name, it.tensor)}
        for file, group in held.items()
    }
