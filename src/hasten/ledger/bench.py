"""`hasten bench`: every arm in turn, each trial in a process of its own, until the time is up."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from hasten.core import config
from hasten.core.console import Progress, say
from hasten.core.errors import HastenError
from hasten.core.files import write_json, write_text
from hasten.core.runtime import choose_device, environment
from hasten.ledger.arms import Arm, make_arms, missing
from hasten.ledger.figures import WARM_LINES, make_rows, pace
from hasten.ledger.machine import BUSY_CORES, busy_seconds, measure_machine
from hasten.ledger.page import write_page
from hasten.ledger.table import show
from hasten.ledger.techniques import choose
from hasten.ledger.words import words
from hasten.ops.kernels.library import library
from hasten.recipe import Recipe
from hasten.report.frame import Words

Purpose = Literal["pace", "learning"]
LEARNING_SHARE = 0.5
"""Of the time, where a technique that changes learning is among those measured."""
LEARNING_SECONDS = 30.0
"""A learning trial is not made shorter than this for the sake of another repeat."""
FIRST_LINES, LEAST_LINES, VALIDATIONS = 6, 4, 12
GPU_LOG_EVERY = 5
"""Steps from line to line on a GPU, which stands idle while a line waits for it."""
VALIDATION_TOKENS = 8192
LAST_WORDS = 400  # characters that a failed trial is quoted with


@dataclass(frozen=True)
class Trial:
    """One training of one arm, and what it measured."""

    arm: str
    purpose: Purpose
    round: int
    seed: int
    seconds: float  # of the whole process, its start included
    cores_used_by_others: float | None
    result: dict[str, Any]


def bench(recipe: Recipe) -> Path:
    """Measure this machine and the recipe's techniques on it; the path of ledger.html."""
    chosen, device = choose(recipe.bench.techniques), choose_device(recipe.device)
    recipe.prepared()  # here, once, not in the first trial; and so are the kernels
    library()
    deadline = time.monotonic() + 60 * recipe.bench.minutes
    say("bench: the machine")
    machine = measure_machine(device)
    if (machine["cores_used_by_others"] or 0) > BUSY_CORES:
        say(f"bench: others use {machine['cores_used_by_others']:.1f} cores; stop them for figures to keep")
    absent = missing(chosen, recipe, device)
    arms = make_arms([n for n in chosen if n not in absent], device, recipe.bench.staircase)
    recipe.bench.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=recipe.bench.output) as folder:
        rounds = Rounds(recipe, arms, Path(folder), deadline)
        rounds.run()
    ledger = make_ledger(recipe, device, machine, absent, rounds)
    write_json(recipe.bench.output / "ledger.json", ledger)
    page = write_page(ledger, recipe.bench.output / "ledger.html", recipe.bench.lang)
    show(ledger, recipe.bench.lang)
    return page


def make_ledger(
    recipe: Recipe,
    device: torch.device,
    machine: dict[str, Any],
    absent: dict[str, Words],
    rounds: "Rounds",
) -> dict[str, Any]:
    """All that ledger.json holds: where, what, every trial, and the rows that follow from them."""
    trials = [asdict(trial) for trial in rounds.trials]
    return {
        "environment": environment(),
        "machine": machine,
        "recipe": recipe.model_dump(mode="json"),
        "arms": [asdict(arm) for arm in rounds.arms],
        "missing": absent | rounds.late,
        "failed": rounds.failed,
        "rows": make_rows(rounds.arms, trials),
        "trials": trials,
    }


class Rounds:
    """Trials of all arms in turn, again and again; every other round goes backwards, so that drift cancels.

    A round has a trial of each arm for its pace, as many steps as its share of the time allows, and one of
    each arm that changes learning, and of the full set, for a fixed time.
    """

    def __init__(self, recipe: Recipe, arms: Sequence[Arm], folder: Path, deadline: float) -> None:
        self.recipe, self.arms, self.folder, self.deadline = recipe, list(arms), folder, deadline
        self.began, self.total = time.monotonic(), max(deadline - time.monotonic(), 1.0)
        self.trials: list[Trial] = []
        self.failed: dict[str, str] = {}
        self.late: dict[str, Words] = {}
        self.log_every = GPU_LOG_EVERY if choose_device(recipe.device).type == "cuda" else 1
        self.step_seconds: dict[str, float] = {}
        self.start_seconds: dict[str, float] = defaultdict(float)  # of a process before its first step
        learners = [arm for arm in self.arms if arm.learns and arm.kind != "stair"]
        self.learning = (
            [arm for arm in self.arms if arm.kind == "full" or arm in learners] if learners else []
        )
        # A learning trial tells an arm's pace as well; the full set and the plain one have both.
        self.pacing = [arm for arm in self.arms if arm.kind == "plain" or arm not in learners]
        # What is not in the full set comes last and ends with the time: a compiler may take all of it.
        self.extra = [arm for arm in self.pacing if arm.kind == "with"]
        share = LEARNING_SHARE * self.total if self.learning else 0.0
        self.pace_seconds = (self.total - share) / (len(self.pacing) * recipe.bench.repeats)
        fitting = int(share / (LEARNING_SECONDS * max(len(self.learning), 1)))
        self.learning_rounds = min(max(fitting, 1), recipe.bench.repeats)
        self.learning_seconds = share / (max(len(self.learning), 1) * self.learning_rounds)

    def run(self) -> None:
        """Everything once, and again as long as there is time for it."""
        with ended_like_interrupted(), Progress("bench", self.total, "s") as self.progress:
            for number in range(self.recipe.bench.repeats):
                for arm in self.in_turn([arm for arm in self.pacing if arm not in self.extra], number):
                    self.measure(arm, "pace", number)
                if number < self.learning_rounds:
                    for arm in self.in_turn(self.learning, number):
                        self.measure(arm, "learning", number)
                for arm in self.extra:
                    self.measure(arm, "pace", number)

    def in_turn(self, arms: Sequence[Arm], number: int) -> list[Arm]:
        """The arms of a round in its direction."""
        return list(arms if number % 2 == 0 else reversed(arms))

    def measure(self, arm: Arm, purpose: Purpose, number: int) -> None:
        """One trial, unless there is no time for another of its kind or the arm does not work here."""
        overrides, expected = self.plan(arm, purpose)
        if arm.name in self.failed or (number and time.monotonic() + expected > self.deadline):
            return
        if self.is_late(arm):
            self.give_up(arm)
            return
        seed = self.recipe.train.seed + number
        trial = self.trial(arm, purpose, number, seed, [*overrides, f"train.seed={seed}"])
        if trial is not None:
            self.trials.append(trial)
            self.learn_from(trial)

    def plan(self, arm: Arm, purpose: Purpose) -> tuple[list[str], float]:
        """The length of a trial as overrides, and the seconds that it is going to take."""
        step, start = self.step_seconds.get(arm.name), self.start_seconds[arm.name]
        nothing = ["train.tokens=null", "train.epochs=null", "train.checkpoint_every=null"]
        nothing.append(f"train.log_every={self.log_every}")
        if purpose == "learning":
            room = max(self.learning_seconds - start, self.learning_seconds / 3)
            step = step or self.step_seconds.get("full", 1.0)
            tokens = min(2 * self.recipe.train.batch_tokens, VALIDATION_TOKENS)
            every = self.log_every * max(round(room / step / VALIDATIONS / self.log_every), 1)
            looks = f"train.validate_every={every}", f"train.validation_tokens={tokens}"
            return [*nothing, *looks, f"train.minutes={room / 60}", "train.steps=null"], room + start
        fitting = FIRST_LINES if step is None else int((self.pace_seconds - start) / step / self.log_every)
        steps = self.log_every * (WARM_LINES + max(fitting, LEAST_LINES))
        length = f"train.steps={steps}", "train.minutes=null", "train.validate_every=null"
        return [*nothing, *length], start + steps * (step or 0.0)

    def learn_from(self, trial: Trial) -> None:
        """Keep what an arm's step and start take, for later trials."""
        if not trial.result["paces"]:
            return
        step = self.recipe.train.batch_tokens / pace(asdict(trial))
        self.step_seconds[trial.arm] = step
        if trial.purpose == "pace":
            steps, _ = trial.result["paces"][-1]
            self.start_seconds[trial.arm] = max(trial.seconds - step * steps, 0.0)

    def trial(
        self, arm: Arm, purpose: Purpose, number: int, seed: int, overrides: Sequence[str]
    ) -> Trial | None:
        """Train once in a new process; a failure is noted, and is the end of an arm."""
        folder = self.folder / f"{len(self.trials)}-{arm.name.replace(' ', '-')}-{purpose}-{number}"
        folder.mkdir()
        recipe = arm.recipe(self.recipe, [*overrides, f"output={folder / 'run'}"])
        write_text(folder / "recipe.yaml", config.dump(recipe))
        order = {"recipe": folder / "recipe.yaml", "without": arm.patches, "result": folder / "result.json"}
        write_json(
            folder / "order.json",
            {key: value if isinstance(value, list) else str(value) for key, value in order.items()},
        )
        before, cpu, began = busy_seconds(), own_cpu_seconds(), time.monotonic()
        code = self.process(arm, folder)
        seconds, own, after = time.monotonic() - began, own_cpu_seconds() - cpu, busy_seconds()
        if code != 0:
            if self.is_late(arm):
                self.give_up(arm)
            else:
                self.fail(arm, folder / "log.txt")
            return None
        others = None if before is None or after is None else max(after - before - own, 0.0) / seconds
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return Trial(arm.name, purpose, number, seed, seconds, others, result)

    def process(self, arm: Arm, folder: Path) -> int:
        """Run the trial in `folder` to its end, with the live line going on; its exit code."""
        command = [sys.executable, "-m", "hasten.ledger.trial", str(folder / "order.json")]
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            child = subprocess.Popen(
                command, env=arm.environment(os.environ), stdout=log, stderr=subprocess.STDOUT
            )
            try:
                while child.poll() is None and not self.is_late(arm):
                    time.sleep(0.1)
                    done = time.monotonic() - self.began
                    self.progress.update(done, trial=f"{len(self.trials) + 1} {arm.name}")
            finally:
                child.kill()  # whoever stops the bench stops the trial
                child.wait()
        return child.returncode

    def is_late(self, arm: Arm) -> bool:
        """Whether it is one of those that have to end with the time, and that is up."""
        return arm in self.extra and time.monotonic() > self.deadline

    def give_up(self, arm: Arm) -> None:
        """Note that there was no time for an arm, if it was never measured."""
        if arm.technique is not None and all(trial.arm != arm.name for trial in self.trials):
            self.late[arm.technique] = words("late")

    def fail(self, arm: Arm, log: Path) -> None:
        """Note that an arm does not work here, and why; without the full set there is no ledger."""
        said = log.read_text(encoding="utf-8", errors="replace").strip()[-LAST_WORDS:]
        if arm.kind == "full":
            raise HastenError(f"bench: the recipe does not train as it is: …{said}; make `hasten train` work")
        self.failed[arm.name] = said
        say(f"bench: {arm.name} failed and is left out: …{said.splitlines()[-1] if said else 'no word'}")


@contextmanager
def ended_like_interrupted() -> Iterator[None]:
    """SIGTERM comes as KeyboardInterrupt, so that no trial goes on alone."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def own_cpu_seconds() -> float:
    """Core-seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
