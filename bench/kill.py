"""Kill a training at random instants, resume it each time, and compare it with one that nobody disturbed.

    python bench/kill.py --times 200

A tiny real training (packed rows, shuffling, dropout, Muon, validation, a checkpoint after every step) runs
in forked processes that die by SIGKILL.  After each death every checkpoint in the folder must be whole, and
the newest no older than before; a run that reaches its end must hold the same bytes of weights, optimizer and
random generators as the undisturbed one, and the same lines in metrics.jsonl but for what a clock gave them.
Then bytes of a checkpoint are flipped and files cut short, and each time the checkpoint must be refused.

Forking a process that has already imported everything makes 200 deaths a matter of minutes.  The children do
not measure the peak of the processor, which only MFU is made of.  The last line is one JSON object.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import steady_lines

from hasten.core.errors import CheckpointError
from hasten.core.files import damage, write_json
from hasten.core.runtime import Runtime, environment
from hasten.data.corpus import Corpus
from hasten.data.shards import ShardWriter
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train import plan
from hasten.train.config import TrainConfig
from hasten.train.optim import Optimizer
from hasten.train.restore import checkpoints_in, restore
from hasten.train.run import Run

VOCAB_SIZE, ROW_TOKENS = 64, 32
MODEL = ModelConfig(
    vocab_size=VOCAB_SIZE, dim=32, num_layers=2, num_heads=2, dropout=0.1, max_positions=ROW_TOKENS
)
TRAIN = TrainConfig(
    steps=16,
    batch_tokens=8 * ROW_TOKENS,
    micro_batch_tokens=4 * ROW_TOKENS,
    checkpoint_every=1,
    validate_every=5,
    log_every=1,
    compile="off",
)
DICE = random.Random()
"""Of this program's own: Python's global generator is part of what is tested."""


def write_data(folder: Path) -> None:
    """Short documents of random tokens, so that rows hold several."""
    dice = np.random.default_rng(0)
    for split, documents in (("train", 150), ("validation", 20)):
        writer = ShardWriter("noise", VOCAB_SIZE, 0, 0)
        for number in range(documents):
            tokens = dice.integers(1, VOCAB_SIZE, dice.integers(3, 60))
            writer.add(f"{split}-{number}", tokens, len(tokens))
        (folder / split).mkdir(parents=True)
        writer.write(folder / split / "noise.safetensors")


def train(folder: Path, data: Path) -> None:
    """Begin or resume a training in `folder` and take it to its end."""
    random.seed(0)
    np.random.seed(0)
    corpus, validation = (Corpus(data, split, ROW_TOKENS, seed=1) for split in ("train", "validation"))
    run = Run(
        folder,
        TRAIN,
        model=build(MODEL, TRAIN.seed),
        corpus=corpus,
        runtime=Runtime(torch.device("cpu")),
        objective=CrossEntropy(),
        validation=validation,
    )
    run.fit()


def start(work: Callable[[], None], log: Path) -> int:
    """Fork a child that does `work` and writes what it says into `log`; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(child: int, seconds: float | None) -> int:
    """Wait for a child, or kill it after some seconds; its exit code, -9 if it was killed."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # harmless where it has ended: it is not yet waited for
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on the deaths that a run went through."""
    final = folder / "checkpoints" / f"step-{TRAIN.steps:06}"
    tensors = {str(p.relative_to(final)): p.read_bytes() for p in sorted(final.rglob("*.safetensors"))}
    random_json = (final / "state" / "random.json").read_bytes()
    return {**tensors, "random.json": random_json, "lines": steady_lines(folder)}


@dataclass
class Deaths:
    """The deaths to die, and what they came to so far."""

    data: Path
    times: int
    life_seconds: float  # a life ends at a random instant before this
    expected: dict[str, Any]
    kills: int = 0
    recovered: int = 0
    equal: int = 0  # in runs that ended like the undisturbed one
    inside_saves: int = 0
    runs: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, folder: Path) -> None:
        """One run from its beginning to its end, killed again and again until there were enough deaths."""
        kills, step, log = self.kills, 0, folder.with_suffix(".log")
        while True:
            life = DICE.uniform(0, self.life_seconds) if self.kills < self.times else None
            code = finish(start(lambda: train(folder, self.data), log), life)
            if code != -signal.SIGKILL:
                break
            step = self.look_at(folder / "checkpoints", step)
        self.runs += 1
        if code == 0 and outcome(folder) == self.expected:
            self.equal += self.kills - kills
        else:
            self.failures.append(f"{folder.name} ended with {code} or unlike the undisturbed run: see {log}")

    def look_at(self, checkpoints: Path, before: int) -> int:
        """Check what a death left behind; the step to go on from."""
        self.kills += 1
        self.inside_saves += any(checkpoints.glob("*.tmp-*"))
        after = newest_step(checkpoints)
        bad = {path.name: problem for path in checkpoints_in(checkpoints) if (problem := damage(path))}
        if bad or after < before:
            self.failures.append(
                f"death {self.kills}: {bad or 'nothing'} damaged, step {before} before, {after} after"
            )
        else:
            self.recovered += 1
        return after


def newest_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in checkpoints_in(checkpoints)), default=0)


def silent_loads(folder: Path, flips: int, truncations: int) -> int:
    """How many spoilt checkpoints are loaded without a word."""
    model = build(MODEL, TRAIN.seed)
    optimizer = Optimizer(model, TRAIN.optimizer)
    restore(folder, model, optimizer)  # the unspoilt one is read
    silent = 0
    for path, spoilt in spoilings(folder, flips, truncations):
        whole = path.read_bytes()
        path.write_bytes(spoilt(whole))
        try:
            restore(folder, model, optimizer)
            silent += 1
        except CheckpointError:
            pass
        path.write_bytes(whole)
    return silent


def spoilings(folder: Path, flips: int, truncations: int) -> Iterator[tuple[Path, Callable[[bytes], bytes]]]:
    """A file, drawn by its size, and what to do to its bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in paths]
    for number in range(flips + truncations):
        # Every other file is drawn by its size, the rest alike, so that small files have their turn.
        path = DICE.choices(paths, sizes if number % 2 else None)[0]
        at, bit = DICE.randrange(path.stat().st_size), 1 << DICE.randrange(8)
        if number < flips:
            yield path, lambda b, at=at, bit=bit: b[:at] + bytes([b[at] ^ bit]) + b[at + 1 :]  # type: ignore[misc]
        else:
            yield path, lambda b, at=at: b[:at]  # type: ignore[misc]


def undisturbed(folder: Path, data: Path) -> tuple[dict[str, Any], float]:
    """What a run comes to that nobody kills, and how many seconds it takes."""
    began, log = time.monotonic(), folder.with_suffix(".log")
    if finish(start(lambda: train(folder, data), log), None):
        raise SystemExit(log.read_text(encoding="utf-8"))
    return outcome(folder), time.monotonic() - began


def main() -> int:
    """Run it all; the exit code is 0 where every figure is as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=200, help="deaths (200)")
    parser.add_argument("--flips", type=int, default=500, help="flipped bytes (500)")
    parser.add_argument("--truncations", type=int, default=100, help="files cut short (100)")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)  # no thread pool may exist when a process forks
    plan.measure_peak = lambda *_: 1e12
    root = Path(tempfile.mkdtemp(prefix="hasten-kill-"))
    write_data(root / "data")
    expected, seconds = undisturbed(root / "undisturbed", root / "data")
    deaths = Deaths(root / "data", arguments.times, seconds, expected)
    while deaths.kills < deaths.times and not deaths.failures:
        deaths.run(root / f"run-{deaths.runs}")
        print(f"{deaths.kills} deaths, {deaths.runs} runs, {time.monotonic() - began:.0f} s", flush=True)
    final = root / "undisturbed" / "checkpoints" / f"step-{TRAIN.steps:06}"
    silent = silent_loads(final, arguments.flips, arguments.truncations)
    result = {
        "times": deaths.kills,
        "recovered": deaths.recovered,
        "equal": deaths.equal,
        "inside_saves": deaths.inside_saves,
        "runs": deaths.runs,
        "flips": arguments.flips,
        "truncations": arguments.truncations,
        "silent_loads": silent,
        "failures": deaths.failures,
        "undisturbed_seconds": round(seconds, 2),
        "seconds": round(time.monotonic() - began, 1),
        **environment(),
    }
    good = arguments.times == deaths.kills == deaths.recovered == deaths.equal and not silent
    if good:
        shutil.rmtree(root)
    if arguments.save:
        write_json(arguments.save, result)
    print(json.dumps(result))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
