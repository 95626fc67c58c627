"""What a classifier took for what, as a heat map that follows the page: SVG below, words above (`chart.py`).

A cell's shade is its share of the row, so that rare classes show as well as frequent ones.
Letters in shapes: C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 20
"""Classes with a row of their own; of more, those with the fewest examples share the last one."""
NAMED = 6
"""Columns with their names written out; more have numbers, which stand before the names of the rows."""
STRONG = 0.6
"""Of a full shade: from here on words stand out in the colour of the paper."""


@dataclass(frozen=True)
class Cell:
    """`count` examples of the class in row `y` that were taken for that in column `x`; `share` of the row."""

    x: int
    y: int
    count: int
    share: float

    @property
    def right(self) -> bool:
        """Whether this is what was to be said."""
        return self.x == self.y

    @property
    def strong(self) -> bool:
        """Whether the shade is nearer to its colour than to the paper."""
        return self.share >= STRONG


@dataclass(frozen=True)
class Confusion:
    """A heat map; a name is None for the classes that share a row."""

    names: list[str | None]
    cells: list[Cell]

    @property
    def size(self) -> int:
        """Rows, and columns."""
        return len(self.names)

    @property
    def numbered(self) -> bool:
        """Whether columns have numbers for names."""
        return self.size > NAMED


def make_confusion(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> Confusion:
    """The heat map of counts [C][C], true classes down and predicted ones across."""
    counts = np.array(matrix, np.int64)
    shown: list[str | None] = list(names)
    if len(names) > MOST:
        shown, counts = gathered(names, counts)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = counts / totals
    cells = [
        Cell(x, y, int(counts[y, x]), float(shares[y, x]))
        for y in range(len(shown))
        for x in range(len(shown))
    ]
    return Confusion(shown, cells)


def gathered(names: Sequence[str], counts: np.ndarray) -> tuple[list[str | None], np.ndarray]:
    """The classes with most examples, in their order, and one row and column for all others."""
    largest = np.argsort(-counts.sum(axis=1), kind="stable")[: MOST - 1]
    kept = np.sort(largest)
    place = np.full(len(names), MOST - 1)
    place[kept] = np.arange(MOST - 1)
    summed = np.zeros((MOST, MOST), np.int64)
    np.add.at(summed, (place[:, None], place[None, :]), counts)
    return [*(names[number] for number in kept.tolist()), None], summed
