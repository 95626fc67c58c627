"""Fine-tune by a recipe and by transformers, peft and trl, in turn: how much sooner is a score reached?

    make bench-peers                                              an environment with the other libraries
    python bench/task_peers.py --save bench/results/task-peers.json       every job, hours: alone
    python bench/task_peers.py sst2 --rounds 3 --save bench/results/task-peers.json
    python bench/task_peers.py alpaca-lora --tune-only                    find the peers' settings and stop
    python bench/task_peers.py alpaca-lora --set train.minutes=5 --untuned
    python bench/task_peers.py --steps 3                                  does everything work?

Both sides begin with the same model, in float32, read the same rows, which hasten's preparing has cut, and
are scored on the same dev rows, in float32, at places along the way.  Every training has a process of its
own, with hasten's allocator settings, hasten and peers in turn.  hasten prepares, trains, validates and saves
as its recipe says; a peer tokenizes and trains, and saves nothing.  Seconds are those from the start of the
process until the score was reached, in proportion between two looks, without a peer's looks.  The score that
counts is the best that both reach.

Each peer comes as its own example has it, in the quicker of float32 and bfloat16, and once more tuned: rows
of like length together, or packed without waste, and the best of a few rates, chosen by the dev score itself.
Where a clock ends the recipe's training, a peer gets one and a half times what hasten took, with its schedule
made for that.

Prints one JSON object last; `--save` puts each job's into a file beside those that are there.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compare import PEERS
from peers.comparison import say
from peers.hasten_job import HastenJob, hugging_face_folder
from peers.jobs import JOBS, Job
from peers.peer_job import BY_EPOCHS, Kept, PeerJob
from peers.process import WorkerError
from peers.reaching import verdict

from hasten.core.allocator import allocator_environment
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.ops.kernels.library import library

LONGER = 1.5
"""Times hasten's seconds: what a peer gets where a clock ends the recipe's training."""
HASTEN = "hasten"


class Comparison:
    """One job: hasten and those peers that are there."""

    def __init__(self, job: Job, options: argparse.Namespace, folder: Path) -> None:
        self.job, self.options = job, options
        base = hugging_face_folder(options.models, job.base)
        self.environment = surroundings(folder)
        library()  # compiled once on a machine
        self.hasten = HastenJob(job, options.data.resolve(), base, folder, options.steps, tuple(options.set))
        rows, kept = self.hasten.write_rows(), Kept(options.found)
        places = str(options.peers), self.environment, base, rows, kept, options.steps
        self.peers = {arm.name: PeerJob(job, arm, *places) for arm in job.arms}
        self.settings: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def tune(self) -> None:
        """Find every peer's settings."""
        for name, peer in list(self.peers.items()):
            self.caught(name, lambda peer=peer: self.settings.update({peer.arm.name: peer.settings()}))

    def run(self) -> list[dict[str, Any]]:
        """All rounds, each {system: its run}; hasten begins the first, for its time is the peers' budget."""
        rounds: list[dict[str, Any]] = []
        for number in range(self.options.rounds):
            found: dict[str, Any] = {}
            names = [HASTEN, *self.peers] if number % 2 == 0 else [*self.peers, HASTEN]
            for name in names:
                ours = (rounds[0] if rounds else found).get(HASTEN)
                self.caught(name, lambda n=name, k=number, o=ours, f=found: f.update({n: self.one(n, k, o)}))
            rounds.append(found)
        return rounds

    def one(self, name: str, number: int, ours: dict[str, Any] | None) -> dict[str, Any]:
        """One training of a system."""
        if name == HASTEN:
            run = self.hasten.train(number, self.environment)
        else:
            peer, steps = self.peers[name], BY_EPOCHS
            if self.job.by_the_clock:
                assert ours is not None, "hasten has begun"
                steps = peer.steps_within(LONGER * (ours["startup_seconds"] + ours["loop_seconds"]))
            run = peer.train(self.settings[name], seed=number, looks=self.job.looks, max_steps=steps)
        last = run["looks"][-1]
        say(
            f"{self.job.task:<12} {name:<16} {run['startup_seconds']:6.1f} + {run['loop_seconds']:7.1f} s"
            f"  {self.job.unit} {last['score']:.4f}  {run['peak_bytes'] / 2**20:6.0f} MiB"
        )
        return run

    def caught(self, name: str, work: Callable[[], object]) -> None:
        """Do it; a peer that is missing or fails is written down and left out from here on."""
        try:
            work()
        except WorkerError as error:
            self.failed[name] = str(error)
            self.peers.pop(name)
            say(f"{self.job.task:<12} {name:<16} failed: {error}")

    def result(self, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        """The JSON of the job."""
        whole = [{name: found[name] for name in (HASTEN, *self.peers)} for found in rounds]
        versions = [run.pop("versions") for found in whole for run in found.values() if "versions" in run]
        return {
            "recipe": self.hasten.recipe_name,
            "unit": self.job.unit,
            "higher_is_better": self.job.higher,
            "steps": self.options.steps,
            "set": self.options.set,
            "settings": self.settings,
            "arms": [asdict(arm) for arm in self.job.arms],
            "failed": self.failed,
            "verdict": verdict(whole, higher=self.job.higher) if whole else {},
            "rounds": whole,
            "peers": versions[0] if versions else {},
            "environment": {"load_average": os.getloadavg(), **environment()},
        }


def surroundings(folder: Path) -> dict[str, str]:
    """What all processes get: hasten's allocator settings; caches of their own, and no way to the hub."""
    own = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    return {**allocator_environment(os.environ), **own}


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One job, from its rows to its verdict."""
    with tempfile.TemporaryDirectory(prefix="hasten-task-peers-") as folder:
        comparison = Comparison(job_of(name, options), options, Path(folder))
        comparison.tune()
        return comparison.result([] if options.tune_only else comparison.run())


def job_of(name: str, options: argparse.Namespace) -> Job:
    """The job, without the arms that are tuned where that is not wanted."""
    job = JOBS[name]
    return replace(job, arms=tuple(arm for arm in job.arms if not arm.rates)) if options.untuned else job


def merged(path: Path, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """What a file of results holds with a job's put in, or in the place of an earlier one."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"program": "task_peers"}
    return {**before, "jobs": {**before.get("jobs", {}), name: result}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, save."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)}; all by default")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="end every training after so many: figures mean nothing")
    parser.add_argument("--untuned", action="store_true", help="peers only as their examples have them")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--tune-only", action="store_true", help="find the peers' settings and stop")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the recipes' rows")
    parser.add_argument("--models", type=Path, default=Path("runs/models"), help="fetched by `make models`")
    parser.add_argument("--peers", type=Path, default=PEERS, help="their python, made by `make bench-peers`")
    parser.add_argument("--found", type=Path, default=Path("runs/task-peers.json"), help="peers' settings")
    parser.add_argument("--save", type=Path, help="put the JSON into this file too")
    options = parser.parse_args(arguments)
    if options.steps and options.save:
        parser.error("what --steps gives are no figures; leave --save out")
    if unknown := [name for name in options.jobs if name not in JOBS]:
        parser.error(f"there is no job {unknown[0]}; write one of {', '.join(JOBS)}")
    result: dict[str, Any] = {}
    for name in options.jobs or JOBS:
        found = compare(name, options)
        result = {"program": "task_peers", "jobs": {**result.get("jobs", {}), name: found}}
        if options.save:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.save, merged(options.save, name, found))
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
