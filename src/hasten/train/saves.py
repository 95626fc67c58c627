"""When a run saves itself, and what a save costs it."""

import time
from pathlib import Path
from typing import Any

from hasten.parallel.arrangement import Arrangement
from hasten.train.checkpoint import Checkpoints
from hasten.train.config import TrainConfig
from hasten.train.held import is_spread_out
from hasten.train.horizon import Cadence, Moment

CHECKPOINT_SECONDS = 300.0
"""`checkpoint_every: auto` loses about this much training to a crash, and no more."""


class Saves:
    """The checkpoints of a run in `folder`: when one is due, how long it takes.

    Rank 0 alone writes them, or all processes together where an arrangement leaves none the whole.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, *, leads: bool, arrangement: Arrangement | None = None
    ) -> None:
        self.cadence = Cadence(config.checkpoint_every, CHECKPOINT_SECONDS)
        self.seconds = 0.0  # of a save, when nothing disturbs it
        writes = leads or is_spread_out(arrangement)
        self.checkpoints = Checkpoints(folder, config.keep_last, arrangement) if writes else None

    def due(self, moment: Moment, stop: bool) -> bool:
        """Whether to save now: it is time, or someone asks to stop and this moment is not saved yet."""
        return self.cadence.due(moment) or (stop and self.cadence.last_step != moment.step)

    def done(self, moment: Moment) -> None:
        """A save at `moment` is about to be made."""
        self.cadence = self.cadence.done(moment)

    def restore(self, cadence: dict[str, Any], seconds: float) -> None:
        """Go on from a saved state."""
        self.cadence, self.seconds = self.cadence.restored(cadence), seconds

    def save(self, step: int, *, last: bool, **what: Any) -> None:
        """Hand everything to the checkpoint's thread, where this process writes any.

        The first and the last are waited for.
        """
        if self.checkpoints is None:
            return
        began, first = time.monotonic(), not self.seconds
        self.checkpoints.save(step, wait=first or last, **what)
        if self.checkpoints.pending is None:
            self.note(began)
        else:
            self.checkpoints.pending.add_done_callback(lambda _: self.note(began))

    def note(self, began: float) -> None:
        """Remember how long a save takes when nothing disturbs it."""
        seconds = time.monotonic() - began
        self.seconds = min(self.seconds, seconds) if self.seconds else seconds

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self.checkpoints is not None:
            self.checkpoints.wait()

    def latest(self) -> Path | None:
        """The newest whole checkpoint in the folder; None, too, where this process writes none."""
        return None if self.checkpoints is None else self.checkpoints.latest()
