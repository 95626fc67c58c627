"""Looks at a model while it is trained: validation, and whatever else is hung in as a probe."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hasten.core.errors import ConfigError
from hasten.model.transformer import Transformer
from hasten.train.engine import Engine
from hasten.train.horizon import Cadence, Every, Moment
from hasten.train.validate import Validation

VALIDATION, SCORE = "validation", "score"
SHARE = 0.05
"""Of the time so far, that a look whose `every` is auto may take between the first and the last."""
FORWARD_SHARE = 0.2, 0.4
"""Least and most of a training step's time that the forward pass of as many tokens takes; in theory 1/3."""


class Probe(Protocol):
    """Something that looks at the model now and then; it may not change it."""

    @property
    def name(self) -> str: ...

    @property
    def every(self) -> Every: ...

    def __call__(self, model: Transformer, step: int) -> Mapping[str, Any]:
        """Figures for metrics.jsonl, in a line of kind `name`; the model is in evaluation mode."""
        ...


@dataclass(frozen=True)
class Metric:
    """A figure of a look as something that the best checkpoint has least of: loss, or what is missed."""

    name: str
    look: str
    whole: float | None = None  # of a figure that should be high, the most that there can be

    def of(self, figures: Mapping[str, Any]) -> float:
        """The figure among those of its look, the lower the better; ConfigError where it is not there."""
        if self.name not in figures:
            raise ConfigError(
                f"train.metric is {self.name}, and here nothing is right or wrong; write validation_loss"
            )
        return float(figures[self.name]) if self.whole is None else self.whole - float(figures[self.name])


METRICS = {
    metric.name: metric
    for metric in (
        Metric("validation_loss", VALIDATION),
        Metric("validation_accuracy", VALIDATION, 1.0),
        Metric("score", SCORE, 100.0),
    )
}
"""What `TrainConfig.metric` may name."""


class Looks:
    """Which looks there are, when each is due, and what it costs."""

    def __init__(self, validation: Validation | None, every: Every, probes: Sequence[Probe]) -> None:
        self.validation = validation
        self.probes = {probe.name: probe for probe in probes}
        self.cadences = {name: Cadence(probe.every) for name, probe in self.probes.items()}
        if validation is not None:
            self.cadences = {VALIDATION: Cadence(every), **self.cadences}
        self.seconds: dict[str, float] = {}  # of each look, the last time
        self.spent: dict[str, float] = {}  # seconds on each since its first

    def due(self, moment: Moment, token_seconds: float) -> list[str]:
        """The names of the looks to take now; training on a token takes `token_seconds`."""
        return [
            name
            for name, cadence in self.cadences.items()
            if cadence.due(moment) and self.affordable(name, moment, token_seconds)
        ]

    def affordable(self, name: str, moment: Moment, token_seconds: float) -> bool:
        """Whether one more look keeps to its share of the time, where that is asked for."""
        cadence = self.cadences[name]
        if cadence.every != "auto" or cadence.last_step < 0 or moment.ended:
            return True
        if moment.progress > 1 - SHARE:
            return False  # the last one is near
        return self.spent.get(name, 0.0) + self.estimate(name, token_seconds) <= SHARE * moment.elapsed

    def estimate(self, name: str, token_seconds: float) -> float:
        """How many seconds a look will take: as many as last time, and for validation what steps now allow.

        The first validation carries what is done once, and the machine may have been busier or idler.
        """
        last = self.seconds.get(name, 0.0)
        if name != VALIDATION or self.validation is None or not token_seconds:
            return last
        least, most = (share * token_seconds * self.validation.num_tokens for share in FORWARD_SHARE)
        return min(max(last, least), most)

    def estimate_all(self, token_seconds: float) -> float:
        """How many seconds the looks after the last step will take."""
        return sum(self.estimate(name, token_seconds) for name in self.seconds)

    def take(
        self, name: str, engine: Engine, model: Transformer, moment: Moment, leads: bool
    ) -> Mapping[str, Any]:
        """One look; a probe looks on rank 0 alone."""
        began = time.monotonic()
        if name == VALIDATION:
            assert self.validation is not None
            figures: Mapping[str, Any] = self.validation(engine)
        else:
            figures = self.ask(self.probes[name], model, moment.step) if leads else {}
        self.seconds[name] = time.monotonic() - began
        if self.cadences[name].last_step >= 0:
            self.spent[name] = self.spent.get(name, 0.0) + self.seconds[name]
        self.cadences[name] = self.cadences[name].done(moment)
        return figures

    @torch.no_grad()
    def ask(self, probe: Probe, model: Transformer, step: int) -> Mapping[str, Any]:
        """A probe's figures, computed without compiling: every length that it tries would compile anew."""
        model.eval()
        with torch.compiler.set_stance("force_eager"):
            figures = probe(model, step)
        model.train()
        return figures

    def state(self) -> dict[str, Any]:
        """What `restore` needs: JSON."""
        return {name: cadence.state() for name, cadence in self.cadences.items()}

    def restore(self, state: Mapping[str, dict[str, Any]], seconds: Mapping[str, float]) -> None:
        """Go on from a saved state; a look that it does not know is due at once."""
        self.seconds = {name: seconds[name] for name in self.cadences.keys() & seconds.keys()}
        for name in self.cadences.keys() & state.keys():
            self.cadences[name] = self.cadences[name].restored(state[name])
