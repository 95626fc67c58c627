"""A peer's side of a job: trainings in processes of their own, with settings that were found beforehand.

Found are the quicker of float32 and bfloat16 by a few steps of each; for a tuned arm also the best of its
rates, and then of its rows a step.  What is best is judged on the dev set itself, in the peer's favour.
"""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from peers.comparison import say
from peers.jobs import Arm, Job
from peers.process import BENCH, MissingError, WorkerError

from hasten.core.files import write_json

BY_EPOCHS = -1


class Kept:
    """Figures by key, in a file that is written after each: what was found once is not looked for again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is under `key`, made now where nothing is."""
        if key not in self.found:
            self.found[key] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.found)
        return dict(self.found[key])


@dataclass(frozen=True)
class PeerJob:
    """An arm of a job: its python and environment, the model's folder, the rows, and what is known of it."""

    job: Job
    arm: Arm
    python: str
    environment: Mapping[str, str]
    base: Path
    rows: Path
    kept: Kept
    steps: int | None = None  # end every training after so many

    def train(
        self, options: Mapping[str, Any], *, seed: int = 0, looks: int = 0, max_steps: int = BY_EPOCHS
    ) -> dict[str, Any]:
        """One training in a fresh process: what `peers/looks.py` records of it."""
        places = {"folder": str(self.base), "rows": str(self.rows), "started": time.monotonic()}
        asked = {**options, **places, "seed": seed, "looks": looks, "max_steps": self.steps or max_steps}
        command = [self.python, "-m", "peers.tuning", self.arm.family, json.dumps(asked)]
        done = subprocess.run(
            command, cwd=BENCH, env=dict(self.environment), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise WorkerError(done.stderr.strip().rpartition("\n")[2][-300:] or "it ended without a word")
        said = dict(json.loads(done.stdout.splitlines()[-1]))
        if "missing" in said:
            raise MissingError(said["missing"])
        return said

    def settings(self) -> dict[str, Any]:
        """The arm's options with what was found: precision, and the rate and the rows of a tuned one."""
        if self.steps:  # nothing is measured
            return {**self.arm.options, "bf16": True}
        options = {**self.arm.options, "bf16": self.bf16}
        if not self.arm.rates:
            return options
        best = min(({**options, "learning_rate": rate} for rate in self.arm.rates), key=self.badness)
        return min(
            ({**best, "batch_rows": rows} for rows in self.arm.batches), key=self.badness, default=best
        )

    @property
    def bf16(self) -> bool:
        """Whether a step is quicker so."""
        return self.step_seconds(bf16=True) < self.step_seconds(bf16=False)

    def step_seconds(self, *, bf16: bool) -> float:
        """Of a step of the arm, the median of a few."""
        options = {**self.arm.options, "bf16": bf16}
        found = self.known("probe", options, lambda: self.train(options, max_steps=self.job.probe_steps))
        return float(found["step_seconds"])

    def badness(self, options: Mapping[str, Any]) -> float:
        """The score at the end of a training with these options, less is better."""
        steps = self.steps_within(self.job.tuning_seconds) if self.job.by_the_clock else BY_EPOCHS
        tried = {**options, "max_steps": steps}
        found = self.known("rate", tried, lambda: self.train(options, looks=1, max_steps=steps))
        score = float(found["looks"][-1]["score"])
        say(f"{self.job.task:<12} {self.arm.name:<16} {json.dumps(tried)} {self.job.unit} {score:.4f}")
        return float("inf") if not isfinite(score) else -score if self.job.higher else score

    def known(
        self, what: str, options: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What is kept of a training, or `make` it."""
        return self.kept.get(f"{self.job.task} {what} {json.dumps(options, sort_keys=True)}", make)

    def steps_within(self, seconds: float) -> int:
        """As many as fit."""
        if self.steps:
            return self.steps
        return max(1, ceil(seconds / self.step_seconds(bf16=self.bf16)))
