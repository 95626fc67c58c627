"""Where a run's time goes: a clock that runs for one part at a time, so that the parts make up the whole."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hasten.core.console import bar

START, DATA, MODEL, OPTIMIZER = "start", "data", "forward_backward", "optimizer"
LOOKS, CHECKPOINTS, REST = "looks", "checkpoints", "rest"
PARTS = {
    START: "start-up and compiling",
    DATA: "waiting for data",
    MODEL: "forward and backward",
    OPTIMIZER: "clipping and optimizer",
    LOOKS: "validation and looks",
    CHECKPOINTS: "checkpoints",
    REST: "the rest",
}
"""The names in metrics.jsonl, and what a person reads."""


class Times:
    """Seconds of each of PARTS since `began`, as `clock` counts; what came before a resume is added.

    A new clock counts START-up.  On a GPU the host only hands steps over and later waits for them: that is
    the time of MODEL and OPTIMIZER together, and `split` says how the device divided it.
    """

    def __init__(
        self,
        began: float,
        *,
        split: "DeviceSplit | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock, self.split = clock, split
        self.part, self.since = START, began
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.before: Mapping[str, float] = {}
        self.compilations = 0

    def enter(self, part: str) -> None:
        """From now on the time is that of `part`."""
        now = self.clock()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """The time inside is that of `part`; what is entered within it is not counted twice."""
        outer = self.part
        self.enter(part)
        try:
            yield
        finally:
            self.enter(outer)

    @contextmanager
    def step(self) -> Iterator[Callable[[], None]]:
        """A training step.  Call what it yields when the gradients are there and the update begins."""
        with self.of(MODEL):
            if self.split is None:
                yield lambda: self.enter(OPTIMIZER)
                return
            split, compilations = self.split, self.compilations
            marks = [split.mark()]
            yield lambda: marks.append(split.mark())
            if compilations == self.compilations:  # else the device stood idle in between
                split.note([*marks, split.mark()])

    def read(self) -> dict[str, float]:
        """Seconds of each part up to now, those before a resume included."""
        self.enter(self.part)
        seconds = dict(self.seconds)
        if self.split is not None:
            moved = self.split.optimizer_share() * seconds[MODEL]
            seconds[MODEL], seconds[OPTIMIZER] = seconds[MODEL] - moved, seconds[OPTIMIZER] + moved
        return {part: seconds[part] + self.before.get(part, 0.0) for part in PARTS}

    @contextmanager
    def watching_compiler(self, compiled: bool) -> Iterator[None]:
        """Count compilations as START-up, wherever they happen: in a first step, or in a validation."""
        if not compiled:
            yield
            return
        from torch._dynamo.callback import callback_handler as compiler  # noqa: PLC0415 (takes a second)

        interrupted: list[str] = []

        def begin(*_: Any) -> None:
            interrupted.append(self.part)
            self.compilations += 1
            self.enter(START)

        def end(*_: Any) -> None:
            self.enter(interrupted.pop())

        compiler.register_start_callback(begin)
        compiler.register_end_callback(end)
        try:
            yield
        finally:
            compiler.remove_start_callback(begin)
            compiler.remove_end_callback(end)


class DeviceSplit:
    """How a GPU divides its steps between gradients and update, by events that nobody waits for."""

    def __init__(self, new_event: Callable[[], Any] | None = None) -> None:
        self.new_event = new_event or (lambda: torch.cuda.Event(enable_timing=True))
        self.pending: deque[Sequence[Any]] = deque()
        self.model = self.optimizer = 0.0  # milliseconds

    def mark(self) -> Any:
        """An event in the device's queue, here."""
        event = self.new_event()
        event.record()
        return event

    def note(self, marks: Sequence[Any]) -> None:
        """Remember a step by its begin, its middle and its end; read those that the device has passed."""
        self.pending.append(marks)
        self.collect()

    def collect(self) -> None:
        """Read the steps that are over, and wait for none."""
        while self.pending and self.pending[0][2].query():
            begun, halfway, ended = self.pending.popleft()
            self.model += begun.elapsed_time(halfway)
            self.optimizer += halfway.elapsed_time(ended)

    def optimizer_share(self) -> float:
        """The update's share of the steps so far, 0 where none is known."""
        self.collect()
        total = self.model + self.optimizer
        return self.optimizer / total if total else 0.0


def make_times(began: float, device: torch.device) -> Times:
    """The clock of a run that began at `began` by `time.monotonic()`."""
    return Times(began, split=DeviceSplit() if device.type == "cuda" else None)


def time_table(times: Mapping[str, float]) -> str:
    """A line for each part: what, seconds, share of the whole, a bar."""
    total, width = sum(times.values()), max(map(len, PARTS.values()))
    lines = [f"where the {total:,.1f} s went:"]
    for part, seconds in times.items():
        share = seconds / total if total else 0.0
        lines.append(f"  {PARTS[part]:<{width}}  {seconds:>9,.1f} s  {share:>6.1%}  {bar(share)}")
    return "\n".join(lines)
