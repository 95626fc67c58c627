"""Train one decoder with hasten and with other libraries, in turn, and compare speed and memory.

    make bench-peers                                              an environment with the other libraries
    python bench/compare.py --shape S --save bench/results/compare-s.json
    python bench/compare.py --shape M --systems 'hasten*' 'trainer llama*'

Every system has a process of its own, started one after the other with empty caches of compiled code,
warmed up, and then told over a pipe to do a few steps in turn with the others: a busy or slow moment of the
machine meets them alike.  All do the same work: the same random tokens, batch and model FLOPs, AdamW,
clipping at 1.0, no dropout.  A turn's time covers data, forward, backward, clipping and update.  Repeats
during which other processes used more than 0.15 cores are kept in the result and left out of the medians.

The last line is one JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from peers.figures import peak_of, repeat_of, speed, verdict
from peers.process import MissingError, Worker, WorkerError
from peers.shapes import SHAPES, Shape
from peers.systems import PEAK, System, all_systems, chosen

from hasten.core.allocator import allocator_environment
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.model.config import ModelConfig

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers/bin/python"
WARM_STEPS, WARM_MOST, STABLE = 3, 6, 0.05


@dataclass
class Member:
    """A system at work."""

    system: System
    worker: Worker
    first_step_seconds: float
    seconds_to_first_update: float
    step_seconds: float  # as far as known
    repeats: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Comparison:
    """What is compared, and what became of it."""

    shape: str
    options: argparse.Namespace
    folder: Path
    deadline: float
    members: list[Member] = field(default_factory=list)
    readings: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def start(self, systems: Sequence[System]) -> None:
        """Start and warm up one system after the other."""
        for system in systems:
            if system.peer and not self.options.peers:
                self.missing[system.name] = (
                    "no environment with peers: run `make bench-peers` or give --peers"
                )
                continue
            with self.caught(system.name):
                self.members.append(self.warmed(system))
                member = self.members[-1]
                say(f"{system.name:<40} first step {member.first_step_seconds:6.1f} s")

    def warmed(self, system: System) -> Member:
        """The system after its first steps: at least three, and until two in turn are alike."""
        worker = self.worker(system)
        try:
            first = worker.turn()["seconds"]
            since_start, seconds = time.perf_counter() - worker.started, [first]
            while len(seconds) < WARM_STEPS or not (alike(seconds) or len(seconds) >= WARM_MOST):
                seconds.append(worker.turn()["seconds"])
        except BaseException:
            worker.stop()
            raise
        return Member(system, worker, first, since_start, min(seconds))

    def worker(self, system: System) -> Worker:
        """Its process, begun as a user of it would."""
        tuned = system.ours or system.tuned_allocator
        return Worker(
            system.family,
            self.shape,
            system.options,
            python=self.options.peers if system.peer else sys.executable,
            folder=self.folder / system.name.replace(" ", "-"),
            environment=allocator_environment(os.environ) if tuned else os.environ,
        )

    @contextmanager
    def caught(self, name: str) -> Iterator[None]:
        """Write down what is missing or fails; the others go on."""
        try:
            yield
        except MissingError as error:
            self.missing[name] = str(error)
            say(f"{name:<40} missing: {error}")
        except WorkerError as error:
            self.failed[name] = str(error)
            say(f"{name:<40} failed: {error}")

    def measure(self, peak: Worker) -> None:
        """Rounds in which each system has its turn, begun by another each time, until all have enough."""
        wanted = self.options.repeats
        turn_seconds = (self.deadline - time.monotonic()) / (wanted * max(1, len(self.members)))
        for number in range(2 * wanted):
            order = self.members[number % len(self.members) :] + self.members[: number % len(self.members)]
            wanting = [member for member in order if quiet(member) < wanted]
            if not wanting or (number and time.monotonic() > self.deadline):
                break
            for place, member in enumerate(wanting):
                if place in (0, len(wanting) // 2):
                    self.readings.append(peak.turn())
                with self.caught(member.system.name):
                    self.take(member, number, turn_seconds)
            self.members = [m for m in self.members if m.system.name not in self.failed]

    def take(self, member: Member, number: int, turn_seconds: float) -> None:
        """One turn."""
        steps = max(1, min(self.options.steps, int(turn_seconds / member.step_seconds)))
        member.repeats.append(repeat_of(member.worker.turn(steps), number))
        done = member.repeats[-1]
        member.step_seconds = median(repeat["step_seconds"] for repeat in member.repeats)
        say(
            f"round {number + 1}  {member.system.name:<40} {done['steps']} x {done['step_seconds']:7.3f} s"
            f"  {SHAPES[self.shape].batch_tokens / done['step_seconds']:7.0f} tokens/s"
            f"  others {done['others']:.2f}{'  disturbed' if done['disturbed'] else ''}"
        )

    def entry(self, member: Member, peak: float) -> dict[str, Any]:
        """Everything about one system."""
        shape, system = SHAPES[self.shape], member.system
        return {
            "name": system.name,
            "ours": system.ours,
            "tuned_allocator": system.tuned_allocator,
            "options": system.options,
            "parameters": member.worker.hello["parameters"],
            **speed(
                member.repeats,
                batch_tokens=shape.batch_tokens,
                flops_per_token=flops_per_token(shape),
                peak=peak,
            ),
            **member.worker.peaks(),
            "idle_cores": member.worker.idle_cores,
            "baseline_bytes": member.worker.hello["baseline_bytes"],
            "first_step_seconds": member.first_step_seconds,
            "seconds_to_first_update": member.seconds_to_first_update,
            "repeats": member.repeats,
        }

    def result(self) -> dict[str, Any]:
        """The JSON."""
        peak, shape = peak_of(self.readings), SHAPES[self.shape]
        systems = [self.entry(member, peak["flops_per_second"]) for member in self.members if member.repeats]
        versions = [m.worker.hello["versions"] for m in self.members if m.system.peer]
        return {
            "bench": "compare",
            "shape": {"name": self.shape, **vars(shape), "batch_tokens": shape.batch_tokens},
            "flops_per_token": flops_per_token(shape),
            "peak": peak,
            "verdict": verdict(systems),
            "missing": self.missing,
            "failed": self.failed,
            "systems": systems,
            "peers": versions[0] if versions else {},
            "environment": environment(),
        }


def alike(seconds: Sequence[float]) -> bool:
    """Whether the last two steps took about as long."""
    return abs(seconds[-1] - seconds[-2]) <= STABLE * seconds[-2]


def quiet(member: Member) -> int:
    """How many undisturbed repeats there are."""
    return sum(not repeat["disturbed"] for repeat in member.repeats)


def flops_per_token(shape: Shape) -> int:
    """Model FLOPs of a step per token, for all systems: two matrices of 4 dim in the feed-forward layer."""
    config = ModelConfig(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        activation="relu_squared",
    )
    return config.flops_per_token(shape.context)


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, file=sys.stderr, flush=True)


def table(result: dict[str, Any]) -> str:
    """One line a system, fastest first."""
    lines = [
        f"{entry['name']:<40} {entry['step_seconds']:7.3f} s +-{entry['spread'] / 2:4.0%}"
        f" {entry['tokens_per_second']:8.0f} tokens/s  MFU {entry['mfu']:4.0%}"
        f" {entry['peak_bytes'] / 2**20:6.0f} MiB  first step {entry['first_step_seconds']:5.1f} s"
        for entry in sorted(result["systems"], key=lambda entry: entry["step_seconds"])
    ]
    return "\n".join([f"matrix peak {result['peak']['flops_per_second'] / 1e12:.3f} TFLOP/s", *lines])


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start everything, take turns, add up."""
    deadline = time.monotonic() + 60 * options.minutes
    systems = chosen(all_systems(with_allocator=options.peers_allocator), options.systems)
    comparison = Comparison(options.shape, options, folder, deadline)
    peak = comparison.worker(PEAK)
    try:
        comparison.start(systems)
        if not comparison.members:
            raise SystemExit(f"nothing could be measured: {comparison.missing | comparison.failed}")
        comparison.measure(peak)
        return comparison.result()
    finally:
        for worker in (peak, *(member.worker for member in comparison.members)):
            worker.stop()


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES], default="S")
    parser.add_argument("--repeats", type=int, default=5, help="quiet turns of each system")
    parser.add_argument("--steps", type=int, default=6, help="most steps of a turn")
    parser.add_argument("--minutes", type=float, default=12, help="turns are made shorter to keep to this")
    parser.add_argument("--systems", nargs="*", default=[], help="names or patterns; all by default")
    parser.add_argument("--peers", default=str(PEERS) if PEERS.exists() else None, help="their python")
    parser.add_argument(
        "--peers-allocator", action="store_true", help="peers once more with hasten's allocator"
    )
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hasten-compare-") as folder:
        result = run(options, Path(folder))
    say(table(result))
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
