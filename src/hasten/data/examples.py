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
