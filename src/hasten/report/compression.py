"""What each model of a chain is worth beside the original, as a table and as a picture.

The picture follows the page as curves do (`chart.py`): strokes in SVG, words beside it, placed in percent.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hasten.report.chart import HEIGHT, TALL_TICKS, WIDTH, Scale, Tick, ticks
from hasten.report.compression_records import CompressedModel, Compression, Estimate, Quality
from hasten.report.figures import compact, percent, significant, size

ABSENT = "–"
ROOM = 0.12
"""Of the range of qualities is left free above and below."""
QUALITIES = {
    "bits_per_byte": "bits_per_byte",
    "loss": "target_loss",
    "accuracy": "share_right",
    "f1": "f1",
    "preference_accuracy": "preference_score",
}
"""The words of the figure that a model is judged by."""
BESIDE, APART = 0.25, 0.065
"""Names nearer to each other than this across stand so far apart in height."""
RIGHT = 0.72
"""A label of a point beyond this share of the width stands left of it."""


def interval(found: Estimate | None, digits: int, sign: str = "") -> str:
    """`1.93 ± 0.05`."""
    if found is None:
        return ABSENT
    beside = "" if found.interval is None else f" ± {found.interval:.{digits}f}"
    return f"{found.value:{sign}.{digits}f}{beside}"


def share(found: Estimate | None) -> str:
    """`93.1% ± 0.4%`."""
    if found is None:
        return ABSENT
    return percent(found.value) + ("" if found.interval is None else f" ± {percent(found.interval)}")


Cell = Callable[[CompressedModel], str]
ROWS: tuple[tuple[str, Cell], ...] = (
    ("bytes_on_disk", lambda model: size(model.bytes)),
    ("parameter_count", lambda model: compact(model.parameters)),
    ("zeros", lambda model: percent(model.zeros) if model.zeros > 0.01 else ABSENT),
    ("process_peak", lambda model: size(model.memory.peak) if model.memory else ABSENT),
    (
        "memory_for_it",
        lambda model: size(model.memory.peak - model.memory.before) if model.memory else ABSENT,
    ),
    ("reads_prompt", lambda model: f"{1000 * model.speed.read_seconds:,.2f} ms" if model.speed else ABSENT),
    ("reads_faster", lambda model: interval(model.reading_speedup, 2)),
    ("writes", lambda model: significant(model.speed.per_second) if model.speed else ABSENT),
    ("writes_faster", lambda model: interval(model.speedup, 2)),
    ("quality", lambda model: interval(model.quality.score, 4) if model.quality else ABSENT),
    ("change", lambda model: interval(model.quality.change, 4, "+") if model.quality else ABSENT),
    ("quality_kept", lambda model: percent(model.quality.kept) if model.quality else ABSENT),
    ("same_choice", lambda model: share(model.agreement.same if model.agreement else None)),
    ("kl", lambda model: interval(model.agreement.kl if model.agreement else None, 4)),
)
"""The key of a figure's words, and how it is written of a model."""


def compression_rows(found: Compression) -> list[tuple[str, list[str]]]:
    """The lines of the table that some model has a figure for: key of the words, and cells."""
    names = {"quality": QUALITIES.get(name_of(found), "quality_kept")}
    if any(model.speed and model.speed.unit == "examples" for model in found.models):
        names["writes"] = "examples_per_second"
    lines = [(names.get(key, key), [cell(model) for model in found.models]) for key, cell in ROWS]
    return [(key, cells) for key, cells in lines if any(cell != ABSENT for cell in cells)]


def name_of(found: Compression) -> str:
    """The figure that models are judged by; empty where none was."""
    return next((model.quality.name for model in found.models if model.quality), "")


@dataclass(frozen=True)
class Point:
    """A model in the picture: its place and its name's height, from 0 to 1, and its interval's stroke."""

    name: str
    x: float
    y: float
    label: float
    bar: str
    words: str

    @property
    def left(self) -> bool:
        """Whether its name stands left of it."""
        return self.x > RIGHT


@dataclass(frozen=True)
class Picture:
    """Quality against size; `figure` is the key of the words of what is up."""

    figure: str
    better: str
    points: list[Point]
    line: str
    dots: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def make_picture(found: Compression) -> Picture | None:
    """The picture of a chain; None where nothing was judged."""
    judged = [(model, model.quality) for model in found.models if model.quality]
    if len(judged) < 2:
        return None
    x = Scale(0.0, 1.08 * max(model.bytes for model, _ in judged))
    y = quality_range([quality for _, quality in judged])
    points = spread([point(model, quality, x, y) for model, quality in judged])
    corners = [f"{WIDTH * p.x:.1f} {HEIGHT * (1 - p.y):.1f}" for p in points]
    return Picture(
        figure=QUALITIES.get(judged[0][1].name, "quality_kept"),
        better="higher_better" if judged[0][1].higher_is_better else "lower_better",
        points=points,
        line="M" + "L".join(corners),
        dots="".join(f"M{corner}h0" for corner in corners),
        x_ticks=ticks(x, lambda value, digits: size(value) if value else "0", TALL_TICKS),
        y_ticks=ticks(y, significant, TALL_TICKS),
    )


def quality_range(found: list[Quality]) -> Scale:
    """All scores with the intervals of their changes, and some room."""
    low = min(quality.score.value - half_of(quality) for quality in found)
    high = max(quality.score.value + half_of(quality) for quality in found)
    room = ROOM * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room)


def half_of(quality: Quality) -> float:
    """Half of the interval of the paired change from the original, which has none itself."""
    return (quality.change.interval if quality.change else None) or 0.0


def point(model: CompressedModel, quality: Quality, x: Scale, y: Scale) -> Point:
    """One model."""
    score, half = quality.score.value, half_of(quality)
    (at,) = x.place(np.array([float(model.bytes)])).tolist()
    low, middle, high = y.place(np.array([score - half, score, score + half])).tolist()
    bar = f"M{WIDTH * at:.1f} {HEIGHT * (1 - low):.1f}V{HEIGHT * (1 - high):.1f}"
    words = f"{model.name}: {size(model.bytes)}, {quality.score.value:.4f} ± {half:.4f}"
    return Point(model.name, at, middle, middle, bar, words)


def spread(points: list[Point]) -> list[Point]:
    """The same with names that would lie on each other moved up."""
    labels: dict[int, float] = {}
    for number in sorted(range(len(points)), key=lambda n: points[n].y):
        near = [labels[n] for n in labels if abs(points[n].x - points[number].x) < BESIDE]
        labels[number] = max([points[number].y, *(label + APART for label in near)])
    return [replace(each, label=labels[number]) for number, each in enumerate(points)]
