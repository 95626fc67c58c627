"""Examples in rows, several to a row, so that a model looks at each of them and at hardly any padding.

Letters in shapes: B rows, T tokens, E examples in a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hasten.core.batch import IGNORE, TYPES, Batch
from hasten.data.examples import Places
from hasten.data.pack import best_fit
from hasten.data.tasks.protocol import Example


@dataclass(frozen=True)
class PackedRows:
    """A batch [B, T], and which examples are where in it."""

    batch: Batch
    numbers: Tensor  # [E] int64, of the examples
    rows: Tensor  # [E] int64
    starts: Tensor  # [E] int64, the place of each example's first token


def packed_rows(
    examples: Sequence[Example], row_tokens: int, batch_tokens: int, pad_id: int
) -> Iterator[PackedRows]:
    """All examples, none longer than `row_tokens`, in batches of about `batch_tokens` places."""
    row_of = best_fit(np.array([len(example.tokens) for example in examples], np.int64), row_tokens)
    order = np.argsort(row_of, kind="stable")
    rows_at_once = max(1, batch_tokens // row_tokens)
    cuts = np.searchsorted(row_of[order], np.arange(rows_at_once, len(examples), rows_at_once))
    for numbers in np.split(order, cuts):
        if len(numbers):
            rows = row_of[numbers] - row_of[numbers[0]]
            yield laid_out([examples[n] for n in numbers.tolist()], numbers, rows, row_tokens, pad_id)


def laid_out(
    examples: Sequence[Example], numbers: np.ndarray, rows: np.ndarray, row_tokens: int, pad_id: int
) -> PackedRows:
    """Examples from left to right in the rows that they were given [E], which are in order."""
    places = Places(int(rows[-1]) + 1, row_tokens, pad_id)
    types, starts, segments = np.zeros_like(places.tokens), [], [0] * len(places.tokens)
    for example, row in zip(examples, rows.tolist(), strict=True):
        segments[row] += 1
        span = places.put(row, segments[row], np.asarray(example.tokens, np.int64))
        starts.append(span.start)
        if example.types is not None:
            types[row, span] = example.types
    typed = any(example.types is not None for example in examples)
    tokens, in_segments, positions = map(torch.from_numpy, (places.tokens, places.segments, places.positions))
    batch = Batch(
        tokens,
        torch.full_like(tokens, IGNORE),
        in_segments,
        positions,
        extra={TYPES: torch.from_numpy(types)} if typed else {},
    )
    return PackedRows(batch, torch.from_numpy(numbers), torch.from_numpy(rows), torch.tensor(starts))
