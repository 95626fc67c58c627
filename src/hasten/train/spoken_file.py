"""One file of what a teacher said, memory-mapped: a safetensors file with these arrays, little-endian.

A piece is a text, or the part of one that a row holds; its places are those that have a target.  Letters: P
pieces, N places of all pieces, E tokens kept of all places, V vocabulary.

    keys      [P]      uint64   what a piece is known by
    bounds    [P + 1]  uint64   piece p has the places bounds[p] to bounds[p + 1]
    ends      [P + 1]  uint64   and its tokens are ends[p] to ends[p + 1]
    sizes     [N]      uint16   tokens that are kept of each place
    tokens    [E w]    uint8    their ids, in w bytes each
    counts    [E]      uint8    how often each was drawn
    shares    [E]      uint32   or the probability of each: the bits of a float32
    entropy   [N]      uint32   of the whole distribution, likewise
    logits    [N V]    uint32   where all are kept, in place of the five before: likewise
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.core.errors import DataError
from hasten.data.shards import NOTE, Arrays, bounds, check_bounds, mapped, read_header, write_arrays

Array = NDArray[Any]
U64, U32, U16, U8 = {"U64"}, {"U32"}, {"U16"}, {"U8"}
PLACED: Arrays = {"keys": U64, "bounds": U64}
KEPT: Arrays = {**PLACED, "ends": U64, "sizes": U16, "tokens": U8, "entropy": U32}
SOURCE = "teacher"


@dataclass(frozen=True)
class Form:
    """What is kept of each place."""

    vocab_size: int
    samples: int | None = None  # draws, whose weights are counts
    top: int | None = None  # the likeliest, whose weights are probabilities; neither: all logits

    @property
    def arrays(self) -> Arrays:
        """The arrays of a file."""
        if self.most is None:
            return {**PLACED, "logits": U32}
        return {**KEPT, **({"counts": U8} if self.top is None else {"shares": U32})}

    @property
    def most(self) -> int | None:
        """K: tokens kept of a place at most; None: all logits are."""
        return self.samples if self.top is None else min(self.top, self.vocab_size)

    @property
    def token_bytes(self) -> int:
        """w: what an id takes."""
        return -(-(self.vocab_size - 1).bit_length() // 8) or 1

    @property
    def place_bytes(self) -> int:
        """What a place takes at most: its tokens with their weights, how many they are, the entropy."""
        if self.most is None:
            return 4 * self.vocab_size
        return self.most * (self.token_bytes + (1 if self.top is None else 4)) + 2 + 4


@dataclass(frozen=True)
class Said:
    """What a teacher says at the n places of one piece."""

    sizes: Array  # [n]
    tokens: Array  # [e]
    weights: Array  # [e] float32
    entropy: Array  # [n] float32
    logits: Array | None = None  # [n, V] float32, in place of all others


@dataclass
class SpokenWriter:
    """Pieces in memory on their way to a file."""

    form: Form
    keys: list[int] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    num_places: int = 0

    def add(self, key: int, said: Said) -> None:
        """Append a piece."""
        self.keys.append(key)
        self.said.append(said)
        self.num_places += len(said.sizes)

    def write(self, path: Path) -> None:
        """Make the file appear at `path`, whole."""
        arrays = {
            "keys": np.array(self.keys, "<u8"),
            "bounds": bounds(len(piece.sizes) for piece in self.said),
        }
        note = {"source": SOURCE, "vocab_size": self.form.vocab_size}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, {**arrays, **(self.whole() if self.form.most is None else self.some())}, note)

    def whole(self) -> dict[str, Array]:
        """All logits."""
        rows = [piece.logits.reshape(-1) for piece in self.said if piece.logits is not None]
        return {"logits": bits(np.concatenate(rows))}

    def some(self) -> dict[str, Array]:
        """Tokens and weights."""
        tokens, weights, entropy, sizes = (
            np.concatenate([getattr(piece, name) for piece in self.said])
            for name in ("tokens", "weights", "entropy", "sizes")
        )
        samples = self.form.samples
        kept = (
            {"counts": np.rint(weights * samples).astype("<u1")}
            if self.form.top is None and samples
            else {"shares": bits(weights)}
        )
        return {
            "ends": bounds(len(piece.tokens) for piece in self.said),
            "sizes": sizes.astype("<u2"),
            "tokens": packed(tokens, self.form.token_bytes),
            "entropy": bits(entropy),
            **kept,
        }


class SpokenFile:
    """One file, checked; DataError says what is wrong with it."""

    def __init__(self, path: Path, form: Form) -> None:
        header, start = read_header(path, form.arrays)
        note = header.pop("__metadata__")[NOTE]
        if note.get("vocab_size") != form.vocab_size:
            raise wrong(path, f"it knows {note.get('vocab_size')!r} tokens, not {form.vocab_size:,}")
        arrays = {name: mapped(path, entry, start) for name, entry in header.items()}
        self.path, self.form, self.arrays = path, form, arrays
        self.keys, self.bounds = arrays["keys"], arrays["bounds"]
        self.check()

    def check(self) -> None:
        """Refuse arrays that do not fit together."""
        form, arrays = self.form, self.arrays
        if form.most is None:
            check_bounds(
                self.path, "bounds", self.bounds, len(arrays["logits"]) // form.vocab_size, len(self.keys)
            )
            return
        weights = arrays["counts" if form.top is None else "shares"]
        check_bounds(self.path, "bounds", self.bounds, len(arrays["sizes"]), len(self.keys))
        check_bounds(self.path, "ends", arrays["ends"], len(weights), len(self.keys))
        if len(arrays["tokens"]) != len(weights) * form.token_bytes or len(arrays["entropy"]) != len(
            arrays["sizes"]
        ):
            raise wrong(self.path, "its arrays are not of one length")

    def said(self, piece: int) -> Said:
        """What the teacher says in a piece."""
        places = slice(*map(int, self.bounds[piece : piece + 2]))
        if self.form.most is None:
            size = self.form.vocab_size
            logits = floats(self.arrays["logits"][places.start * size : places.stop * size]).reshape(-1, size)
            nothing = np.empty(0, np.float32)
            return Said(np.zeros(len(logits), np.int64), nothing, nothing, nothing, logits)
        ends = slice(*map(int, self.arrays["ends"][piece : piece + 2]))
        width = self.form.token_bytes
        sizes = self.arrays["sizes"][places].astype(np.int64)
        tokens = unpacked(self.arrays["tokens"][ends.start * width : ends.stop * width], width)
        if int(sizes.sum()) != len(tokens) or int(sizes.max(initial=0)) > self.form.most:
            raise wrong(self.path, f"the sizes of piece {piece} are not those of its tokens")
        if int(tokens.max(initial=0)) >= self.form.vocab_size:
            raise wrong(self.path, f"piece {piece} has a token beyond the vocabulary")
        return Said(sizes, tokens, self.weights(ends), floats(self.arrays["entropy"][places]))

    def weights(self, ends: slice) -> Array:
        """Of some tokens, as float32."""
        if self.form.top is not None:
            return floats(self.arrays["shares"][ends])
        return self.arrays["counts"][ends].astype(np.float32) / np.float32(self.form.samples or 1)


def bits(values: Array) -> Array:
    """The bits of float32 numbers, which the files of ours have no other type for."""
    return np.ascontiguousarray(values, "<f4").view("<u4")


def floats(values: Array) -> Array:
    """The numbers that `bits` were made of."""
    return np.ascontiguousarray(values).view("<f4")


def packed(tokens: Array, width: int) -> Array:
    """Ids [E] as [E width] bytes, the lowest first."""
    whole = np.ascontiguousarray(tokens, "<u4").view("<u1").reshape(-1, 4)
    return np.ascontiguousarray(whole[:, :width]).reshape(-1)


def unpacked(values: Array, width: int) -> Array:
    """[E width] bytes as ids [E]."""
    whole = np.zeros((len(values) // width, 4), "<u1")
    whole[:, :width] = values.reshape(-1, width)
    return whole.reshape(-1).view("<u4").astype(np.int64)


def wrong(path: Path, what: str) -> DataError:
    """The error for a file that is not as it was written."""
    return DataError(f"{path}: is damaged: {what}; delete it, and what it held is asked of the teacher again")
