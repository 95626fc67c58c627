"""Kill a process of a training in several at random instants, and compare what comes out with a quiet run.

    python bench/kill_parallel.py --times 30 --parallel data=2

`hasten train` starts the processes, as a person would have it.  One of them, drawn by lot, dies by SIGKILL at
a random instant of its life, start-up included; the launcher starts all again, until one dies again or
the run is over, and then the next run begins.  Every run must end with the same bytes of weights and of the
optimizer as the undisturbed one, and the same lines in metrics.jsonl but for what a clock gave them.

The last line is one JSON object.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outcome import steady_lines, tensors_of

from hasten.core.files import write_json
from hasten.core.runtime import environment

STEPS, CHECKPOINT_EVERY = 200, 5
AGAIN = "all processes start again"
"""What the launcher says when it does."""
LOOK_SECONDS = 0.02
DICE = random.Random()


def write_recipe(folder: Path) -> None:
    """A tiny model with dropout, and random words to learn."""
    draw, words = random.Random(0), "the a red old cat dog bird house runs sees likes of in and".split()
    (folder / "texts").mkdir(parents=True)
    for number in range(40):
        text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(40))
        (folder / "texts" / f"{number:02}.txt").write_text(text)
    model = {"preset": "hasten-tiny", "dim": 32, "num_layers": 2, "num_heads": 2, "max_positions": 32}
    recipe = {
        "device": "cpu",
        "data": {
            "sources": ["texts"],
            "clean": {"near_duplicates": None, "repetition": False},
            "tokenizer": {"kind": "bpe", "vocab_size": 300},
            "row_tokens": 32,
            "cache": "data",
        },
        "model": {**model, "dropout": 0.1},
        "train": {
            "steps": STEPS,
            "batch_tokens": 128,
            "log_every": 1,
            "validate_every": 50,
            "validation_tokens": 256,
            "checkpoint_every": CHECKPOINT_EVERY,
            "compile": "off",
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML


def begin(folder: Path, name: str, words: list[str]) -> subprocess.Popen[bytes]:
    """`hasten train` into `folder/name`; what it says goes beside that."""
    command = [
        sys.executable,
        "-m",
        "hasten",
        "train",
        "recipe.yaml",
        f"output={name}",
        "restarts=1000",
        *words,
    ]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def workers_of(launcher: int) -> list[int]:
    """The process ids of a launcher's children, in order of rank."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            variables = (stat.parent / "environ").read_bytes() if int(fields[1]) == launcher else b""
        except OSError:  # it has ended meanwhile
            continue
        ranks = [entry for entry in variables.split(b"\0") if entry.startswith(b"RANK=")]
        if ranks and fields[0] != "Z":
            found.append((int(ranks[0][5:]), int(stat.parent.name)))
    return [pid for _, pid in sorted(found)]


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on the deaths that a run went through."""
    return {**tensors_of(run, STEPS), "lines": steady_lines(run)}


@dataclass
class Deaths:
    """The deaths to die, and what they came to so far."""

    folder: Path
    words: list[str]
    times: int
    life_seconds: float  # of the processes of the undisturbed run, from their start to their end
    expected: dict[str, Any]
    kills: int = 0
    restarts: int = 0
    in_training: int = 0
    inside_saves: int = 0
    runs: int = 0
    equal: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        """One run from its beginning to its end, killed again and again until there were enough deaths."""
        name = f"run-{self.runs}"
        launcher, seen = begin(self.folder, name, self.words), set[int]()
        try:
            while launcher.poll() is None:
                workers = [pid for pid in workers_of(launcher.pid) if pid not in seen]
                if workers and self.kills < self.times:
                    born = time.time()
                    self.let_live(launcher, DICE.uniform(0, self.life_seconds))
                    seen |= self.kill_one(launcher.pid, self.folder / name, born)
                time.sleep(LOOK_SECONDS)
        finally:
            launcher.kill()
        self.runs += 1
        log = (self.folder / f"{name}.log").read_text(encoding="utf-8")
        self.restarts += log.count(AGAIN)
        if launcher.returncode == 0 and outcome(self.folder / name) == self.expected:
            self.equal += 1
        else:
            self.failures.append(
                f"{name} ended with {launcher.returncode} or unlike the quiet run: {name}.log"
            )

    def let_live(self, launcher: subprocess.Popen[bytes], seconds: float) -> None:
        """Wait, unless the run is over before."""
        until = time.monotonic() + seconds
        while launcher.poll() is None and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def kill_one(self, launcher: int, run: Path, born: float) -> set[int]:
        """Kill one of the processes that live since `born`, if any; the process ids of all of them."""
        workers = workers_of(launcher)
        if workers:
            os.kill(DICE.choice(workers), signal.SIGKILL)
            self.kills += 1
            lines = run / "metrics.jsonl"
            self.in_training += lines.exists() and lines.stat().st_mtime > born
            self.inside_saves += any((run / "checkpoints").glob("*.tmp-*"))
        return set(workers)


def undisturbed(folder: Path, words: list[str]) -> tuple[dict[str, Any], float]:
    """What a run comes to that nobody kills, and how many seconds its processes live."""
    for name in ("first", "quiet"):  # the first prepares the data
        launcher, began = begin(folder, name, words), None
        while launcher.poll() is None:
            if began is None and workers_of(launcher.pid):
                began = time.monotonic()
            time.sleep(LOOK_SECONDS)
        if launcher.returncode or began is None:
            raise SystemExit((folder / f"{name}.log").read_text(encoding="utf-8"))
        seconds = time.monotonic() - began
    return outcome(folder / "quiet"), seconds


def main() -> int:
    """Run it all; the exit code is 0 where every run ended like the quiet one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=30, help="deaths (30)")
    parser.add_argument("--parallel", default=["data=2"], nargs="+", help="degrees (data=2)")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    began = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="hasten-kill-parallel-"))
    words = [f"parallel.{word}" for word in arguments.parallel]
    write_recipe(folder)
    expected, seconds = undisturbed(folder, words)
    deaths = Deaths(folder, words, arguments.times, seconds, expected)
    while deaths.kills < deaths.times and not deaths.failures:
        deaths.run()
        print(f"{deaths.kills} deaths, {deaths.runs} runs, {time.monotonic() - began:.0f} s", flush=True)
    result = {
        "parallel": arguments.parallel,
        "kills": deaths.kills,
        "restarts": deaths.restarts,
        "in_training": deaths.in_training,
        "inside_saves": deaths.inside_saves,
        "runs": deaths.runs,
        "equal": deaths.equal == deaths.runs,
        "failures": deaths.failures,
        "undisturbed_seconds": round(seconds, 2),
        "seconds": round(time.monotonic() - began, 1),
        **environment(),
    }
    if result["equal"]:
        shutil.rmtree(folder)
    if arguments.save:
        write_json(arguments.save, result)
    print(json.dumps(result))
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
