"""A batch's tokens divided over the processes of `context`.

Every process has the whole batch and keeps its two pieces of each row, which `zigzag.py` assigns.  A row that
does not divide is filled up with places that no other looks at and that have no target.

Letters in shapes: B rows, T tokens, S tokens of a source, L tokens of a piece.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.core.batch import IGNORE, SOURCE, Batch
from hasten.core.errors import ConfigError
from hasten.model.position import counted
from hasten.parallel.zigzag import piece_length, pieces


def split_batch(batch: Batch, place: int, degree: int) -> Batch:
    """What process `place` of `degree` has of a batch, positions written out: [B, T] -> [B, T / degree].

    T is rounded up to a multiple of 2 x degree.  In `extra`, a source is divided in the same way, `scored`
    numbers the places of this part, every other tensor [B, T, ...] is divided and the rest stays as it is.
    Raises ConfigError for a source that has to be filled up and has no segments where the targets have.
    """
    if degree == 1:
        return batch
    length = batch.tokens.shape[1]
    segments = numbered(batch.segments, batch.tokens, degree)
    # What fills a row up is at 0: later positions may be beyond a table of learned ones.
    positions = counted(batch.positions, batch.tokens).expand_as(batch.tokens)
    targets = own(batch.targets, place, degree, IGNORE)
    rest = {name: x for name, x in batch.extra.items() if name not in (*SOURCE, "scored")}
    extra = {
        name: own(x, place, degree) if x.shape[:2] == batch.tokens.shape else x for name, x in rest.items()
    }
    if (scored := batch.extra.get("scored")) is not None:
        extra["scored"] = own_scored(scored, targets, length, place, degree)
    return replace(
        batch,
        tokens=own(batch.tokens, place, degree),
        targets=targets,
        segments=None if segments is None else own(segments, place, degree),
        positions=own(positions, place, degree),
        extra={**extra, **own_source(batch, place, degree)},
    )


def own(x: Tensor, place: int, degree: int, filling: int = 0) -> Tensor:
    """The two pieces of each row, next to each other: [B, T, ...] -> [B, 2 L, ...]."""
    missing = 2 * degree * piece_length(x.shape[1], degree) - x.shape[1]
    if missing:
        x = F.pad(x, (*[0, 0] * (x.dim() - 2), 0, missing), value=filling)
    cut = x.chunk(2 * degree, dim=1)
    return torch.cat([cut[piece] for piece in pieces(place, degree)], dim=1)


def numbered(segments: Tensor | None, tokens: Tensor, degree: int) -> Tensor | None:
    """Segments [B, T], with which no one sees what fills a row up; None where nothing does."""
    if segments is None and tokens.shape[1] % (2 * degree):
        return torch.ones_like(tokens)
    return segments


def own_source(batch: Batch, place: int, degree: int) -> dict[str, Tensor]:
    """A source with its segments and positions, [B, S] each."""
    source = batch.extra.get("source")
    if source is None:
        return {}
    given = batch.extra.get("source_segments")
    segments = numbered(given, source, degree)
    if given is None and segments is not None and batch.segments is not None:
        raise ConfigError(
            f"a source of {source.shape[1]:,} tokens does not divide into {2 * degree} pieces, and cannot be"
            " filled up where the targets have segments and it has none; give it source_segments, or write"
            f" data.source_row_tokens as a multiple of {2 * degree}"
        )
    positions = counted(batch.extra.get("source_positions"), source).expand_as(source)
    found = {"source": source, "source_segments": segments, "source_positions": positions}
    return {name: own(x, place, degree) for name, x in found.items() if x is not None}


def own_scored(scored: Tensor, targets: Tensor, length: int, place: int, degree: int) -> Tensor:
    """Of the places b T + t those in this part, as places of its rows; `targets` [B, 2 L] are this part's.

    Where there is none, it is one without a target, so that no loss is over an empty tensor.
    """
    row, at = scored // length, scored % length
    size = piece_length(length, degree)
    early, late = pieces(place, degree)
    in_late = at // size == late
    here = row * 2 * size + at % size + size * in_late
    found = here[in_late | (at // size == early)]
    return found if len(found) else (targets == IGNORE).flatten().to(torch.uint8).argmax()[None]
