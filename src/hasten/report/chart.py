"""Curves as inline SVG that follows the page: its colours, its width, its fonts.

The drawing stretches with the page while strokes keep their width, and the labels are text of the page
beside it, placed in percent: one picture serves a phone and a wide screen, light and dark, and can be read
aloud and copied.  (A plotting library's SVG scales its letters with the picture and fixes its colours.)
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.report.curves import Axis, Curve
from hasten.report.figures import compact, significant

WIDTH, HEIGHT = 1000, 400  # of the drawing's own coordinates; the page stretches them
TICKS, TALL_TICKS, MANY_TICKS = 5, 8, 5
DIGITS = 3  # of a label, at least
HEADROOM = 0.06  # of the range is left free above and below the curves
Formatter = Callable[[float, int], str]
"""A number with so many significant digits."""


@dataclass(frozen=True)
class Scale:
    """From a figure to its place: 0 at the low end, 1 at the high end."""

    low: float
    high: float
    log: bool = False

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places of `values` [n]."""
        if self.log:
            values, low, high = np.log(values), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return (values - low) / (high - low)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis; `minor` ones are left out where there is little room."""

    place: float
    label: str
    minor: bool = False


@dataclass(frozen=True)
class Stroke:
    """One path of the drawing."""

    path: str
    series: int
    style: str


@dataclass(frozen=True)
class Panel:
    """One drawing: curves over one axis."""

    axis: Axis
    log: bool
    unit: str  # of the axis: a word's key
    strokes: list[Stroke]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    reading: str  # JSON for the pointer: scales and points


@dataclass(frozen=True)
class Chart:
    """A figure against steps, tokens and time, each a panel.  `title`, `unit` and `note` are words' keys."""

    title: str
    unit: str
    curves: list[Curve]
    panels: list[Panel]
    note: str = ""

    @property
    def legend(self) -> list[Curve]:
        """The curves to name: not those that only stand behind another."""
        return [curve for curve in self.curves if curve.style != "faint"]


def make_chart(
    title: str,
    unit: str,
    curves: Sequence[Curve],
    *,
    note: str = "",
    log: bool = False,
    zero: bool = False,
    tall: bool = False,
    label: Formatter = significant,
) -> Chart | None:
    """A chart of `curves`, with logarithmic panels too if `log`, its y axis from 0 if `zero`.

    A `tall` one, as wide as the page, has more ticks.

    None where there is no curve.
    """
    if not curves:
        return None
    axes = [axis for axis in curves[0].x if all(axis in curve.x for curve in curves)]
    kinds = [(axis, wanted) for wanted in ((False, True) if log else (False,)) for axis in axes]
    count = TALL_TICKS if tall else TICKS
    panels = [make_panel(curves, axis, wanted, zero=zero, count=count, label=label) for axis, wanted in kinds]
    return Chart(title, unit, list(curves), panels, note)


def make_panel(
    curves: Sequence[Curve], axis: Axis, log: bool, *, zero: bool, count: int, label: Formatter
) -> Panel:
    """The curves over one axis.  On a logarithmic one, what stands at or before 0 has no place."""
    shown = [(c, c.x[axis], c.y) for c in curves]
    if log:
        shown = [(c, x[x > 0], y[x > 0]) for c, x, y in shown]
    shown = [(c, x, y) for c, x, y in shown if len(y)]
    x_scale = x_range([x for _, x, _ in shown], log)
    y_scale = y_range([y for _, _, y in shown], zero)
    unit, x_ticks = axis_ticks(axis, x_scale, count)
    strokes = [
        stroke
        for curve, x, y in shown
        for stroke in draw(curve, WIDTH * x_scale.place(x), HEIGHT * (1 - y_scale.place(y)))
    ]
    return Panel(
        axis,
        log,
        unit,
        strokes,
        x_ticks,
        ticks(y_scale, label, count),
        reading(shown, x_scale, y_scale, axis),
    )


def x_range(values: Sequence[NDArray[np.float64]], log: bool) -> Scale:
    """From the first point to the last; a linear axis begins at 0."""
    low = min((float(x.min()) for x in values), default=1.0) if log else 0.0
    high = max((float(x.max()) for x in values), default=1.0)
    return Scale(low, high if high > low else low + 1, log)


def y_range(values: Sequence[NDArray[np.float64]], zero: bool) -> Scale:
    """All values with some room around them."""
    low = min((float(y.min()) for y in values), default=0.0)
    high = max((float(y.max()) for y in values), default=1.0)
    if zero:
        low = min(low, 0.0)
    room = HEADROOM * (high - low) or abs(high) * HEADROOM or 1.0
    return Scale(low if zero and low == 0 else low - room, high + room)


def draw(curve: Curve, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[Stroke]:
    """The paths of one curve.  A dot is a line of no length with a round end: stretching keeps it round."""
    corners = [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)]
    line = Stroke("M" + "L".join(corners), curve.series, curve.style)
    dots = Stroke("".join(f"M{corner}h0" for corner in corners), curve.series, "dot")
    if curve.style == "marked":
        return [line, dots]
    return [dots] if len(corners) == 1 else [line]


def nice_step(span: float, count: int) -> float:
    """The round number (1, 2 or 5 times a power of ten) that cuts `span` into about `count` parts."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(n for n in (1, 2, 5, 10) if n * power >= rough * 0.999)


def ticks(scale: Scale, label: Formatter, count: int, *, whole: bool = False) -> list[Tick]:
    """About `count` round places on a linear scale, with as many digits as tell neighbours apart.

    `whole` allows whole numbers only.  Where ticks are many, every second one is minor.
    """
    step = nice_step(scale.high - scale.low, count)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    multiples = range(first, last + 1)
    places = scale.place(np.array([i * step for i in multiples])).tolist()
    largest = max(abs(first), abs(last), 1) * step
    digits = max(math.floor(math.log10(largest) + 1e-9) - math.floor(math.log10(step) + 1e-9) + 1, DIGITS)
    many = len(multiples) > MANY_TICKS
    return [
        Tick(place, label(i * step, digits), minor=many and i % 2 == 1)
        for place, i in zip(places, multiples, strict=True)
    ]


def log_ticks(scale: Scale, label: Formatter) -> list[Tick]:
    """1, 2 and 5 times the powers of ten within a logarithmic scale; over many powers, those alone."""
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    factors = (1, 2, 5) if math.log10(scale.high / scale.low) < 2.5 else (1,)
    found = [(f, f * 10.0**p) for p in powers for f in factors if scale.low <= f * 10.0**p <= scale.high]
    places = scale.place(np.array([number for _, number in found])).tolist() if found else []
    return [
        Tick(p, label(number, DIGITS), minor=f != 1) for p, (f, number) in zip(places, found, strict=True)
    ]


def axis_ticks(axis: Axis, scale: Scale, count: int) -> tuple[str, list[Tick]]:
    """An x axis's unit and ticks: steps, tokens, or the unit of time that gives small numbers."""
    if axis != "seconds":
        return axis, log_ticks(scale, compact) if scale.log else ticks(scale, compact, count, whole=True)
    unit, seconds = next(
        (name, size)
        for name, size in (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
        if scale.high >= 2 * size or size == 1
    )
    in_units = Scale(scale.low / seconds, scale.high / seconds, scale.log)
    return unit, log_ticks(in_units, compact) if scale.log else ticks(in_units, compact, count)


def reading(
    shown: Sequence[tuple[Curve, NDArray[np.float64], NDArray[np.float64]]], x: Scale, y: Scale, axis: Axis
) -> str:
    """What the pointer needs to read values off a panel, as JSON that is safe inside HTML."""
    curves = [
        {
            "label": curve.label,
            "series": curve.series,
            "x": [round(place, 4) for place in x.place(xs).tolist()],
            "at": [float(f"{value:.6g}") for value in xs.tolist()],
            "y": [float(f"{value:.4g}") for value in ys.tolist()],
            "height": [round(place, 4) for place in y.place(ys).tolist()],
        }
        for curve, xs, ys in shown
        if curve.style != "faint"
    ]
    text = json.dumps({"axis": axis, "curves": curves}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
