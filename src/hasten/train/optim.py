"""The optimizer: Muon on block matrices, AdamW on everything else, or AdamW on everything.

Every parameter has a role, told by its name (`model.layout.role`): `matrix` inside a block, `embedding`,
`head`, or `vector` (norms, biases).  Each role has its own learning rate, which may follow the size of the
model and of the batch (`train/transfer.py`).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from hasten.core.config import Config
from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.layout import role
from hasten.parallel.arrangement import Arrangement, local
from hasten.train.muon import Muon, Place, entire
from hasten.train.transfer import (
    ADAPTER_TIMES,
    FINE_TUNING,
    KINDS,
    Base,
    Kind,
    choose_turns,
    factors,
    kind,
)
from hasten.train.zeros import Zeros

Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Decay, Decay]  # of the running mean of the gradient and of its square


class AdamWConfig(Config):
    """AdamW (Loshchilov and Hutter 2019) on every parameter; weight decay on all but vectors."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat | Literal["auto"] = Field(
        default=1e-3,
        description="auto: by the model's width, for a training that begins with a trained model",
    )
    adapter_learning_rate: PositiveFloat | None = Field(
        default=None, description="of the pairs that `adapt` adds; None: ten times learning_rate"
    )
    embedding_learning_rate: PositiveFloat | None = Field(default=None, description="None: as learning_rate")
    head_learning_rate: PositiveFloat | None = Field(default=None, description="None: as learning_rate")
    vector_learning_rate: PositiveFloat | None = Field(default=None, description="None: as learning_rate")
    betas: Betas = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    base: Base | None = Field(
        default=None,
        description="the shape that the rates were found at; null: they are used as written",
    )

    def rate(self, kind: Kind) -> float:
        """The learning rate of a kind of parameter at the base shape, before the schedule."""
        assert self.learning_rate != "auto", "it is known with the model: see `settled`"
        default = self.learning_rate * (ADAPTER_TIMES if kind == "adapter" else 1)
        return getattr(self, f"{kind}_learning_rate", None) or default

    def settled(self, model: ModelConfig) -> "AdamWConfig":
        """The same with a number for a rate."""
        if self.learning_rate != "auto":
            return self
        return self.model_copy(update={"learning_rate": FINE_TUNING / model.dim**0.5})


class MuonConfig(Config):
    """Muon (Jordan et al. 2024) on block matrices; AdamW on embeddings, head and vectors, without decay."""

    kind: Literal["muon"] = "muon"
    learning_rate: PositiveFloat = Field(
        default=0.02, description="of block matrices: the spectral size of a step"
    )
    momentum: Decay = 0.85
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="of block matrices; long runs want 0.01 to 0.1"
    )
    turns: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="each matrix moves at every so-manieth step, so many times as far; auto: by its cost",
    )
    embedding_learning_rate: PositiveFloat = 0.1
    head_learning_rate: PositiveFloat = 0.008
    vector_learning_rate: PositiveFloat = 0.01
    betas: Betas = (0.8, 0.95)
    eps: PositiveFloat = 1e-10
    base: Base | None = Field(
        default=Base(), description="the shape that the rates were found at; null: they are used as written"
    )

    def rate(self, kind: Kind) -> float:
        """The learning rate of a kind of parameter at the base shape, before the schedule."""
        return float(getattr(self, f"{kind}_learning_rate", self.learning_rate))

    def settled(self, model: ModelConfig) -> "MuonConfig":
        """The same: its rates are numbers."""
        return self


@dataclass(frozen=True)
class Rates:
    """How fast the parameters of a model move: each kind's learning rate, before the schedule, and turns.

    With `turns` above 1 Muon moves each matrix at every so-manieth step only.
    """

    each: Mapping[Kind, float]
    turns: int = 1

    def __getitem__(self, kind: Kind) -> float:
        """The learning rate of a kind of parameter."""
        return self.each[kind]

    @classmethod
    def written(cls, config: AdamWConfig | MuonConfig) -> "Rates":
        """Those of a configuration as it stands, whatever the size."""
        return cls({kind: config.rate(kind) for kind in KINDS})

    @classmethod
    def at(cls, config: AdamWConfig | MuonConfig, model: ModelConfig, batch_tokens: int) -> "Rates":
        """Those for a model of this size and for this batch, over all processes (`train/transfer.py`)."""
        config = config.settled(model)
        times = factors(config.base, model, batch_tokens, optimizer=config.kind)
        each = {kind: config.rate(kind) * times[kind] for kind in KINDS}
        if isinstance(config, AdamWConfig):
            return cls(each)
        return cls(each, choose_turns(model, batch_tokens) if config.turns == "auto" else config.turns)


class Optimizer:
    """Every trainable parameter of a model with the rule of its role and the rate of its kind.

    `rates` are by default those of the configuration as written; `Rates.at` makes them follow the size.  With
    `keep_zeros`, weights of matrices that are zero now stay so.
    What is here of a parameter is updated here; `arrangement` says what that is, by default everything, and
    all processes of its grid make their optimizer at the same moment.
    The state is a flat mapping of named tensors, `{parameter}/{momentum|exp_avg|exp_avg_sq|step}`, there
    from the start, so that a checkpoint always holds the same names; moments have the shape of what is here.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AdamWConfig | MuonConfig,
        rates: Rates | None = None,
        arrangement: Arrangement | None = None,
        *,
        keep_zeros: bool = False,
    ) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # What FSDP shards is updated as the plain tensor that is here: so every rule can be any function.
        with torch.no_grad():
            self.parameters = {name: local(parameter) for name, parameter in trained.items()}
        self.sharded = [(p, self.parameters[n]) for n, p in trained.items() if p is not self.parameters[n]]
        self.zeros = Zeros(self.parameters) if keep_zeros else None
        self.names = {parameter: name for name, parameter in self.parameters.items()}
        rates = rates or Rates.written(config)
        self.turns, groups = rates.turns, by_role_and_rate(self.names, rates)
        self.parts = list[torch.optim.Optimizer]()
        if isinstance(config, MuonConfig):
            places = self.places(trained, rates, arrangement)
            self.parts += muon(groups, config, rates.turns, places, arrangement)
            groups = [group for group in groups if group["role"] != "matrix"]
        self.parts += adamw(groups, config)
        self.groups = [group for part in self.parts for group in part.param_groups]
        self.rates = [group["lr"] for group in self.groups]

    def places(
        self, trained: Mapping[str, Tensor], rates: Rates, arrangement: Arrangement | None
    ) -> dict[Tensor, Place]:
        """Where each matrix belongs in the whole model."""
        pieces = {n: arrangement.piece(n, p) if arrangement else entire(p) for n, p in trained.items()}
        shapes = {name: piece.whole for name, piece in pieces.items()}
        numbers = order_of_turns(arrangement.shapes if arrangement and arrangement.shapes else shapes, rates)
        return {
            parameter: Place(numbers[name], pieces[name])
            for name, parameter in self.parameters.items()
            if name in numbers
        }

    def receive(self) -> None:
        """Take over the gradients of what is sharded, before they are looked at; none of zeros that stay."""
        for sharded, here in self.sharded:
            here.grad = None if sharded.grad is None else local(sharded.grad)
        if self.zeros is not None:
            self.zeros.hold_gradients()

    def step(self, multiplier: float, finite: Tensor, turn: int | None = None) -> None:
        """Update with `multiplier` on every learning rate; not a bit changes where `finite` [] is False.

        Where matrices take turns, `turn` is the number of the step.
        """
        assert turn is not None or self.turns == 1, "matrices take turns: say which step this is"
        for group, rate in zip(self.groups, self.rates, strict=True):
            group["lr"] = rate * multiplier
        for part in self.parts:
            part.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
            part.turn = turn or 0  # type: ignore[attr-defined]
            part.step()
        if self.zeros is not None:
            self.zeros.hold()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self.names, *(sharded for sharded, _ in self.sharded)):
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The live state tensors by name; clone them before the next step if they must not change."""
        return {
            f"{name}/{key}": value
            for parameter, name in self.names.items()
            for key, value in self.state(parameter).items()
        }

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Copy a saved state into this one; the names and shapes must be the same."""
        own = self.state_dict()
        for name in sorted(own.keys() ^ saved.keys()):
            where = "is missing from the checkpoint" if name in own else "is not of this optimizer"
            raise CheckpointError(
                f"optimizer state '{name}' {where}; resume with the optimizer that the run began with"
            )
        for name, tensor in own.items():
            if tensor.shape != saved[name].shape:
                raise CheckpointError(
                    f"optimizer state '{name}' has shape {list(saved[name].shape)} in the checkpoint and"
                    f" {list(tensor.shape)} here; resume with the model that the run began with"
                )
        for name, tensor in own.items():
            tensor.copy_(saved[name])

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the optimizer remembers about one parameter."""
        return next(part.state[parameter] for part in self.parts if parameter in part.state)


def by_role_and_rate(names: Mapping[Tensor, str], rates: Rates) -> list[dict[str, Any]]:
    """Parameters in torch's groups of one role and one rate: as few as can be, for each is one list."""
    groups: dict[tuple[str, float], list[Tensor]] = defaultdict(list)
    for parameter, name in names.items():
        groups[role(name), rates[kind(name)]].append(parameter)
    return [{"params": own, "lr": rate, "role": role} for (role, rate), own in groups.items()]


def order_of_turns(shapes: Mapping[str, tuple[int, ...]], rates: Rates) -> dict[str, int]:
    """A number for each matrix of a whole model, by which turns are counted: so turns cost the same.

    Matrices of one rate and one shape follow each other, in the order in which a model first has them.
    """
    keys = {n: (rates[kind(n)], tuple(shape)) for n, shape in shapes.items() if role(n) == "matrix"}
    first: dict[Any, int] = {}
    for at, (rate, shape) in enumerate(keys.values()):
        first.setdefault(rate, at)
        first.setdefault((rate, shape), at)
    order = sorted(keys, key=lambda name: (first[keys[name][0]], first[keys[name]]))
    return {name: number for number, name in enumerate(order)}


def muon(
    groups: list[dict[str, Any]],
    config: MuonConfig,
    turns: int,
    places: Mapping[Tensor, Place],
    arrangement: Arrangement | None,
) -> Iterator[Muon]:
    """Muon for the groups of matrices, if there are any."""
    matrices = [group for group in groups if group["role"] == "matrix"]
    together = arrangement.grid.group("data", "shard", "context", "tensor") if arrangement else None
    if matrices:
        options = config.learning_rate, config.momentum, config.weight_decay
        yield Muon(matrices, *options, turns=turns, places=places, group=together)


def adamw(groups: list[dict[str, Any]], config: AdamWConfig | MuonConfig) -> Iterator[torch.optim.AdamW]:
    """AdamW for the groups, if there are any; vectors, and all that Muon leaves, do not decay."""
    decay = config.weight_decay if isinstance(config, AdamWConfig) else 0.0
    decays = [{**group, "weight_decay": 0.0 if group["role"] == "vector" else decay} for group in groups]
    if decays:
        yield started(torch.optim.AdamW(decays, betas=config.betas, eps=config.eps, fused=True))


def started(adam: torch.optim.AdamW) -> torch.optim.AdamW:
    """The optimizer with its state in place, which torch would make at the first step."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return adam
