"""Prepared examples as batches, with the same questions and answers as a `Corpus` of text.

A row holds several examples, whole: `segments` number them from 1, so that attention stays within each.  An
epoch reads every unit once; from epoch to epoch units of equal length change places, so that others meet in a
row, and no row's shape changes.
Letters: B rows, T places, N supervised places of a batch, M examples of a row at most, U units, E examples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core.batch import IGNORE, TYPES, Batch
from hasten.core.errors import DataError
from hasten.data.corpus import Corpus
from hasten.data.examples import Places
from hasten.data.masked import filled
from hasten.data.order import Integers, Mixture, Order, Shuffled
from hasten.data.pack_pairs import PairRows, planned
from hasten.data.pair_corpus import among_equals
from hasten.data.tasks.table import PLACE, VALUE, Table, open_tables


@dataclass(frozen=True)
class TaskStream:
    """One source: its examples, and the plan of its rows."""

    name: str
    table: Table
    rows: PairRows  # of which units stand together
    lengths: Integers  # [U] tokens of each unit

    @cached_property
    def most_examples(self) -> int:
        """M, of this source."""
        return int(np.diff(self.rows.bounds).max(initial=0)) * self.table.per_unit

    @cached_property
    def most_supervised(self) -> int:
        """The most supervised places of a row, in whatever order units of equal length come."""
        units = self.table.num_supervised.reshape(-1, self.table.per_unit).sum(1)  # [U]
        most = np.zeros(int(self.lengths.max(initial=0)) + 1, np.int64)  # of a unit of each length
        np.maximum.at(most, self.lengths, units)
        counts = np.append(0, np.cumsum(most[self.lengths[self.rows.pair]]))
        return int(np.diff(counts[self.rows.bounds]).max(initial=0))


class TaskCorpus(Corpus):
    """One split of prepared examples in rows of T tokens.

    A batch says in `extra["scored"]` [B x N / B] at which of its places there are targets, as many in every
    batch; and in `extra[NAME]` [B, M] the named places (counted in the row) and numbers of its examples,
    -1 where there are none.  `refer` hands over figures that come with the examples from then on, as
    `extra["reference"]` [B, M] in float32.
    """

    def __init__(
        self,
        prepared: Path,
        split: str,
        row_tokens: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        *,
        pad_id: int,
    ) -> None:
        """Plan the rows of `prepared`/`split`; raises DataError if there is nothing to read."""
        self.name, self.prepared, self.split = f"{prepared}/{split}", prepared, split
        self.row_tokens, self.seed, self.pad_id = row_tokens, seed, pad_id
        plans = prepared.with_name(prepared.name + "-rows")
        tables = open_tables(prepared / split)
        self.task_streams = [self.stream(name, table, plans) for name, table in tables.items()]
        self.orders: dict[int, tuple[int, Integers]] = {}  # of each source: the last epoch asked for
        self.references: NDArray[np.float32] | None = None
        ends = np.cumsum([stream.table.num_examples for stream in self.task_streams]).tolist()
        self.first = dict(zip(tables, [0, *ends], strict=False))  # the number of each source's first example
        self.num_examples = ends[-1]
        self.num_rows = sum(stream.rows.num_rows for stream in self.task_streams)
        self.num_tokens = sum(int(stream.lengths.sum()) for stream in self.task_streams)
        self.num_bytes = sum(stream.table.num_bytes for stream in self.task_streams)
        if not self.num_rows:
            raise DataError(f"{self.name}: holds no examples; give more or a larger share in data.split")
        sizes = [stream.rows.num_rows for stream in self.task_streams]
        self.once: Order = Shuffled(sizes, seed)
        self.order = self.once if weights is None else Mixture(sizes, self.row_weights(weights), seed)

    def stream(self, name: str, table: Table, plans: Path) -> TaskStream:
        """One source with the plan of its rows; `plans` is where a long plan is kept."""
        lengths = table.lengths.reshape(-1, table.per_unit).sum(1)
        row = self.row_tokens, self.row_tokens
        return TaskStream(name, table, planned(lengths, lengths, row, plans), lengths)

    @property
    def num_units(self) -> int:
        """Units in all sources: what an epoch reads."""
        return sum(stream.table.num_units for stream in self.task_streams)

    @cached_property
    def num_supervised(self) -> int:
        """Targets in all sources."""
        return sum(int(stream.table.num_supervised.sum()) for stream in self.task_streams)

    @cached_property
    def most_supervised(self) -> int:
        """N / B."""
        return max(1, *(stream.most_supervised for stream in self.task_streams))

    @cached_property
    def most_examples(self) -> int:
        """M."""
        return max(1, *(stream.most_examples for stream in self.task_streams))

    @property
    def head_share(self) -> float:
        """Share of the places in a row for which the model's head is asked."""
        return self.most_supervised / self.row_tokens

    @property
    def packed(self) -> bool:
        """Batches always come with segments."""
        return True

    def row_weights(self, weights: Mapping[str, float]) -> list[Fraction]:
        """Each source's share of rows for its share of tokens."""
        names = [stream.name for stream in self.task_streams]
        if set(weights) != set(names):
            raise DataError(
                f"{self.name}: weights are for {', '.join(weights)}, but there are examples of"
                f" {', '.join(names)}; weigh these and no others"
            )
        return [
            Fraction(weights[s.name]) * s.rows.num_rows / max(int(s.lengths.sum()), 1)
            for s in self.task_streams
        ]

    def check(self, rows: int, micro_rows: int, world_size: int) -> None:
        """Refuse a step that cannot be cut evenly, or that an epoch cannot fill."""
        self.check_cut(rows, micro_rows, world_size)
        if self.num_rows < rows:
            raise DataError(
                f"{self.name}: the examples make {self.num_rows:,} rows of {self.row_tokens:,} tokens, fewer"
                f" than the {rows:,} of one step; write train.batch_tokens={self.num_rows * self.row_tokens}"
                " or less, or give more examples"
            )

    def read(self, order: Order, numbers: Integers, num_rows: int | None = None) -> Batch:
        """Rows [B] of `order` as a batch, with empty rows below up to `num_rows`."""
        return self.drafted(order, numbers, num_rows or len(numbers)).batch()

    def drafted(self, order: Order, numbers: Integers, num_rows: int) -> "Draft":
        """Rows of `order`, filled."""
        draft = Draft(self, num_rows)
        places = zip(*(found.tolist() for found in order.locate(numbers)), strict=True)
        for b, ((source, row), epoch) in enumerate(zip(places, order.epochs(numbers).tolist(), strict=True)):
            stream = self.task_streams[source]
            for unit in self.shuffled(source, epoch)[stream.rows.span(row)].tolist():
                for number in range(unit * stream.table.per_unit, (unit + 1) * stream.table.per_unit):
                    draft.put(b, stream, number)
        return draft

    def refer(self, references: NDArray[np.float32]) -> None:
        """Let figures of all examples [E], source after source, come with them."""
        assert references.shape == (self.num_examples,)
        self.references = references

    def numbered(
        self, micro_rows: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Integers, Batch]]:
        """`sweep` of everything, each batch after the numbers [B, M] of its examples, -1 for none."""
        together = micro_rows * world_size
        for start in range(0, self.num_rows, together):
            numbers = np.arange(start, min(start + together, self.num_rows))[rank * micro_rows :][:micro_rows]
            draft = self.drafted(self.once, numbers, micro_rows)
            yield draft.numbers, draft.batch()

    def shuffled(self, source: int, epoch: int) -> Integers:
        """[U]: which unit stands in each place of a source's rows in this epoch; the last answer is kept."""
        if self.orders.get(source, (-1,))[0] != epoch:
            stream = self.task_streams[source]
            key, units = f"{self.seed} {source} {epoch}", stream.rows.pair
            self.orders[source] = epoch, among_equals(units, stream.lengths[units], key)
        return self.orders[source][1]

    def column_names(self) -> list[str]:
        """The named places and numbers of examples."""
        return sorted({name for stream in self.task_streams for name in stream.table.columns})


class Draft:
    """A batch in the making: rows that are filled from the left."""

    def __init__(self, corpus: TaskCorpus, num_rows: int) -> None:
        shape = num_rows, corpus.row_tokens
        self.corpus, self.shape = corpus, shape
        self.places = Places(*shape, corpus.pad_id)
        self.targets, self.types = np.full(shape, IGNORE, np.int64), np.zeros(shape, np.int64)
        self.counts = [0] * num_rows
        own = num_rows, corpus.most_examples
        self.columns = {name: np.full(own, -1, np.int64) for name in corpus.column_names()}
        self.numbers = np.full(own, -1, np.int64)
        self.names = dict[str, None]()

    def put(self, row: int, stream: TaskStream, number: int) -> None:
        """Append an example to a row."""
        tokens, targets, types = stream.table.example(number)
        at = self.counts[row]
        self.counts[row] += 1
        span = self.places.put(row, at + 1, tokens)
        self.targets[row, span], self.types[row, span] = targets, types
        for name, column in self.columns.items():
            value = int(stream.table.columns[name][number]) if name in stream.table.columns else -1
            column[row, at] = value + span.start if name.startswith(PLACE) and value >= 0 else value
        self.numbers[row, at] = self.corpus.first[stream.name] + number
        self.names[stream.table.name(number)] = None

    def scored(self) -> Integers:
        """[B x N / B] places b x T + t with targets, those of a row made up to N / B by one without."""
        most = self.corpus.most_supervised
        found = np.stack([filled(np.flatnonzero(row != IGNORE), row, most) for row in self.targets])
        return (found + np.arange(self.shape[0])[:, None] * self.shape[1]).reshape(-1)

    def batch(self) -> Batch:
        """What was put."""
        extra = {"scored": torch.from_numpy(self.scored())}
        extra |= {
            name.removeprefix(PLACE).removeprefix(VALUE): torch.from_numpy(column)
            for name, column in self.columns.items()
        }
        if any(stream.table.typed for stream in self.corpus.task_streams):
            extra[TYPES] = torch.from_numpy(self.types)
        if (known := self.corpus.references) is not None:
            figures = np.where(self.numbers >= 0, known[self.numbers], 0).astype(np.float32)
            extra["reference"] = torch.from_numpy(figures)
        return Batch(
            torch.from_numpy(self.places.tokens),
            torch.from_numpy(self.targets),
            torch.from_numpy(self.places.segments),
            torch.from_numpy(self.places.positions),
            tuple(self.names),
            extra,
        )
