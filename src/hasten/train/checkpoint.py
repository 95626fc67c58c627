"""Checkpoints: folders that explain themselves, written beside the training, whole or absent.

    step-000500/
        manifest.json                what every other file must be, byte for byte; step, metric, parent
        model.yaml, tokenizer.json   how to build the model, how to spell text
        adapter.yaml                 which model it stands beside, where only thin pairs were trained
        weights/model.safetensors    its parameters
        state/                       optimizer, random generators, the run's own figures

Where a training is spread over processes so that none has it whole, each writes the boxes that it speaks for
into files of its own, `model-00003-of-00008.safetensors` and so on, with an index beside them
(`train/boxes.py`): the folder must be one that all machines see.

`Checkpoints` writes them and keeps the newest and the best; `restore` continues a training from one,
bit for bit, on any mesh; `load_model` takes just the model, to evaluate it or to generate.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from hasten.core.errors import CheckpointError
from hasten.core.files import (
    begin,
    changed,
    damage,
    finish,
    misplaced,
    read_manifest,
    remove_folder,
    sweep,
    write_json,
)
from hasten.model.transformer import Transformer
from hasten.parallel.arrangement import Arrangement
from hasten.train.boxes import index_of
from hasten.train.crew import Crew
from hasten.train.held import OPTIMIZER, WEIGHTS, is_spread_out
from hasten.train.load import load_model
from hasten.train.optim import Optimizer
from hasten.train.pieces import FILE, INDEX
from hasten.train.restore import best, by_metric, checkpoints_in, first_whole, latest, restore
from hasten.train.snapshot import Part, Snapshot, Stage

T = TypeVar("T")

__all__ = ["Checkpoints", "best", "latest", "load_model", "restore"]

FREE_SPACE = 1.2
"""A save begins only where the disk has this many times its bytes free."""


class Checkpoints:
    """The checkpoints of one run, `folder/step-000500` and so on; the newest `keep_last` and the best stay.

    One process owns the folder, or all those that an `arrangement` spreads the training over: each of them
    then makes one of these at the same moment and calls it alike.  A save copies the training aside and
    returns; a thread writes the copy.  There is one copy and one thread: a save that comes while another is
    being written waits for it.  What goes wrong in a thread is raised by the next call, on all processes.
    """

    def __init__(self, folder: Path, keep_last: int = 2, arrangement: Arrangement | None = None) -> None:
        assert keep_last >= 1, "a run that keeps no checkpoint cannot resume"
        self.folder, self.keep_last, self.arrangement = folder, keep_last, arrangement
        self.crew = Crew(is_spread_out(arrangement))
        self.stage = Stage()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        if self.crew.leads:
            sweep(folder)

    def save(
        self,
        step: int,
        *,
        model: Transformer,
        optimizer: Optimizer,
        state: dict[str, Any],
        tokenizer: Path | None = None,
        metric: float | None = None,
        parent: str | None = None,
        notes: Mapping[str, str] | None = None,
        wait: bool = False,
    ) -> None:
        """Save a training after `step`; `wait` returns when the checkpoint is on the disk.

        `state` is any JSON that `restore` shall return, `notes` are further files of text by name; of several
        processes the first one's count, as does its `metric`, which decides which checkpoint is best: the
        lowest.  Raises `CheckpointError`, with all earlier checkpoints intact, where the disk has no room.
        """
        self.wait()
        snapshot = Snapshot.take(
            self.stage, model, optimizer, state, tokenizer, arrangement=self.arrangement, notes=notes
        )
        note = {"step": step, "metric": metric, "parent": parent}
        self.pending = self.thread.submit(self.write, self.folder / folder_name(step), snapshot, note)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written; raise what went wrong since the last call."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def check_room(self, sizes: Sequence[int]) -> None:
        """Refuse to begin what the disk cannot hold: so many bytes of each process."""
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        needed = math.ceil(FREE_SPACE * sum(sizes))
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {needed / 1e6:,.1f} MB of free space and the disk has"
                f" {free / 1e6:,.1f} MB; {self.survivor()}; make room or keep fewer checkpoints"
            )

    def write(self, final: Path, snapshot: Snapshot, note: dict[str, Any]) -> None:
        """Publish a snapshot, read it back, then let go of the checkpoints that need not stay."""
        crew, what = self.crew, f"{final}: could not be written"
        sizes = crew.each(lambda: snapshot.num_bytes)
        crew.first(lambda: self.check_room(sizes))
        temporary = crew.first(lambda: self.tried(what, lambda: begin(final)))
        try:
            parts = crew.each(lambda: self.tried(what, lambda: self.write_part(snapshot, temporary)))
            crew.first(lambda: self.tried(what, lambda: self.publish(temporary, final, note, parts)))
        except BaseException:
            if crew.leads:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        crew.first(lambda: self.read_back(final, parts))
        crew.first(lambda: self.tried(f"{self.folder}: an old checkpoint could not be removed", self.prune))

    def write_part(self, snapshot: Snapshot, temporary: Path) -> Part | None:
        """Write this process's files; what there is to tell of them where others write, too."""
        snapshot.write(temporary)
        return snapshot.part(temporary) if self.crew.size > 1 else None

    def publish(
        self, temporary: Path, final: Path, note: dict[str, Any], parts: Sequence[Part | None]
    ) -> None:
        """Make what was written appear under its name, with an index where it lies in parts."""
        written = [part for part in parts if part is not None]
        for rank, part in enumerate(written):
            for name, (size, _) in part.records.items():
                path = temporary / name
                if not path.is_file() or path.stat().st_size != size:
                    raise CheckpointError(
                        f"{final}: could not be written: rank 0 does not see {name} as rank {rank} wrote it;"
                        " give all machines one folder that they share as the run's `output`"
                    )
        for file in (WEIGHTS, OPTIMIZER) if written else ():
            name = Path(file).name
            boxes = {f"{name}{part.mark}{FILE}": part.boxes[file] for part in written if part.boxes[file]}
            write_json(temporary / f"{file}{INDEX}", index_of(boxes))
        finish(temporary, final, note, {name: it for part in written for name, it in part.records.items()})

    def read_back(self, final: Path, parts: Sequence[Part | None]) -> None:
        """Refuse a checkpoint that is not as it was written; others have read back what is theirs."""
        first = parts[0]
        problem = damage(final) if first is None else misplaced(final) or changed(final, first.records)
        if problem:
            raise CheckpointError(f"{final}: was written and does not read back ({problem}); check the disk")

    def tried(self, what: str, work: Callable[[], T]) -> T:
        """Do `work`, with a failure of the disk `explained`."""
        with self.explained(what):
            return work()

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn a failure of the disk into one sentence."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
            raise CheckpointError(
                f"{what} ({reason}); {self.survivor()}; make room or allow writing there, then start the run"
                " again to resume"
            ) from error

    def survivor(self) -> str:
        """What there is to go back to when a save fails, in words."""
        newest = next(iter(checkpoints_in(self.folder)), None)
        return f"{newest.name} is there as before" if newest else "there is no earlier checkpoint"

    def prune(self) -> None:
        """Remove all but the newest `keep_last` and the best; what has lost its manifest does not count."""
        whole = [folder for folder in checkpoints_in(self.folder) if read_manifest(folder) is not None]
        best = next(by_metric(self.folder), None)
        for folder in whole[self.keep_last :]:
            if folder != best:
                remove_folder(folder)

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, None where none was ever written."""
        return self.chosen(checkpoints_in)

    def best(self) -> Path | None:
        """The whole checkpoint with the lowest metric, None where none has a metric."""
        return self.chosen(by_metric)

    def chosen(self, candidates: Callable[[Path], Iterable[Path]]) -> Path | None:
        """The first whole one of these, the same on all processes."""
        self.wait()
        found = self.crew.first(lambda: list(candidates(self.folder)))
        if self.crew.size == 1:
            return first_whole(self.folder, found)
        return first_whole(self.folder, found, self.damage, aloud=self.crew.leads)

    def damage(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint, in a few words; of several processes each reads a share of it."""
        crew = self.crew
        problem = crew.first(lambda: misplaced(folder))
        if problem is not None:
            return problem
        names = sorted((read_manifest(folder) or {"files": {}})["files"])
        problems = crew.each(lambda: changed(folder, names[crew.rank :: crew.size]))
        return crew.first(lambda: next(filter(None, problems), None))


def folder_name(step: int) -> str:
    """`folder_name(500)` -> `step-000500`."""
    return f"step-{step:06}"
