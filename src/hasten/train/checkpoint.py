"""Checkpoints: folders that explain themselves, written beside the training, whole or absent.

    step-000500/
        manifest.json                what every other file must be, byte for byte; step, metric, parent
        model.yaml, tokenizer.json   how to build the model, how to spell text
        weights/model.safetensors    its parameters
        state/                       optimizer, random generators, the run's own figures

`Checkpoints` writes them and keeps the newest and the best; `restore` continues a training from one,
bit for bit; `load_model` takes just the model, to evaluate it or to generate.
"""

import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hasten.core.errors import CheckpointError
from hasten.core.files import damage, publish, read_manifest, remove_folder, sweep
from hasten.model.transformer import Transformer
from hasten.train.optim import Optimizer
from hasten.train.restore import best, by_metric, checkpoints_in, latest, load_model, restore
from hasten.train.snapshot import Snapshot, Stage, num_bytes, weights_of

__all__ = ["Checkpoints", "best", "latest", "load_model", "restore"]

FREE_SPACE = 1.2
"""A save begins only where the disk has this many times its bytes free."""


class Checkpoints:
    """The checkpoints of one run, `folder/step-000500` and so on; the newest `keep_last` and the best stay.

    One process owns the folder.  A save copies the training aside and returns; a thread writes the copy.
    There is one copy and one thread: a save that comes while another is being written waits for it.  What
    goes wrong in the thread is raised by the next call.
    """

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        assert keep_last >= 1, "a run that keeps no checkpoint cannot resume"
        self.folder, self.keep_last = folder, keep_last
        self.stage = Stage()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
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
        wait: bool = False,
    ) -> None:
        """Save a training after `step`; `wait` returns when the checkpoint is on the disk.

        `state` is any JSON that `restore` shall return.  `metric` decides which checkpoint is best: the
        lowest.  Raises `CheckpointError`, with all earlier checkpoints intact, where the disk has no room.
        """
        self.wait()
        self.check_room(model, optimizer)
        snapshot = Snapshot.take(self.stage, model, optimizer, state, tokenizer)
        note = {"step": step, "metric": metric, "parent": parent}
        self.pending = self.thread.submit(self.write, self.folder / folder_name(step), snapshot, note)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written; raise what went wrong since the last call."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def check_room(self, model: Transformer, optimizer: Optimizer) -> None:
        """Refuse to begin what the disk cannot hold."""
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        needed = math.ceil(FREE_SPACE * (num_bytes(weights_of(model)) + num_bytes(optimizer.state_dict())))
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {needed / 1e6:,.1f} MB of free space and the disk has"
                f" {free / 1e6:,.1f} MB; {self.survivor()}; make room or keep fewer checkpoints"
            )

    def write(self, final: Path, snapshot: Snapshot, note: dict[str, Any]) -> None:
        """Publish a snapshot, read it back, then let go of the checkpoints that need not stay."""
        with self.explained(f"{final}: could not be written"), publish(final, note) as temporary:
            snapshot.write(temporary)
        if problem := damage(final):
            raise CheckpointError(f"{final}: was written and does not read back ({problem}); check the disk")
        with self.explained(f"{self.folder}: an old checkpoint could not be removed"):
            self.prune()

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
        self.wait()
        return latest(self.folder)

    def best(self) -> Path | None:
        """The whole checkpoint with the lowest metric, None where none has a metric."""
        self.wait()
        return best(self.folder)


def folder_name(step: int) -> str:
    """`folder_name(500)` -> `step-000500`."""
    return f"step-{step:06}"
