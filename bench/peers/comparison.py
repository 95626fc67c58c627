"""Who is compared with whom, when: heats of processes that fit into memory together, and rounds of turns."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from peers.figures import quiet, repeat_of
from peers.machine import available_bytes
from peers.process import MissingError, Worker, WorkerError
from peers.shapes import SHAPES
from peers.systems import HASTEN, PEAK, System

from hasten.core.allocator import allocator_environment

WARM_STEPS, WARM_MOST, STABLE = 3, 6, 0.05
GIB = 2**30


@dataclass(frozen=True)
class Terms:
    """How a comparison is held."""

    shape: str
    repeats: int  # quiet turns of each system
    steps: int  # most of a turn
    seconds: float  # turns are made shorter to keep to this
    peers: str | None  # the python that has them


@dataclass
class Member:
    """A system, at work or done."""

    system: System
    worker: Worker
    first_step_seconds: float
    seconds_to_first_update: float
    step_seconds: float  # as far as known
    repeats: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)  # the largest of all its processes

    def end(self) -> None:
        """Note what its process cost, and end it."""
        with suppress(OSError, KeyError):  # it has died
            now = self.worker.costs()
            self.costs = {name: max(value, self.costs.get(name, 0)) for name, value in now.items()}
        self.worker.stop()


class Comparison:
    """All systems in as few heats as memory allows; hasten, which the others are compared with, in each."""

    def __init__(self, systems: Sequence[System], terms: Terms, folder: Path) -> None:
        self.terms, self.folder = terms, folder
        self.pending, self.members = list(systems), dict[str, Member]()
        self.readings: list[dict[str, Any]] = []
        self.missing, self.failed = dict[str, str](), dict[str, str]()
        self.deadline = time.monotonic() + terms.seconds
        self.rounds = self.processes = 0
        self.start_seconds: list[float] = []

    def run(self) -> None:
        """Heats until nobody is left."""
        peak = self.process(PEAK)
        try:
            while self.pending:
                self.heat(peak)
        finally:
            peak.stop()

    def heat(self, peak: Worker) -> None:
        """Start as many as there is room for, take turns, stop them."""
        heat: list[Member] = []
        try:
            if HASTEN in self.members:
                self.join(heat, self.members[HASTEN].system)
            while self.pending and (not heat or self.room(heat)):
                self.join(heat, self.pending.pop(0))
            self.take_turns(heat, peak)
        finally:
            for member in heat:
                member.end()

    def join(self, heat: list[Member], system: System) -> None:
        """Start a system and warm it up; without its packages, or if it fails, the others go on."""
        if system.peer and not self.terms.peers:
            self.missing[system.name] = "no environment with peers; run `make bench-peers` or give --peers"
            return
        with self.caught(system.name):
            began = time.monotonic()
            member = self.warmed(system)
            self.start_seconds.append(time.monotonic() - began)
            known = self.members.setdefault(system.name, member)
            known.worker = member.worker
            heat.append(known)
            say(f"{system.name:<40} first step {member.first_step_seconds:6.1f} s")

    def warmed(self, system: System) -> Member:
        """The system after its first steps: at least three, and until two in turn are alike."""
        worker = self.process(system)
        try:
            first = worker.turn()["seconds"]
            since_start, seconds = time.perf_counter() - worker.started, [first]
            while len(seconds) < WARM_STEPS or not (alike(seconds) or len(seconds) >= WARM_MOST):
                seconds.append(worker.turn()["seconds"])
        except BaseException:
            worker.stop()
            raise
        return Member(system, worker, first, since_start, min(seconds))

    def process(self, system: System) -> Worker:
        """A process of its own, begun as a user of it would."""
        self.processes += 1
        tuned = system.ours or system.tuned_allocator
        return Worker(
            system.family,
            self.terms.shape,
            system.options,
            python=self.terms.peers if system.peer and self.terms.peers else sys.executable,
            folder=self.folder / str(self.processes),
            environment=allocator_environment(os.environ) if tuned else os.environ,
        )

    def room(self, heat: Sequence[Member]) -> bool:
        """Whether one more fits: no idle process may be short of memory when its turn comes."""
        largest = max(member.worker.costs()["peak_bytes"] for member in heat)
        return available_bytes() > 1.5 * largest + GIB

    def take_turns(self, heat: list[Member], peak: Worker) -> None:
        """Rounds, begun by another each time, until all have enough quiet turns or time is up."""
        wanted, seconds = self.terms.repeats, self.turn_seconds(len(heat))
        end = time.monotonic() + seconds * wanted * len(heat)
        for number in range(2 * wanted):
            wanting = [member for member in rotated(heat, number) if quiet(member.repeats) < wanted]
            if not wanting or (number and time.monotonic() > end):
                break
            wanting += [m for m in heat if m.system.name == HASTEN and m not in wanting]
            for place, member in enumerate(wanting):
                if place in (0, len(wanting) // 2):
                    self.readings.append(peak.turn())
                with self.caught(member.system.name, heat):
                    self.take(member, seconds)
            self.rounds += 1

    def turn_seconds(self, number: int) -> float:
        """How long a turn may be in a heat of so many, with time left for those still to start."""
        to_start = len(self.pending) * fmean(self.start_seconds or [0.0])
        left = max(0.0, self.deadline - time.monotonic() - to_start)
        return left / (self.terms.repeats * max(1, number + len(self.pending)))

    def take(self, member: Member, seconds: float) -> None:
        """One turn."""
        steps = max(1, min(self.terms.steps, int(seconds / member.step_seconds)))
        done = repeat_of(member.worker.turn(steps), self.rounds)
        member.repeats.append(done)
        member.step_seconds = median(repeat["step_seconds"] for repeat in member.repeats)
        say(
            f"round {self.rounds + 1:<3} {member.system.name:<40} {steps} x {done['step_seconds']:7.3f} s"
            f"  {SHAPES[self.terms.shape].batch_tokens / done['step_seconds']:7.0f} tokens/s"
            f"  others {done['others']:.2f}{'  disturbed' if done['disturbed'] else ''}"
        )

    @contextmanager
    def caught(self, name: str, heat: list[Member] | None = None) -> Iterator[None]:
        """Write down what is missing or fails, and let the others go on."""
        try:
            yield
        except WorkerError as error:
            where = self.missing if isinstance(error, MissingError) else self.failed
            where[name] = str(error)
            say(f"{name:<40} {'missing' if where is self.missing else 'failed'}: {error}")
            for member in [m for m in heat or [] if m.system.name == name]:
                member.worker.stop()
                (heat or []).remove(member)


def alike(seconds: Sequence[float]) -> bool:
    """Whether the last two steps took about as long."""
    return abs(seconds[-1] - seconds[-2]) <= STABLE * seconds[-2]


def rotated(heat: list[Member], number: int) -> list[Member]:
    """The same, begun by another."""
    first = number % max(1, len(heat))
    return heat[first:] + heat[:first]


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, file=sys.stderr, flush=True)
