"""A peer's scores on the way, taken beside its clock: a callback for transformers' Trainer and its kin."""

import time
from collections.abc import Callable
from math import ceil
from statistics import median
from typing import Any

from peers.machine import memory
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Looks(TrainerCallback):
    """Scores the model at `count` places of a training, the last one its end, while its clock stands still.

    `started` is when the process was begun, on time.monotonic(), which all processes share.
    """

    def __init__(self, score: Callable[[Any], float], count: int, started: float) -> None:
        self.score, self.count, self.started = score, count, started
        self.startup = self.began = self.away = 0.0
        self.base: float | None = None
        self.places: set[int] = set()
        self.ends: list[float] = []  # of each step, seconds of the clock
        self.found: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The clock begins, after a look at what the model is before."""
        self.places = {ceil(state.max_steps * k / self.count) for k in range(1, self.count + 1)}
        self.startup = time.monotonic() - self.started
        if self.count > 1:
            self.base = self.score(kwargs["model"].eval())
            kwargs["model"].train()
        self.began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look, where a look is due."""
        now = time.monotonic()
        self.ends.append(now - self.began - self.away)
        if state.global_step in self.places:
            model = kwargs["model"].eval()
            self.found.append(
                {"step": state.global_step, "seconds": self.ends[-1], "score": self.score(model)}
            )
            model.train()
            self.away += time.monotonic() - now

    def record(self) -> dict[str, Any]:
        """Everything, once the training has ended."""
        lengths = [after - before for before, after in zip([0.0, *self.ends], self.ends, strict=False)]
        return {
            "startup_seconds": self.startup,
            "loop_seconds": self.ends[-1],
            "base_score": self.base,
            "looks": self.found,
            "steps": len(self.ends),
            "step_seconds": median(lengths[1:] or lengths),  # the first one warms up
            "peak_bytes": memory("self")["VmHWM"],
        }
