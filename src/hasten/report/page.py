"""One HTML page about one run or several: it needs nothing but itself.

Styles, pictures and the little script are inside; every text from a run's files is escaped by the template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import Field

from hasten.core.config import Config
from hasten.core.errors import DataError
from hasten.core.files import write_text
from hasten.report import figures
from hasten.report.chart import HEIGHT, WIDTH, Chart, make_chart
from hasten.report.checks import drawn as read_samples
from hasten.report.compression import compression_rows, make_picture
from hasten.report.confusion import Confusion, make_confusion
from hasten.report.curves import AXES, figure_curves, look_curves, loss_curves
from hasten.report.excerpts import marked, shortened
from hasten.report.files import RunFiles, read_runs
from hasten.report.frame import Language, page_environment, render_page, translated
from hasten.report.records import Classification
from hasten.report.reliability import Reliability, make_reliability
from hasten.report.summary import figures_of, rows, title
from hasten.report.tasks import Programs, Supervised, Written
from hasten.report.words import WORDS
from hasten.train.times import PARTS

TIME_WORDS = ("start", "data_wait", "forward_backward", "optimizer", "looks", "checkpoints", "rest")
"""The keys of words for `train.times.PARTS`."""
VERDICTS = ("passed", "failed", "error", "exited", "timeout", "memory", "crashed")
"""What may come of a program, each the key of its words."""
COLOURS = 6  # series colours in style.html; a seventh run begins anew


class ReportConfig(Config):
    """How the page looks when it is opened."""

    lang: Language = Field("en", description="en or zh; the page can be switched")


def write_page(
    folders: Sequence[Path], output: Path | None = None, config: ReportConfig | None = None
) -> Path:
    """Draw `report.html` for the runs in `folders`, by default into the first; return its path.

    Raises DataError for a folder without metrics, or with files that are not as hasten writes them.
    """
    if not folders:
        raise DataError("there is no run to report on; give the folder of one or several runs")
    path = output or folders[0] / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(read_runs(folders), (config or ReportConfig()).lang))
    return path


def render(runs: Sequence[RunFiles], language: Language = "en") -> str:
    """The page as text."""
    summaries = [figures_of(run) for run in runs]
    drawn = charts(runs)
    folder = resources.files("hasten.report")
    environment = page_environment("hasten.report", WORDS)
    environment.globals |= {
        "colours": COLOURS,
        "width": WIDTH,
        "height": HEIGHT,
        "troubled": troubled,
        "time_bars": time_bars,
        "masked_bars": masked_bars,
        "confusion_figure": confusion_figure,
        "reliability_figure": reliability_figure,
        "verdict_bars": verdict_bars,
        "against_base": against_base,
        "read_samples": read_samples,
        "compression_rows": compression_rows,
        "make_picture": make_picture,
        "marked": marked,
        "shortened": shortened,
        "title": title,
    }
    return render_page(
        environment,
        "page.html",
        language,
        styles=[
            folder / "classification.css",
            folder / "tasks.css",
            folder / "compression.css",
            resources.files("hasten.data.tasks") / "samples.css",
        ],
        scripts=[folder / "script.js"],
        runs=runs,
        names=[run.name for run in runs],
        alone=len(runs) == 1,
        summaries=summaries,
        rows=rows(summaries),
        charts=drawn,
        axes=[axis for axis in AXES if all(any(p.axis == axis for p in chart.panels) for chart in drawn)],
        bars=bars(runs),
        against_lzma=against_lzma(summaries[0]),
        differences=differences(runs),
    )


def translate(key: str, *values: str) -> Markup:
    """A word in both languages, of which the page shows one; `values` stand where it has `{}`."""
    return translated(WORDS[key], *values)


def charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Loss, accuracy, learning rate, gradient norm, throughput and MFU, those there are figures for."""
    losses = loss_curves(runs)
    shadowed = any(curve.style == "faint" for curve in losses)
    unit = runs[0].loss_unit if len({run.loss_unit for run in runs}) == 1 else ""
    note = "smoothed" if shadowed else "mean_curve" if len(runs) > 1 else ""
    drawn = [
        make_chart("loss", unit, losses, note=note, log=True, tall=True),
        make_chart(
            "validation_accuracy",
            "",
            look_curves(runs, "validation", "validation_accuracy"),
            label=percents,
        ),
        make_chart("task_score", "of_hundred", look_curves(runs, "score", "score")),
        make_chart("learning_rate", "", figure_curves(runs, "learning_rate", smooth=False), zero=True),
        make_chart("grad_norm", "before_clipping", figure_curves(runs, "grad_norm", smooth=True), zero=True),
        make_chart(
            "throughput",
            "tokens_per_second",
            figure_curves(runs, "tokens_per_second", smooth=True),
            zero=True,
            label=figures.compact,
        ),
        make_chart(
            "mfu",
            "of_peak",
            figure_curves(runs, "mfu", smooth=True),
            zero=True,
            label=percents,
        ),
    ]
    return [chart for chart in drawn if chart is not None]


def percents(share: float, digits: int) -> str:
    """A tick of an axis of shares."""
    return f"{figures.significant(100 * share, digits)}%"


@dataclass(frozen=True)
class Bar:
    """One bar of the comparison: `share` of the widest; a series colours it, None leaves it grey."""

    name: str | Markup
    value: float
    share: float
    series: int | None


def bars(runs: Sequence[RunFiles]) -> list[Bar]:
    """Bits per byte of each run, then of the compressors on the first evaluated run's text."""
    evaluations = [(i, run, run.evaluation) for i, run in enumerate(runs) if run.evaluation]
    found: list[tuple[str | Markup, float, int | None]] = [
        (run.name, evaluation.score.bits_per_byte, i)
        for i, run, evaluation in evaluations
        if evaluation.score
    ]
    if evaluations:
        compressed = sorted(evaluations[0][2].baselines.items(), key=lambda item: item[1].bits_per_byte)
        found += [
            (translate(name) if name in WORDS else name, baseline.bits_per_byte, None)
            for name, baseline in compressed
        ]
    widest = max((value for _, value, _ in found), default=0.0)
    return [Bar(name, value, value / widest if widest > 0 else 0.0, series) for name, value, series in found]


def masked_bars(run: RunFiles, series: int) -> list[Bar]:
    """Shares of hidden tokens found: the model's, then those of guesses, the best first."""
    masked = run.evaluation.masked if run.evaluation else None
    if masked is None:
        return []
    guesses = sorted(masked.baselines.items(), key=lambda item: -item[1])
    named = [(translate(name) if name in WORDS else name, share) for name, share in guesses]
    widest = max(masked.accuracy, *masked.baselines.values(), 1e-9)
    return [
        Bar(run.name, masked.accuracy, masked.accuracy / widest, series),
        *(Bar(name, share, share / widest, None) for name, share in named),
    ]


def confusion_figure(found: Classification) -> Confusion:
    """What a classifier took for what."""
    return make_confusion([each.name for each in found.classes], found.confusion)


def reliability_figure(found: Classification) -> Reliability | None:
    """Whether a classifier is as often right as it is sure, before and after tempering."""
    after = found.tempered.calibration.bins if found.tempered else []
    return make_reliability(found.calibration.bins, after)


def verdict_bars(found: Written) -> list[Bar]:
    """How many programs came to each end, the commonest first; those that passed stand out."""
    counts = found.verdicts if isinstance(found, Programs) else {}
    most = max(counts.values(), default=0)
    return [
        Bar(translate(kind) if kind in VERDICTS else kind, count, count / most, 2 if kind == "passed" else 5)
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
        if count > 0
    ]


def against_base(found: Supervised) -> Markup | str:
    """How the loss compares with that of the model before, as a few words."""
    if found.fall is None:
        return ""
    return translate(
        "less_than_before" if found.fall >= 0 else "more_than_before", figures.percent(abs(found.fall))
    )


def time_bars(times: Mapping[str, float]) -> list[Bar]:
    """Each part of a training's time with its share of the whole; parts that are not ours are passed over."""
    whole = sum(times.values())
    return [
        Bar(translate(key), times[part], times[part] / whole if whole else 0.0, 0)
        for part, key in zip(PARTS, TIME_WORDS, strict=True)
        if part in times
    ]


def against_lzma(summary: dict[str, Any]) -> Markup | str:
    """How a model's bits compare with LZMA's over the whole text, as a few words."""
    if not {"bits_per_byte", "lzma_stream"} <= set(summary) or summary["lzma_stream"] <= 0:
        return ""
    saved = 1 - summary["bits_per_byte"] / summary["lzma_stream"]
    return translate("less_than_lzma" if saved >= 0 else "more_than_lzma", figures.percent(abs(saved)))


def troubled(run: RunFiles) -> bool:
    """Whether there is anything to tell of steps that went wrong."""
    return bool(run.quarantined or (run.training and (run.training.skipped or run.training.rollbacks)))


def differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """The settings in which the recipes of several runs differ: dotted key, and its value in each run."""
    flat = [flatten(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    values = {key: [recipe.get(key, "–") for recipe in flat] for key in keys}
    return [(key, row) for key, row in values.items() if len(set(row)) > 1]


def flatten(value: Any, key: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}}` -> `{"a.b": "1"}`."""
    if not isinstance(value, dict):
        return {key: "null" if value is None else str(value)}
    flat: dict[str, str] = {}
    for name, inner in value.items():
        flat |= flatten(inner, f"{key}.{name}" if key else str(name))
    return flat
