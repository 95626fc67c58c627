"""What a teacher said, found again: by what stands around a place.

A piece (a text, or the part of one that a row holds) is known by the digest of its tokens, targets and
source.  So it does not matter which row a piece is in, in which order and epoch rows come, how many processes
share them, or whose student it is.
Letters in shapes: B rows, T places, P pieces, K tokens kept of a place, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from hasten.core.batch import IGNORE, TYPES, Batch
from hasten.core.errors import DataError
from hasten.objective.distilled import ENTROPY, LOGITS, TOKENS, WEIGHTS
from hasten.train.spoken_file import Form, Said, SpokenFile

Arrays = dict[str, NDArray[Any]]


class Piece(NamedTuple):
    """A text in a row of a batch: what it is known by, its row, its places [n] with a target."""

    key: int
    row: int
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Which pieces are known, and where they lie."""

    files: list[SpokenFile]
    keys: NDArray[np.uint64]  # [P] rising
    file: NDArray[np.int64]  # [P]
    number: NDArray[np.int64]  # [P] in its file

    @classmethod
    def of(cls, files: list[SpokenFile]) -> "Pieces":
        """Those of all files."""
        sizes = [len(file.keys) for file in files]
        keys = np.concatenate([np.empty(0, np.uint64), *(file.keys for file in files)])
        order = np.argsort(keys, kind="stable")
        number = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])
        return cls(files, keys[order], np.repeat(np.arange(len(files)), sizes)[order], number[order])

    def said(self, piece: Piece) -> Said | None:
        """What the teacher says in a piece, None where it is not known."""
        at = int(np.searchsorted(self.keys, np.uint64(piece.key)))
        if at == len(self.keys) or int(self.keys[at]) != piece.key:
            return None
        said = self.files[int(self.file[at])].said(int(self.number[at]))
        return said if len(said.sizes) == len(piece.places) else None


class Spoken:
    """What a teacher said, put beside the batches that it was said of."""

    def __init__(self, folder: Path, form: Form) -> None:
        self.folder, self.form = folder, form
        self.pieces = Pieces.of([SpokenFile(path, form) for path in files_in(folder)])

    def __call__(self, batch: Batch) -> Batch:
        """The batch with a teacher's tokens, weights [B, T, K] and entropies [B, T], or logits [B, T, V]."""
        out = self.empty(batch)
        for piece in pieces_of(batch):
            said = self.pieces.said(piece)
            if said is None:
                raise DataError(
                    f"{self.folder}: does not hold what the teacher says of {documents(batch)}; start"
                    " the training again with another `output`"
                )
            put(out, piece, said)
        extra = {name: torch.from_numpy(array) for name, array in out.items()}
        return replace(batch, extra={**batch.extra, **extra})

    def empty(self, batch: Batch) -> Arrays:
        """Nothing said at any place."""
        shape = tuple(batch.tokens.shape)
        if self.form.most is None:
            return {LOGITS: np.zeros((*shape, self.form.vocab_size), np.float32)}
        kept = (*shape, self.form.most)
        return {
            TOKENS: np.zeros(kept, np.int32),
            WEIGHTS: np.zeros(kept, np.float32),
            ENTROPY: np.zeros(shape, np.float32),
        }


def put(out: Mapping[str, NDArray[Any]], piece: Piece, said: Said) -> None:
    """Write what is said in a piece to its places."""
    if said.logits is not None:
        out[LOGITS][piece.row, piece.places] = said.logits
        return
    places = np.repeat(piece.places, said.sizes)
    ends = np.cumsum(said.sizes)
    column = np.arange(len(said.tokens)) - np.repeat(ends - said.sizes, said.sizes)
    out[TOKENS][piece.row, places, column] = said.tokens
    out[WEIGHTS][piece.row, places, column] = said.weights
    out[ENTROPY][piece.row, piece.places] = said.entropy


def pieces_of(batch: Batch) -> Iterator[Piece]:
    """The texts of a batch that have targets."""
    tokens, targets = batch.tokens.numpy(), batch.targets.numpy()
    segments = np.ones_like(tokens) if batch.segments is None else batch.segments.numpy()
    beside = {name: batch.extra[name].numpy() for name in (TYPES, "source") if name in batch.extra}
    given = batch.extra.get("source_segments")
    for row in range(len(tokens)):
        for number in range(1, int(segments[row].max(initial=0)) + 1):
            span = np.flatnonzero(segments[row] == number)
            places = span[targets[row, span] != IGNORE]
            if not len(places):
                continue
            digest = xxhash.xxh3_64()
            for values in (tokens, targets, *([beside[TYPES]] if TYPES in beside else [])):
                digest.update(values[row, span].tobytes())
            if "source" in beside:
                read = slice(None) if given is None else given[row].numpy() == number
                digest.update(beside["source"][row, read].tobytes())
            yield Piece(digest.intdigest(), row, places)


def documents(batch: Batch) -> str:
    """What a batch holds, in words."""
    return ", ".join(batch.documents[:3]) + (" ..." if len(batch.documents) > 3 else "")


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that hold pieces."""
    return sorted(folder.glob("block-*.safetensors"))
