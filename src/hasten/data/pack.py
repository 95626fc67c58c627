"""Documents to rows: which piece of which document fills which row.

Letters: D documents, P pieces, R rows, T targets that a row holds (`row_tokens`).

A document is cut into pieces of T; what is left of it shares a row with what is left of others, by best
fit with the longest first (Johnson 1974).  Only lengths matter, so all pieces of one length are placed at
once, as in the histogram packing of Krell et al. 2021 (arXiv:2107.02027): the time grows with the number
of different lengths rather than of pieces.  Where whole pieces would leave rows too empty (think of documents
of 0.6 T each), the emptiest rows are cut up to fill the gaps of the others.

Nothing is dropped and nothing comes twice: an epoch holds every target exactly once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hasten.core.errors import DataError
from hasten.core.files import publish, read_manifest

Integers = NDArray[np.int64]

UTILISATION = 0.99
"""Rows are cut up only as far as this share of all places asks for."""
WINDOW_PIECES = 1 << 20
"""Pieces packed at a time, about: memory grows with this, the quality of the fit hardly."""
PACKING_VERSION = 1

COLUMNS = {"document": "<i8", "start": "<i8", "length": "<i4", "bounds": "<i8"}


@dataclass(frozen=True)
class Rows:
    """R rows made of P pieces: row r holds the pieces bounds[r] to bounds[r + 1], from left to right.

    A piece is `length` targets of a document from its `start`-th on.  The arrays may be memory maps.
    """

    row_tokens: int
    document: NDArray[Any]  # [P] int64
    start: NDArray[Any]  # [P] int64
    length: NDArray[Any]  # [P] int32
    bounds: NDArray[Any]  # [R + 1] int64

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.bounds) - 1

    @cached_property
    def num_targets(self) -> int:
        """Targets in all rows."""
        return int(self.length.sum(dtype=np.int64))

    @property
    def utilisation(self) -> float:
        """Share of the R x T places that hold a target; the rest is padding."""
        return self.num_targets / max(self.num_rows * self.row_tokens, 1)

    def pieces(self, row: int) -> Iterator[tuple[int, int, int]]:
        """(document, start, length) of each piece in a row."""
        span = slice(int(self.bounds[row]), int(self.bounds[row + 1]))
        columns = (self.document[span], self.start[span], self.length[span])
        return zip(*(column.tolist() for column in columns), strict=True)


def pack(lengths: NDArray[Any], row_tokens: int) -> Rows:
    """Rows of at most `row_tokens` targets for documents of `lengths` [D] targets, in memory."""
    windows = list(pack_windows(lengths, row_tokens))
    columns = {
        name: np.concatenate([np.empty(0, dtype), *(getattr(window, name) for window in windows)])
        for name, dtype in COLUMNS.items()
        if name != "bounds"
    }
    sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(window.bounds) for window in windows)])
    return Rows(row_tokens, bounds=np.cumsum(sizes), **columns)


def pack_windows(lengths: NDArray[Any], row_tokens: int) -> Iterator[Rows]:
    """`pack` a window of documents after the other; rows never reach across two windows."""
    assert row_tokens > 0
    lengths = np.asarray(lengths, np.int64)
    assert (lengths >= 0).all()
    pieces = np.cumsum(lengths // row_tokens + 1)  # [D] at most so many up to each document
    marks = np.arange(0, pieces[-1] if len(pieces) else 0, WINDOW_PIECES)
    cuts = np.unique(np.append(np.searchsorted(pieces, marks), len(lengths)))
    for first, stop in pairwise(cuts.tolist()):
        rows = pack_window(lengths[first:stop], row_tokens)
        rows.document[:] += first
        yield rows


def pack_window(lengths: Integers, row_tokens: int) -> Rows:
    """Rows for documents that are packed together."""
    full, rest = np.divmod(lengths, row_tokens)
    whole = np.repeat(np.arange(len(lengths)), full)  # the document of each piece that fills a row alone
    number = np.arange(len(whole)) - np.repeat(np.cumsum(full) - full, full)  # 0, 1, ... in each document
    left = np.flatnonzero(rest)
    pieces = Pieces(
        document=np.concatenate([whole, left]),
        start=np.concatenate([number, full[left]]) * row_tokens,
        length=np.concatenate([np.full(len(whole), row_tokens), rest[left]]),
        row=np.concatenate([np.arange(len(whole)), len(whole) + best_fit(rest[left], row_tokens)]),
    )
    return fill_gaps(pieces, row_tokens).by_row(row_tokens)


@dataclass(frozen=True)
class Pieces:
    """P pieces and the row of each, in any order."""

    document: Integers
    start: Integers
    length: Integers
    row: Integers

    def by_row(self, row_tokens: int) -> Rows:
        """The same, sorted; rows without a piece vanish."""
        order = np.argsort(self.row, kind="stable")
        sizes = np.bincount(self.row)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[sizes > 0])])
        columns = (self.document[order], self.start[order], self.length[order].astype(np.int32))
        return Rows(row_tokens, *columns, bounds=bounds)


def best_fit(sizes: Integers, capacity: int) -> Integers:
    """The bin of each of `sizes` [N], all in 1..capacity: longest first, each into the fullest bin that fits.

    Bins with equal gaps wait together, so one pass of the inner loop fills a whole group with equal sizes.
    """
    bins = np.empty(len(sizes), np.int64)
    waiting = Gaps(capacity)
    order = np.argsort(-sizes, kind="stable")
    cuts = np.flatnonzero(np.diff(sizes[order])) + 1
    for group in np.split(order, cuts) if len(sizes) else ():
        items, size = group, int(sizes[group[0]])
        while len(items):
            gap = waiting.smallest(size) or waiting.open(ceil(len(items) / (capacity // size)))
            each = gap // size  # the fullest bin that fits stays the fullest until nothing more fits
            chosen = waiting.take(gap, ceil(len(items) / each))
            here, items = items[: each * len(chosen)], items[each * len(chosen) :]
            bins[here] = np.repeat(chosen, each)[: len(here)]
            filled, last = divmod(len(here), each)
            waiting.put(gap - each * size, chosen[:filled])
            waiting.put(gap - last * size, chosen[filled:])
    return bins


class Gaps:
    """Open bins in groups of equal gap, with the smallest sufficient gap found in one look at a bit set."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.opened = 0
        self.groups: dict[int, list[Integers]] = {}
        self.present = 0  # bit g says that a bin of gap g waits

    def smallest(self, size: int) -> int | None:
        """The smallest gap of at least `size` that some bin has."""
        fitting = self.present >> size
        return size + (fitting & -fitting).bit_length() - 1 if fitting else None

    def open(self, count: int) -> int:
        """Add `count` empty bins; return their gap."""
        self.put(self.capacity, np.arange(self.opened, self.opened + count))
        self.opened += count
        return self.capacity

    def put(self, gap: int, bins: Integers) -> None:
        """Let `bins` wait with `gap`; full bins never come back."""
        if gap and len(bins):
            self.groups.setdefault(gap, []).append(bins)
            self.present |= 1 << gap

    def take(self, gap: int, most: int) -> Integers:
        """Up to `most` bins of one group."""
        group = self.groups[gap]
        bins = group.pop()
        if len(bins) > most:
            group.append(bins[most:])
        if not group:
            del self.groups[gap]
            self.present &= ~(1 << gap)
        return bins[:most]


def fill_gaps(pieces: Pieces, row_tokens: int) -> Pieces:
    """Cut up the emptiest rows into the gaps of the others until UTILISATION is reached."""
    filled = np.bincount(pieces.row, pieces.length).astype(np.int64)  # [R]
    total = int(filled.sum())
    keep = max(floor(total / (UTILISATION * row_tokens)), ceil(total / row_tokens))
    if keep >= len(filled):
        return pieces
    fullest = np.argsort(-filled, kind="stable")
    goes = np.zeros(len(filled), bool)
    goes[fullest[keep:]] = True
    moved = goes[pieces.row]
    # The widest gaps come first, so that pieces are cut as seldom as may be.
    hosts = fullest[:keep][::-1]
    new = overlay(pieces, np.flatnonzero(moved), hosts, row_tokens - filled[hosts])
    columns = ("document", "start", "length", "row")
    return Pieces(*(np.concatenate([getattr(pieces, c)[~moved], getattr(new, c)]) for c in columns))


def overlay(pieces: Pieces, moved: Integers, hosts: Integers, gaps: Integers) -> Pieces:
    """Lay the `moved` pieces end to end over the `gaps` of the rows `hosts`, cut where either ends."""
    piece_ends, gap_ends = np.cumsum(pieces.length[moved]), np.cumsum(gaps)
    ends = np.union1d(piece_ends, gap_ends[gap_ends < piece_ends[-1]])
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    which = np.searchsorted(piece_ends, starts, side="right")
    source = moved[which]
    offset = starts - (piece_ends[which] - pieces.length[source])
    return Pieces(
        document=pieces.document[source],
        start=pieces.start[source] + offset,
        length=ends - starts,
        row=hosts[np.searchsorted(gap_ends, starts, side="right")],
    )


def pack_on_disk(lengths: NDArray[Any], row_tokens: int, folder: Path) -> Rows:
    """`pack`, but kept in files below `folder` and read from there the next time; memory holds one window."""
    digest = xxhash.xxh64_hexdigest(np.ascontiguousarray(lengths, "<i8").data)
    final = folder / f"rows-{row_tokens}-{digest}-v{PACKING_VERSION}"
    try:
        if read_manifest(final) is None:
            with publish(final) as temporary:
                write_windows(pack_windows(lengths, row_tokens), temporary)
        return load_rows(final, row_tokens)
    except OSError as error:
        raise DataError(
            f"{final}: the plan of rows cannot be kept there ({error.strerror});"
            " make its folder writable or move the prepared data"
        ) from None


def write_windows(windows: Iterator[Rows], folder: Path) -> None:
    """Append the columns of all windows to one file each."""
    files = {name: (folder / f"{name}.bin").open("wb") for name in COLUMNS}
    try:
        files["bounds"].write(np.zeros(1, COLUMNS["bounds"]).tobytes())
        before = 0
        for window in windows:
            for name, dtype in COLUMNS.items():
                column = getattr(window, name)
                column = column[1:] + before if name == "bounds" else column
                column.astype(dtype).tofile(files[name])
            before += len(window.document)
    finally:
        for file in files.values():
            file.close()


def load_rows(folder: Path, row_tokens: int) -> Rows:
    """What `write_windows` wrote, as memory maps."""
    manifest = read_manifest(folder)
    columns = {}
    for name, dtype in COLUMNS.items():
        file = folder / f"{name}.bin"
        if manifest is None or file.stat().st_size != manifest["files"][file.name][0]:
            raise DataError(f"{folder}: is damaged; remove it and start again, it will be made anew")
        empty = file.stat().st_size == 0  # which the operating system cannot map
        columns[name] = np.empty(0, dtype) if empty else np.asarray(np.memmap(file, dtype, "r"))
    return Rows(row_tokens, **columns)
