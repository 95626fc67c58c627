"""Pairs to rows: which pairs stand together, so that neither side's row overflows and little stays empty.

Letters: D pairs, R rows, S source tokens and T target tokens that a row holds.

Packing in two dimensions at once, by best fit: a pair goes into the open row that it leaves with the least
room, sources and targets taken together, where a row whose two sides fill up unevenly counts as roomier than
it is.  Long pairs come first, longest first (Johnson 1974); short ones come in a drawn order, so that a row
holds sentences of all lengths, and fill what is left.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from hasten.core.errors import DataError
from hasten.core.files import damage, publish

Integers = NDArray[np.int64]

PACKING_VERSION = 1
KEPT_PAIRS = 1 << 17
"""A plan of more pairs, which takes some 30 microseconds each, is kept on the disk for the next start."""
OPEN_ROWS = 256
"""Rows looked at for each pair; beyond so many the fullest is closed."""
LONG = 4
"""A pair is long where fewer than this many like it fill a row."""
UNEVEN = 1.0
"""What a difference between the shares of room on the two sides counts for, beside the room itself."""


@dataclass(frozen=True)
class PairRows:
    """R rows of pairs: row r holds pair[bounds[r]] to pair[bounds[r + 1]], from left to right."""

    pair: Integers  # [P]
    bounds: Integers  # [R + 1]
    num_sources: int  # source tokens in all rows
    num_targets: int

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.bounds) - 1

    def span(self, row: int) -> slice:
        """Where in `pair` a row's pairs stand."""
        return slice(int(self.bounds[row]), int(self.bounds[row + 1]))


def pack_pairs(sources: Integers, targets: Integers, row: tuple[int, int]) -> PairRows:
    """Rows of at most `row` = (S, T) tokens for pairs of `sources` [D] and `targets` [D], those that fit."""
    pair = np.flatnonzero(fitting(sources, targets, row))
    s, t = sources[pair], targets[pair]
    where = best_fit(s, t, row, reading_order(s, t, row))
    sizes = np.bincount(where, minlength=int(where.max(initial=-1)) + 1)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return PairRows(pair[np.argsort(where, kind="stable")], bounds, int(s.sum()), int(t.sum()))


def planned(sources: Integers, targets: Integers, row: tuple[int, int], folder: Path) -> PairRows:
    """`pack_pairs`, of many pairs found again below `folder` if it was made before."""
    if len(sources) <= KEPT_PAIRS:
        return pack_pairs(sources, targets, row)
    lengths = np.ascontiguousarray(np.stack([sources, targets]), "<i8")
    name = f"pairs-{row[0]}-{row[1]}-{xxhash.xxh64_hexdigest(lengths.data)}-v{PACKING_VERSION}"
    try:
        if damage(folder / name):
            rows = pack_pairs(sources, targets, row)
            with publish(folder / name) as temporary:
                np.save(temporary / "pair.npy", rows.pair)
                np.save(temporary / "bounds.npy", rows.bounds)
        pair, bounds = (np.load(folder / name / f"{part}.npy") for part in ("pair", "bounds"))
    except OSError as error:
        raise DataError(
            f"{folder / name}: the plan of rows cannot be kept there ({error.strerror});"
            " make its folder writable or move the prepared data"
        ) from None
    return PairRows(pair, bounds, int(sources[pair].sum()), int(targets[pair].sum()))


def fitting(sources: Integers, targets: Integers, row: tuple[int, int]) -> NDArray[np.bool_]:
    """[D]: whether a pair fits a row at all."""
    return (sources <= row[0]) & (targets <= row[1])


def reading_order(sources: Integers, targets: Integers, row: tuple[int, int]) -> Integers:
    """[D]: the long pairs by size, then the short ones as drawn, always the same."""
    share = np.maximum(sources / row[0], targets / row[1])
    long = np.flatnonzero(share > 1 / LONG)
    short = np.random.default_rng(0).permutation(np.flatnonzero(share <= 1 / LONG))
    return np.concatenate([long[np.argsort(-share[long], kind="stable")], short])


def best_fit(sources: Integers, targets: Integers, row: tuple[int, int], order: Integers) -> Integers:
    """[D]: the row of each pair, all of which fit, taken in `order` [D]."""
    where = np.empty(len(sources), np.int64)
    rooms = np.empty((2, OPEN_ROWS + 1))  # what is left of each open row, as shares
    names = np.empty(OPEN_ROWS + 1, np.int64)
    count = opened = 0
    sizes = np.stack([sources / row[0], targets / row[1]])  # [2, D]
    least = sizes.min(axis=1) if len(sources) else np.zeros(2)
    for pair in order.tolist():
        size = sizes[:, pair]
        left = rooms[:, :count] - size[:, None]
        score = left.sum(axis=0) + UNEVEN * np.abs(left[0] - left[1])
        score[(left < -1e-12).any(axis=0)] = np.inf
        at = int(score.argmin()) if count else -1
        if at < 0 or score[at] == np.inf:
            at, names[count], rooms[:, count] = count, opened, 1.0
            count, opened = count + 1, opened + 1
        where[pair] = names[at]
        rooms[:, at] -= size
        if (rooms[:, at] < least - 1e-12).any() or count > OPEN_ROWS:
            goes = at if count <= OPEN_ROWS else int(rooms[:, :count].sum(axis=0).argmin())
            count -= 1
            rooms[:, goes], names[goes] = rooms[:, count], names[count]
    return where
