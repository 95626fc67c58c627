"""Looks at a model while it is trained: validation, and whatever else is hung in as a probe."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from hasten.model.transformer import Decoder
from hasten.train.engine import Engine
from hasten.train.horizon import Cadence, Every, Moment
from hasten.train.validate import Validation

VALIDATION = "validation"
VALIDATION_SHARE = 0.05
"""Of the time so far, that `validate_every: auto` may spend on validation between the first and the last."""


class Probe(Protocol):
    """Something that looks at the model now and then; it may not change it."""

    name: str
    every: Every

    def __call__(self, model: Decoder, step: int) -> Mapping[str, Any]:
        """Figures for metrics.jsonl, in a line of kind `name`; the model is in evaluation mode."""
        ...


class Looks:
    """Which looks there are, when each is due, and what it costs."""

    def __init__(self, validation: Validation | None, every: Every, probes: Sequence[Probe]) -> None:
        self.validation = validation
        self.probes = {probe.name: probe for probe in probes}
        self.cadences = {name: Cadence(probe.every) for name, probe in self.probes.items()}
        if validation is not None:
            self.cadences = {VALIDATION: Cadence(every), **self.cadences}
        self.seconds: dict[str, float] = {}  # of each look, the last time
        self.spent = 0.0  # seconds on validation so far

    def due(self, moment: Moment) -> list[str]:
        """The names of the looks to take now."""
        return [
            name
            for name, cadence in self.cadences.items()
            if cadence.due(moment) and (name != VALIDATION or self.affordable(cadence, moment))
        ]

    def affordable(self, cadence: Cadence, moment: Moment) -> bool:
        """Whether one more validation keeps to its share of the time, where that is asked for."""
        if cadence.every != "auto" or cadence.last_step < 0 or moment.ended:
            return True
        return self.spent + self.seconds.get(VALIDATION, 0.0) <= VALIDATION_SHARE * moment.elapsed

    def take(
        self, name: str, engine: Engine, model: Decoder, moment: Moment, leads: bool
    ) -> Mapping[str, Any]:
        """One look; a probe looks on rank 0 alone."""
        began = time.monotonic()
        if name == VALIDATION:
            assert self.validation is not None
            figures: Mapping[str, Any] = self.validation(engine)
        else:
            figures = self.ask(self.probes[name], model, moment.step) if leads else {}
        self.seconds[name] = time.monotonic() - began
        self.spent += self.seconds[name] if name == VALIDATION else 0.0
        self.cadences[name] = self.cadences[name].done(moment)
        return figures

    @torch.no_grad()
    def ask(self, probe: Probe, model: Decoder, step: int) -> Mapping[str, Any]:
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
