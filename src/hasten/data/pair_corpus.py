"""Prepared pairs as batches, with the same questions and answers as a `Corpus` of text.

A row holds several pairs: their targets follow each other in T places, their sources in S places, and the
same number in `segments` and `source_segments` says which belong together.  An epoch reads every pair once;
from epoch to epoch pairs of equal lengths change places, so that other pairs meet in a row, and no row's
shape changes.  Letters: B rows, T target places, S source places, D pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from hasten.core.batch import Batch
from hasten.core.console import say
from hasten.core.errors import DataError
from hasten.data.corpus import Corpus, Stream
from hasten.data.examples import Ids, pairs
from hasten.data.order import Integers, Order, mixed
from hasten.data.pack_pairs import PairRows, fitting, planned
from hasten.data.shards import Shards


@dataclass(frozen=True)
class PairStream(Stream):
    """One source: its shards, in which document 2 d is the source of pair d and 2 d + 1 its target."""

    rows: PairRows  # type: ignore[assignment]
    kind: Integers  # [D] equal for pairs of equal lengths

    def pair(self, number: int) -> tuple[Ids, Ids]:
        """A pair's source [s] and target [t], each with its end."""
        return self.shards.ids(2 * number, 1), self.shards.ids(2 * number + 1, 1)


class PairCorpus(Corpus):
    """One split of prepared pairs in rows of T target and S source tokens.

    `start_id` is what a target begins with on the way in.  A pair that fits no row is an error, or with
    `too_long` = "drop" left out and counted in `too_long_pairs`.
    """

    def __init__(
        self,
        prepared: Path,
        split: str,
        row_tokens: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        *,
        source_tokens: int,
        start_id: int,
        pad_id: int,
        too_long: Literal["error", "drop"] = "error",
    ) -> None:
        """Plan the rows of `prepared`/`split`; raises DataError if there is nothing to read."""
        self.row_sources, self.start_id, self.too_long = source_tokens, start_id, too_long
        self.too_long_pairs = 0
        self.orders: dict[int, tuple[int, Integers]] = {}  # of each source: the last epoch asked for
        super().__init__(prepared, split, row_tokens, seed, weights)
        self.pad_id = pad_id
        if self.too_long_pairs:
            left_out = f"{self.too_long_pairs:,} pairs are longer than a row and left out"
            say(f"{split:<10} {left_out}; {self.remedy} to keep them")

    def open(self, name: str, shards: Shards, plans: Path) -> PairStream:
        """One source with the plan of its rows."""
        if shards.num_documents % 2:
            raise DataError(f"{self.name}: holds no pairs; run `hasten prepare` again")
        sources, targets = shards.lengths[0::2] - 1, shards.lengths[1::2] - 1
        self.check_lengths(name, sources, targets)
        rows = planned(sources, targets, (self.source_tokens, self.row_tokens), plans)
        kind = np.unique(np.stack([sources, targets]), axis=1, return_inverse=True)[1].reshape(-1)
        return PairStream(name, shards, rows, kind.astype(np.int64))

    def check_lengths(self, name: str, sources: Integers, targets: Integers) -> None:
        """Count the pairs that fit no row, or refuse them."""
        fits = fitting(sources, targets, (self.source_tokens, self.row_tokens))
        count = len(fits) - int(fits.sum())
        if count and self.too_long == "error":
            raise DataError(
                f"{self.name}: {count:,} of {len(fits):,} pairs of {name} are longer than a row of"
                f" {self.source_tokens:,} source and {self.row_tokens:,} target tokens; the longest have"
                f" {int(sources.max()):,} and {int(targets.max()):,}: {self.remedy}, or leave them out with"
                " data.pairs.too_long=drop"
            )
        self.too_long_pairs += count

    @property
    def source_tokens(self) -> int:
        """Source tokens in a row."""
        return self.row_sources

    @property
    def remedy(self) -> str:
        """What makes room for long pairs."""
        return "raise data.row_tokens and data.source_row_tokens"

    @property
    def utilisation(self) -> float:
        """Share of all places on both sides that hold a token."""
        tokens = self.num_tokens + sum(stream.rows.num_sources for stream in self.pair_streams)
        return tokens / (self.num_rows * (self.row_tokens + self.source_tokens))

    @property
    def packed(self) -> bool:
        """Rows hold several pairs: batches always come with segments."""
        return True

    @property
    def pair_streams(self) -> list[PairStream]:
        """The streams, as what they are here."""
        return [stream for stream in self.streams if isinstance(stream, PairStream)]

    def read(self, order: Order, numbers: Integers, num_rows: int | None = None) -> Batch:
        """Rows [B] of `order` as a batch, with empty rows below up to `num_rows`."""
        rows, names = [], dict[str, None]()
        places = zip(*(found.tolist() for found in order.locate(numbers)), strict=True)
        for (source, row), epoch in zip(places, order.epochs(numbers).tolist(), strict=True):
            stream = self.pair_streams[source]
            chosen = self.shuffled(source, epoch)[stream.rows.span(row)].tolist()
            rows.append([stream.pair(pair) for pair in chosen])
            names |= {stream.shards.name(2 * pair): None for pair in chosen}
        rows += [[]] * ((num_rows or len(rows)) - len(rows))
        shape = self.source_tokens, self.row_tokens
        return pairs(rows, shape, self.start_id, self.pad_id, tuple(names))

    def shuffled(self, source: int, epoch: int) -> Integers:
        """[P]: which pair stands in each place of a source's rows in this epoch; the last answer is kept."""
        if self.orders.get(source, (-1,))[0] != epoch:
            stream = self.pair_streams[source]
            key = f"{self.seed} {source} {epoch}"
            self.orders[source] = epoch, among_equals(stream.rows.pair, stream.kind[stream.rows.pair], key)
        return self.orders[source][1]


def among_equals(values: Integers, kinds: Integers, key: str) -> Integers:
    """[P] `values`, those of one kind [P] in an order of their own that `key` draws."""
    drawn = mixed(np.arange(len(values), dtype=np.uint64) + np.uint64(xxhash.xxh64_intdigest(key.encode())))
    places, shuffled = np.argsort(kinds, kind="stable"), np.lexsort((drawn, kinds))
    result = np.empty_like(values)
    result[places] = values[shuffled]
    return result
