"""Learning rates that follow the size: found once at a small base shape, right at others by rule.

A rate is a power of width, depth and batch, another one for each kind of parameter.  Width as in muP (Yang
et al. 2022): an update of Adam is coherent with what it is applied to, so a row of D inputs moves its output
D times as far.  Muon's update is measured by its spectral norm and needs no factor.  Depth as in CompleteP
(Dey et al. 2025): 2 L branches are added up, each scaled by 1 / L.  Where output matrices begin at zero and
the optimizer does not see a gradient's scale, scaling a branch and scaling the rate of its output matrix are
the same training, so it is the rate that is scaled and the model stays as it is.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import PositiveInt

from hasten.core.config import Config
from hasten.model.config import ModelConfig
from hasten.model.layout import role
from hasten.ops.orthogonalize import flops

Kind = Literal["matrix", "output", "embedding", "head", "vector", "adapter"]
KINDS: tuple[Kind, ...] = ("matrix", "output", "embedding", "head", "vector", "adapter")
OUTPUTS = ("out", "down")
FINE_TUNING = 1e-3
"""Rate times the root of the width of a training that begins with a trained model: 3.6e-5 at 768, 1.6e-5 at
4,096, as published recipes have it."""
ADAPTER_TIMES = 10.0
"""What thin pairs want of the rate that is right for whole matrices (Schulman et al. 2025)."""

ADAM_WIDTH: Mapping[Kind, float] = {"matrix": -1, "output": -1, "head": -1}
MUON_WIDTH: Mapping[Kind, float] = {"head": -1}
DEPTH: Mapping[Kind, float] = {"output": -1}
BATCH = 0.5
"""The square-root rule: the noise of a mean over B tokens falls so (Malladi et al. 2022, for Adam)."""
LARGEST = 2.0
"""Where a step is long enough, less noise is no reason for a longer one: public Muon runs of 0.5M tokens a
step use rates of 0.02 to 0.05 as well."""


class Base(Config):
    """The shape at which an optimizer's rates are right as they are written."""

    dim: PositiveInt = 256
    num_layers: PositiveInt = 4
    batch_tokens: PositiveInt = 2048


def kind(name: str) -> Kind:
    """What a parameter is to these rules: its role, with pairs and the matrices that end a branch apart."""
    if name.rpartition(".")[2].startswith("lora_"):
        return "adapter"
    if role(name) == "matrix" and name.split(".")[-2] in OUTPUTS:
        return "output"
    return role(name)


def factors(base: Base | None, model: ModelConfig, batch_tokens: int, *, optimizer: str) -> dict[Kind, float]:
    """What to multiply the rate of each kind of parameter with; 1 everywhere without a `base`."""
    if base is None:
        return dict.fromkeys(KINDS, 1.0)
    width = MUON_WIDTH if optimizer == "muon" else ADAM_WIDTH
    # A tied table is an embedding that reads out logits: as a head it must slow down with width.
    width = {**width, "embedding": -1} if model.tied else width
    # Of two sides the deeper one decides: its stream adds up the most branches.
    deeper = max(model.encoder_layers, model.decoder_layers) / base.num_layers
    wider = model.dim / base.dim
    larger = min((batch_tokens / base.batch_tokens) ** BATCH, LARGEST)
    return {k: wider ** width.get(k, 0) * deeper ** DEPTH.get(k, 0) * larger for k in KINDS}


TURNS, DEAR = (1, 2, 4), 0.1
"""How many turns Muon's matrices may take, and from which share of a step's products on they take more."""


def choose_turns(model: ModelConfig, batch_tokens: int) -> int:
    """The fewest turns that make orthogonalising cheap: matrices are large against a small batch."""
    share = orthogonal_flops(model) / (6 * model.num_matrix_parameters * batch_tokens)
    return next((turns for turns in TURNS if share / turns <= DEAR), TURNS[-1])


def orthogonal_flops(model: ModelConfig) -> int:
    """Floating-point operations of `ops.orthogonalize` on every matrix of the model once."""
    return sum(flops(*shape) for shape in model.matrix_shapes)
