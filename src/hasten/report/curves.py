"""From the lines of metrics.jsonl to curves: chosen, smoothed, and thinned to what a screen can show."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.core.errors import DataError
from hasten.report.files import Line, RunFiles

Axis = Literal["step", "tokens", "seconds"]
Style = Literal["line", "faint", "marked"]
AXES: tuple[Axis, ...] = ("step", "tokens", "seconds")
MAX_POINTS = 500
SMOOTHING = 50  # the moving mean spans a fiftieth of the curve


@dataclass(frozen=True)
class Curve:
    """One line in a chart: `y` [n] against each of the axes in `x` [n].

    `series` picks the colour; a faint curve stands behind the smoothed one that the eye should follow, a
    marked one shows each of its few points.
    """

    label: str
    series: int
    style: Style
    x: dict[Axis, NDArray[np.float64]]
    y: NDArray[np.float64]


def read_curve(
    run: RunFiles, kind: str, figure: str, *, label: str, series: int, style: Style
) -> Curve | None:
    """The points of `figure` in lines of `kind`, or None where there are none.

    Lines without the figure, or where it is null (not finite), have no point.  An axis is offered only if
    every point has a place on it.
    """
    lines = [line for line in run.metrics if line.get("kind") == kind]
    points = [(line, value) for line in lines if (value := number(run, line, figure)) is not None]
    if not points:
        return None
    places = {axis: [number(run, line, axis) for line, _ in points] for axis in AXES}
    x = {axis: np.array(values, float) for axis, values in places.items() if None not in values}
    return Curve(label, series, style, x, np.array([value for _, value in points]))


def number(run: RunFiles, line: Line, name: str) -> float | None:
    """A figure of a line; DataError for something that is neither number nor null."""
    value = line.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"{run.folder / 'metrics.jsonl'}: step {line['step']}: {name} should be a number,"
            f" got {str(value)[:40]!r}; remove the line"
        )
    return float(value) if math.isfinite(value) else None


def smoothed(curve: Curve) -> Curve:
    """The moving mean of a curve, centred, its window shorter at both ends."""
    half = len(curve.y) // SMOOTHING // 2
    sums = np.concatenate([[0.0], np.cumsum(curve.y)])
    at = np.arange(len(curve.y))
    reach = np.minimum(half, np.minimum(at, at[::-1]))  # as far to the left as to the right: no lag
    return replace(curve, style="line", y=(sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1))


def thinned(curve: Curve) -> Curve:
    """At most MAX_POINTS points, each the mean of as many neighbours."""
    n = len(curve.y)
    if n <= MAX_POINTS:
        return curve
    starts = np.linspace(0, n, MAX_POINTS, endpoint=False).astype(int)
    sizes = np.diff([*starts, n])
    x = {axis: np.add.reduceat(values, starts) / sizes for axis, values in curve.x.items()}
    return replace(curve, x=x, y=np.add.reduceat(curve.y, starts) / sizes)


def noisy(run: RunFiles, figure: str, *, label: str, series: int, shadow: bool) -> list[Curve]:
    """A training figure that jumps from line to line: its moving mean; with `shadow`, itself behind it."""
    raw = read_curve(run, "train", figure, label=label, series=series, style="faint")
    if raw is None:
        return []
    mean = thinned(smoothed(raw))
    return [thinned(raw), mean] if shadow and len(raw.y) > SMOOTHING else [mean]


def loss_curves(runs: Sequence[RunFiles]) -> list[Curve]:
    """Training and validation loss.  One run: a colour each.  Several: a colour for each run."""
    alone = len(runs) == 1
    curves: list[Curve] = []
    for i, run in enumerate(runs):
        prefix = "" if alone else f"{run.name} · "
        curves += noisy(run, "loss", label=f"{prefix}train", series=i, shadow=alone)
        validation = read_curve(
            run,
            "validation",
            "validation_loss",
            label=f"{prefix}validation",
            series=i + alone,
            style="marked",
        )
        curves += present([validation])
    return curves


def look_curves(runs: Sequence[RunFiles], kind: str, figure: str) -> list[Curve]:
    """One figure of the looks of a kind, a curve for each run."""
    return present(
        read_curve(run, kind, figure, label=run.name, series=i, style="marked") for i, run in enumerate(runs)
    )


def figure_curves(runs: Sequence[RunFiles], figure: str, *, smooth: bool) -> list[Curve]:
    """One figure of the training lines, a curve for each run."""
    curves: list[Curve] = []
    for i, run in enumerate(runs):
        if smooth:
            curves += noisy(run, figure, label=run.name, series=i, shadow=len(runs) == 1)
        else:
            plain = read_curve(run, "train", figure, label=run.name, series=i, style="line")
            curves += map(thinned, present([plain]))
    return curves


def present(curves: Iterable[Curve | None]) -> list[Curve]:
    """Those that exist."""
    return [curve for curve in curves if curve is not None]
