"""Prepared text as batches: a pure function of (seed, step, rank).  Letters: B rows, T tokens.

Nothing is remembered between steps, so a run resumes by its step number alone, and W ranks together read
exactly what one would.  A row is read in three looks: the order says which row, the plan says which pieces of
which documents fill it, the shards hold their ids.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from hasten.core.batch import Batch
from hasten.core.errors import ConfigError, DataError
from hasten.data.examples import language_model
from hasten.data.order import Integers, Mixture, Order, Shuffled
from hasten.data.pack import Rows, pack, pack_on_disk
from hasten.data.shards import Shards, open_split

PIECES_IN_MEMORY = 1 << 22
"""A plan of more pieces than this (some 120 MB) is kept on the disk beside the prepared data."""


@dataclass(frozen=True)
class Stream:
    """One source: its shards, and the plan of its rows."""

    name: str
    shards: Shards
    rows: Rows


class Corpus:
    """One split of prepared text in rows of T tokens.

    Without `weights`, an epoch reads every target exactly once, each epoch in another order.  With a weight
    for each source, sources take turns so that their shares of the targets are as the weights, and each
    begins again, in another order, when it is through.
    """

    beside: Callable[[Batch], Batch] | None = None
    """Puts something beside every batch that is trained on, such as what a teacher said of it."""

    def __init__(
        self,
        prepared: Path,
        split: str,
        row_tokens: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Plan the rows of `prepared`/`split`; raises DataError if there is nothing to read."""
        self.name, self.row_tokens, self.seed = f"{prepared}/{split}", row_tokens, seed
        plans = prepared.with_name(prepared.name + "-rows")
        self.streams = [self.open(name, s, plans) for name, s in open_split(prepared / split).items()]
        self.num_rows = sum(stream.rows.num_rows for stream in self.streams)
        self.num_tokens = sum(stream.rows.num_targets for stream in self.streams)
        self.num_bytes = sum(int(stream.shards.text_bytes.sum()) for stream in self.streams)
        if not self.num_tokens:
            raise DataError(f"{self.name}: holds no text; give more text or a larger share in data.split")
        self.pad_id = self.streams[0].shards.shards[0].eot_id
        sizes = [stream.rows.num_rows for stream in self.streams]
        self.once: Order = Shuffled(sizes, seed)
        self.order = self.once if weights is None else Mixture(sizes, self.row_weights(weights), seed)

    def open(self, name: str, shards: Shards, plans: Path) -> Stream:
        """One source with the plan of its rows; `plans` is where a long plan is kept."""
        return Stream(name, shards, plan(shards.lengths - 1, self.row_tokens, plans))  # n ids, n - 1 targets

    @property
    def utilisation(self) -> float:
        """Share of all places in rows that hold a target."""
        return self.num_tokens / (self.num_rows * self.row_tokens)

    @property
    def num_supervised(self) -> int:
        """Targets of an epoch."""
        return self.num_tokens

    @property
    def source_tokens(self) -> int:
        """Source tokens in a row of pairs; 0 without pairs."""
        return 0

    @property
    def head_share(self) -> float:
        """Share of the places in a row for which the model's head is asked."""
        return 1.0

    @property
    def packed(self) -> bool:
        """Whether some row is not exactly one piece, so that batches come with segments."""
        pieces = sum(len(stream.rows.length) for stream in self.streams)
        return pieces != self.num_rows or self.num_tokens != self.num_rows * self.row_tokens

    def row_weights(self, weights: Mapping[str, float]) -> list[Fraction]:
        """Each source's share of rows for its share of targets: rows of some sources may be less full."""
        names = [stream.name for stream in self.streams]
        if set(weights) != set(names) or not all(stream.rows.num_rows for stream in self.streams):
            empty = [stream.name for stream in self.streams if not stream.rows.num_rows]
            raise DataError(
                f"{self.name}: weights are for {', '.join(weights)}, but there is text of"
                f" {', '.join(name for name in names if name not in empty)}; weigh these and no others"
            )
        return [
            Fraction(weights[stream.name]) * stream.rows.num_rows / stream.rows.num_targets
            for stream in self.streams
        ]

    def batches(
        self, step: int, *, rows: int, micro_rows: int, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """This rank's part of a step that reads `rows` rows over all ranks, in batches of `micro_rows`.

        A step may reach from one epoch into the next.  Raises DataError if all the text is less than one
        step needs.
        """
        self.check(rows, micro_rows, world_size)
        own = rows // world_size
        first = step * rows + rank * own
        found = [
            self.read(self.order, np.arange(start, start + micro_rows))
            for start in range(first, first + own, micro_rows)
        ]
        return found if self.beside is None else [self.beside(batch) for batch in found]

    def check(self, rows: int, micro_rows: int, world_size: int) -> None:
        """Refuse a step that cannot be cut evenly, or that an epoch cannot fill."""
        self.check_cut(rows, micro_rows, world_size)
        if self.num_tokens < self.row_tokens:
            raise DataError(
                f"{self.name}: there are {self.num_tokens:,} tokens of text, less than one row of"
                f" {self.row_tokens:,}; write data.row_tokens={power_of_two(self.num_tokens)} or give more"
            )
        if self.num_rows < rows:
            raise DataError(
                f"{self.name}: the text makes {self.num_rows:,} rows of {self.row_tokens:,} tokens, fewer"
                f" than the {rows:,} of one step; write train.batch_tokens={self.num_rows * self.row_tokens}"
                " or less, or give more text"
            )

    def check_cut(self, rows: int, micro_rows: int, world_size: int) -> None:
        """Refuse a step that is not whole batches, equally many on each rank."""
        if rows % (world_size * micro_rows):
            raise ConfigError(
                f"a step of {rows} rows cannot be cut into batches of {micro_rows} on {world_size} ranks;"
                f" write train.batch_tokens as a multiple of {world_size * micro_rows * self.row_tokens}"
            )

    def sweep(
        self, micro_rows: int, *, rows: int | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Every row once, or `rows` of them drawn evenly (always the same), for validation.

        Every rank gets equally many batches of `micro_rows` rows; where rows run out there is padding.
        """
        count = min(rows or self.num_rows, self.num_rows)
        together = micro_rows * world_size
        for start in range(0, count, together):
            numbers = np.arange(start, min(start + together, count))[rank * micro_rows :][:micro_rows]
            yield self.read(self.once, numbers, micro_rows)

    def epoch(self, step: int, rows: int) -> float:
        """How many times `step` steps of `rows` rows have read the corpus; 1.5 is half through the second."""
        return step * rows / self.num_rows

    def read(self, order: Order, numbers: Integers, num_rows: int | None = None) -> Batch:
        """Rows [B] of `order` as a batch, with empty rows below up to `num_rows`."""
        rows, documents = [], dict[str, None]()
        for source, row in zip(*(found.tolist() for found in order.locate(numbers)), strict=True):
            stream = self.streams[source]
            pieces = list(stream.rows.pieces(row))
            rows.append(
                [stream.shards.ids(document, start, length + 1) for document, start, length in pieces]
            )
            documents |= {stream.shards.name(document): None for document, _, _ in pieces}
        rows += [[]] * ((num_rows or len(rows)) - len(rows))
        return language_model(rows, self.row_tokens, self.pad_id, tuple(documents))


def plan(lengths: Integers, row_tokens: int, folder: Path) -> Rows:
    """The rows of one source's documents of `lengths` [D]; `folder` keeps those of a large one."""
    if len(lengths) + int(lengths.sum()) // row_tokens > PIECES_IN_MEMORY:
        return pack_on_disk(lengths, row_tokens, folder)
    return pack(lengths, row_tokens)


def power_of_two(most: int) -> int:
    """The largest power of two that is at most `most`."""
    return 1 << (most.bit_length() - 1)
