"""Pieces of documents to what a model sees and what it should say.  Letters: B rows, T tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core.batch import IGNORE, Batch

Ids = NDArray[Any]


def language_model(
    rows: Sequence[Sequence[Ids]], row_tokens: int, pad_id: int, documents: tuple[str, ...] = ()
) -> Batch:
    """Next-token prediction: `rows` of pieces, each [n + 1] ids for n targets, become a Batch [B, T].

    The pieces stand from left to right; what is left of a row is `pad_id` without targets.  Segments and
    positions are there only if some row is not exactly one piece.
    """
    shape = len(rows), row_tokens
    tokens, targets = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE, np.int64)
    segments, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    count = np.arange(row_tokens)
    for b, pieces in enumerate(rows):
        end = 0
        for segment, ids in enumerate(pieces, 1):
            start, end = end, end + len(ids) - 1
            tokens[b, start:end], targets[b, start:end] = ids[:-1], ids[1:]
            segments[b, start:end], positions[b, start:end] = segment, count[: end - start]
    mixed = bool((segments != 1).any())
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        torch.from_numpy(segments) if mixed else None,
        torch.from_numpy(positions) if mixed else None,
        documents,
    )


def pairs(
    rows: Sequence[Sequence[tuple[Ids, Ids]]],
    shape: tuple[int, int],
    start_id: int,
    pad_id: int,
    documents: tuple[str, ...] = (),
) -> Batch:
    """Targets from sources: rows of (source [s], target [t]), each with its end, become a Batch.

    `shape` is (S, T), the places of a row on both sides.
    A target goes in one place later than it is to come out, behind `start_id`.  `extra` has `source`,
    `source_segments` and `source_positions`, [B, S] each; segments number a row's pairs from 1 on both sides.
    """
    source = Places(len(rows), shape[0], pad_id)
    target = Places(len(rows), shape[1], pad_id)
    targets = np.full((len(rows), shape[1]), IGNORE, np.int64)
    for b, row in enumerate(rows):
        for segment, (read, written) in enumerate(row, 1):
            source.put(b, segment, read)
            span = target.put(b, segment, np.concatenate([[start_id], written[:-1]]))
            targets[b, span] = written
    extra = {
        "source": torch.from_numpy(source.tokens),
        "source_segments": torch.from_numpy(source.segments),
        "source_positions": torch.from_numpy(source.positions),
    }
    return Batch(
        torch.from_numpy(target.tokens),
        torch.from_numpy(targets),
        torch.from_numpy(target.segments),
        torch.from_numpy(target.positions),
        documents,
        extra,
    )


class Places:
    """Rows of tokens in the making, filled from the left, with the segment and position of each."""

    def __init__(self, num_rows: int, row_tokens: int, pad_id: int) -> None:
        shape = num_rows, row_tokens
        self.tokens = np.full(shape, pad_id, np.int64)
        self.segments, self.positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.ends = [0] * num_rows

    def put(self, row: int, segment: int, ids: Ids) -> slice:
        """Append `ids` to a row; where they now stand."""
        span = slice(self.ends[row], self.ends[row] + len(ids))
        self.ends[row] = span.stop
        self.tokens[row, span], self.segments[row, span] = ids, segment
        self.positions[row, span] = np.arange(len(ids))
        return span
