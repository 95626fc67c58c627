"""The optimizer: Muon on block matrices, AdamW on everything else, or AdamW on everything.

Every parameter has a role, told by its name (`model.layout.role`): `matrix` inside a block, `embedding`,
`head`, or `vector` (norms, biases).  Each role has its own learning rate, which may follow the size of the
model and of the batch (`train/transfer.py`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from hasten.core.config import Config
from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.layout import role
from hasten.ops.orthogonalize import orthogonalize
from hasten.parallel.arrangement import Arrangement, local
from hasten.train.transfer import KINDS, Base, Kind, choose_turns, factors, kind

Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Decay, Decay]  # of the running mean of the gradient and of its square


class AdamWConfig(Config):
    """AdamW (Loshchilov and Hutter 2019) on every parameter; weight decay on all but vectors."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
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
        return getattr(self, f"{kind}_learning_rate", None) or self.learning_rate


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


def learning_rates(
    config: AdamWConfig | MuonConfig, model: ModelConfig, batch_tokens: int
) -> dict[Kind, float]:
    """The learning rate of each kind of parameter in this model at this batch, before the schedule."""
    times = factors(config.base, model, batch_tokens, optimizer=config.kind)
    return {each: config.rate(each) * times[each] for each in KINDS}


def turns_of(config: AdamWConfig | MuonConfig, model: ModelConfig, batch_tokens: int) -> int:
    """At every how-manieth step Muon moves a matrix of this model at this batch."""
    if isinstance(config, AdamWConfig):
        return 1
    return choose_turns(model, batch_tokens) if config.turns == "auto" else config.turns


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), for matrices W [rows, cols] with gradient G:

        M <- mu M + G
        W <- (1 - k eta lambda) W - k eta sqrt(max(1, rows / cols)) O(G + mu M)   at every k-th step

    O replaces every singular value by about 1 (`ops.orthogonalize`).  The factor is Jordan's: the step's
    spectral norm is eta times sqrt(rows / cols) whatever the size, so one rate serves narrow and wide models
    (the spectral condition of Yang, Simon and Bernstein 2023).  Moonlight's 0.2 sqrt(max(rows, cols)) would
    match AdamW's mean size instead, and its rate would have to be found again for every width.

    With `turns` k above 1 the matrices take turns, 1 / k of them at each step: O is most of the cost, and
    where the batch is small, a k times longer step at every k-th loses nothing (docs/DIARY.md).  Whose turn
    it is follows from the attribute `turn`, the number of the step.

    Matrices of one shape are handled as one batch [N, rows, cols], and their momenta are kept so.  As with
    torch's fused optimizers, an attribute `found_inf` of 1.0 leaves weights and momenta as they are.
    """

    found_inf: Tensor | None = None
    turn = 0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        turns: int = 1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.turns = turns
        for group in self.param_groups:
            for matrices in by_shape(group["params"]):
                momenta = torch.zeros(
                    len(matrices), *matrices[0].shape, dtype=matrices[0].dtype, device=matrices[0].device
                )
                for matrix, slot in zip(matrices, momenta, strict=True):
                    self.state[matrix] = {"momentum": slot, "batch": momenta}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix whose turn it is, and of every momentum."""
        number = 0  # of the first matrix of a shape: counted over all, turns cost the same
        for group in self.param_groups:
            for matrices in by_shape(group["params"]):
                self.update(matrices, group, slice((self.turn - number) % self.turns, None, self.turns))
                number += len(matrices)

    def update(self, matrices: list[Tensor], group: dict[str, Any], mine: slice) -> None:
        """One update of those of `matrices`, which share a shape, whose turn it is."""
        (rows, cols), momentum, lr = matrices[0].shape, group["momentum"], group["lr"] * self.turns
        gradient = torch.stack([m.grad if m.grad is not None else torch.zeros_like(m) for m in matrices])
        average: Tensor = self.state[matrices[0]]["batch"]
        # Filled on the device: a number that is copied there would wait for all that is queued.
        keep, shrink = average.new_full((), momentum), average.new_full((), 1 - lr * group["weight_decay"])
        bad = self.found_inf.bool() if self.found_inf is not None else None
        if bad is not None:
            # x * 1 and x + (-0.0) are x for every x, -0.0 included; no wait for the device is needed.
            gradient = gradient.masked_fill(bad, -0.0)
            keep, shrink = keep.masked_fill(bad, 1.0), shrink.masked_fill(bad, 1.0)
        average.mul_(keep).add_(gradient)
        matrices = matrices[mine]
        if not matrices:
            return
        direction = orthogonalize(gradient[mine].add(average[mine], alpha=momentum)).to(average.dtype)
        if bad is not None:
            direction = direction.masked_fill(bad, 0.0)  # times a negative rate: -0.0
        torch._foreach_mul_(matrices, shrink)
        torch._foreach_add_(matrices, list(direction.unbind()), alpha=-lr * max(1, rows / cols) ** 0.5)


def by_shape(matrices: Iterable[Tensor]) -> list[list[Tensor]]:
    """Matrices in lists of equal shape and type, in the order in which the shapes appear."""
    shapes: dict[Any, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        shapes[matrix.shape, matrix.dtype, matrix.device].append(matrix)
    return list(shapes.values())


class Optimizer:
    """Every trainable parameter of a model with the rule of its role and the rate of its kind.

    `rates` are by default those of the configuration as written; `learning_rates` makes them follow the size.
    `turns` is that of `Muon`, as `turns_of` chooses it.
    The state is a flat mapping of named tensors, `{parameter}/{momentum|exp_avg|exp_avg_sq|step}`, there
    from the start, so that a checkpoint always holds the same names.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AdamWConfig | MuonConfig,
        rates: Mapping[Kind, float] | None = None,
        turns: int = 1,
        arrangement: Arrangement | None = None,
    ) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # What FSDP shards is updated as the plain tensor that is here: so every rule can be any function.
        with torch.no_grad():
            self.parameters = {name: local(parameter) for name, parameter in trained.items()}
        self.sharded = [(p, self.parameters[n]) for n, p in trained.items() if p is not self.parameters[n]]
        self.names = {parameter: name for name, parameter in self.parameters.items()}
        rates = rates or {each: config.rate(each) for each in KINDS}
        groups = [
            {"params": members, "lr": rate, "role": role}
            for (role, rate), members in by_role_and_rate(self.names, rates).items()
        ]
        self.turns, self.parts = turns, list(parts(groups, config, turns))
        self.groups = [group for part in self.parts for group in part.param_groups]
        self.rates = [group["lr"] for group in self.groups]

    def receive(self) -> None:
        """Take over the gradients of what is sharded, before they are looked at."""
        for sharded, here in self.sharded:
            here.grad = None if sharded.grad is None else local(sharded.grad)

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
            if key != "batch"
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


def by_role_and_rate(
    names: Mapping[Tensor, str], rates: Mapping[Kind, float]
) -> dict[tuple[str, float], list[Tensor]]:
    """Parameters in lists of one role and one rate: as few as can be, for Muon works on whole lists."""
    groups: dict[tuple[str, float], list[Tensor]] = defaultdict(list)
    for parameter, name in names.items():
        groups[role(name), rates[kind(name)]].append(parameter)
    return groups


def parts(
    groups: list[dict[str, Any]], config: AdamWConfig | MuonConfig, turns: int
) -> Iterable[torch.optim.Optimizer]:
    """The optimizers for groups with a role each: one AdamW, or a Muon and an AdamW."""
    adam = groups
    decay = config.weight_decay if isinstance(config, AdamWConfig) else 0.0
    if isinstance(config, MuonConfig):
        matrices = [group for group in groups if group["role"] == "matrix"]
        adam = [group for group in groups if group["role"] != "matrix"]
        if matrices:
            yield Muon(matrices, config.learning_rate, config.momentum, config.weight_decay, turns)
    if adam:
        decays = [{**group, "weight_decay": 0.0 if group["role"] == "vector" else decay} for group in adam]
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
