"""Whether a classifier is as often right as it is sure, as a drawing that follows the page (see `chart.py`).

A bar is as high as the share that is right of those texts of which the model was so sure; on the diagonal
both are equal (DeGroot & Fienberg 1983; Guo et al. 2017, figure 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hasten.report.chart import HEIGHT, WIDTH, Tick
from hasten.report.figures import percent

TICKS = 5
GAP = 0.06
"""Of a bar's width is left free on each side."""


class BinLike(Protocol):
    """What is drawn of a bin: `evaluate/calibration.py` has the words for it."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def examples(self) -> int: ...
    @property
    def confidence(self) -> float | None: ...
    @property
    def accuracy(self) -> float | None: ...


@dataclass(frozen=True)
class Column:
    """A bar in the drawing's coordinates, with what it says in words."""

    x: float
    y: float
    width: float
    height: float
    words: str


@dataclass(frozen=True)
class Reliability:
    """Bars of accuracy, bars of how many texts there were, the diagonal, and the line after tempering."""

    accuracy: list[Column]
    examples: list[Column]
    diagonal: str
    after: str
    after_dots: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def make_reliability(bins: Sequence[BinLike], after: Sequence[BinLike] = ()) -> Reliability | None:
    """The drawing of bins in order, and of the same after tempering; None where all are empty."""
    full = [each for each in bins if each.examples]
    if not full:
        return None
    low = min(each.low for each in (*full, *(each for each in after if each.examples)))
    most = max(each.examples for each in full)
    points = [
        f"{place(each.confidence, low):.1f} {HEIGHT * (1 - each.accuracy):.1f}"
        for each in after
        if each.confidence is not None and each.accuracy is not None
    ]
    return Reliability(
        accuracy=[column(each, each.accuracy or 0.0, low) for each in full],
        examples=[column(each, each.examples / most, low) for each in full],
        diagonal=f"M0 {HEIGHT * (1 - low):.1f}L{WIDTH} 0",
        after="M" + "L".join(points) if points else "",
        after_dots="".join(f"M{point}h0" for point in points),
        x_ticks=even_ticks(low),
        y_ticks=even_ticks(0.0),
    )


def place(confidence: float, low: float) -> float:
    """Where a confidence is across the drawing, which begins at `low`."""
    return WIDTH * (confidence - low) / (1 - low)


def column(each: BinLike, share: float, low: float) -> Column:
    """A bar of a share of the height over its bin."""
    left, right = place(each.low, low), place(each.high, low)
    margin = GAP * (right - left)
    words = f"{percent(each.low)}–{percent(each.high)}: {percent(each.accuracy or 0.0)}, {each.examples:,}"
    return Column(left + margin, HEIGHT * (1 - share), right - left - 2 * margin, HEIGHT * share, words)


def even_ticks(low: float) -> list[Tick]:
    """Evenly spaced shares from `low` to 1."""
    shares = [low + (1 - low) * i / TICKS for i in range(TICKS + 1)]
    return [Tick(i / TICKS, f"{100 * share:.0f}%") for i, share in enumerate(shares)]
