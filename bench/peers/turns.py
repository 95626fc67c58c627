"""A worker's side of taking turns: no step begins before it was asked for, and all of it is timed.

The command comes on stdin, a number of steps a line; the end of stdin is the end.  An answer is a line of
JSON on what was stdout; whatever a library prints goes to stderr.
"""

import json
import os
import sys
import time
from typing import Any

import torch
from peers.shapes import Shape
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset

TABLE_ROWS = 1024
ENDLESS_ROWS = 10**6


class Voice:
    """Where answers go."""

    def __init__(self) -> None:
        self.file = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def tell(self, **what: Any) -> None:
        """One answer."""
        self.file.write(json.dumps(what) + "\n")


class Turns:
    """`wait` before the data of each step is made; it returns when that step may begin.

    A turn's clock runs from the command to the moment when one more step is wanted than was asked for: data,
    forward, backward, clipping and update of each of its steps are inside.  A loop that reads `ahead` batches
    ahead may read so many before the first turn, and then does one step for each batch that it is given.
    """

    def __init__(self, voice: Voice, ahead: int = 0) -> None:
        self.voice, self.allowed, self.steps, self.updates = voice, ahead, 0, 0
        self.began = 0.0

    def wait(self) -> None:
        """Answer for the turn that ends here, if any, and wait for the next."""
        if not self.allowed:
            if not self.steps and self.updates:
                raise RuntimeError("a step was taken before it was asked for: `ahead` is too large")
            if self.steps:
                seconds = time.perf_counter() - self.began
                self.voice.tell(seconds=seconds, steps=self.steps, updates=self.updates)
            command = sys.stdin.readline().strip()
            if not command:
                os._exit(0)  # from the middle of somebody's loop
            self.allowed = self.steps = int(command)
            self.updates, self.began = 0, time.perf_counter()
        self.allowed -= 1

    def count_updates(self) -> None:
        """Count every update that an optimizer of torch makes from here on."""
        register_optimizer_step_post_hook(self.note_update)

    def note_update(self, *_: Any) -> None:
        """An update was made."""
        self.updates += 1


def random_rows(shape: Shape) -> Tensor:
    """The tokens that all systems read, [TABLE_ROWS, context + 1]."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocab_size, (TABLE_ROWS, shape.context + 1), generator=draw)


class Rows(Dataset):
    """The rows as a data set without an end to speak of; each step's first row waits for its turn."""

    def __init__(self, shape: Shape, turns: Turns) -> None:
        self.table, self.rows, self.turns, self.read = random_rows(shape), shape.rows, turns, 0

    def __len__(self) -> int:
        return ENDLESS_ROWS

    def __getitem__(self, index: int) -> Tensor:
        """Row [context + 1]."""
        if self.read % self.rows == 0:
            self.turns.wait()
        self.read += 1
        return self.table[index % TABLE_ROWS]


class LabelledRows(Rows):
    """The rows as transformers wants them: it shifts the labels by itself."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # type: ignore[override]
        row = super().__getitem__(index)[:-1]
        return {"input_ids": row, "labels": row}
