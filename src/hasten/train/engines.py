"""Which engine runs a model, as it was arranged."""

from typing import Any

from torch import nn

from hasten.core.runtime import Runtime
from hasten.objective.protocol import Objective
from hasten.parallel.arrangement import Arrangement
from hasten.train.engine import Whole
from hasten.train.pipelined import Pipelined


def make_engine(
    model: nn.Module, objective: Objective, runtime: Runtime, arrangement: Arrangement, **options: Any
) -> Whole:
    """What runs an arranged model; `options` are those of `Whole`."""
    kind = Pipelined if arrangement.grid.degrees["pipeline"] > 1 else Whole
    return kind(model, objective, runtime, arrangement=arrangement, **options)
