"""What a run came to: as figures, and as a table for the terminal."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hasten.core.files import write_json
from hasten.report.curves import number
from hasten.report.figures import compact, duration, percent, significant
from hasten.report.files import RunFiles, read_run, read_runs
from hasten.report.frame import Language
from hasten.report.words import word

RECENT = 50  # the final training loss is the mean over the last fiftieth of the lines

Formatter = Callable[[Any], str]
ROWS: tuple[tuple[str, str, Formatter], ...] = (
    ("parameters", "parameters", compact),
    ("steps", "steps_title", lambda steps: f"{steps:,}"),
    ("tokens", "tokens_title", compact),
    ("seconds", "time", duration),
    ("train_loss", "train_loss", lambda loss: f"{loss:.4f}"),
    ("validation_loss", "validation_loss", lambda loss: f"{loss:.4f}"),
    ("best_validation_loss", "best_validation_loss", lambda loss: f"{loss:.4f}"),
    ("tokens_per_second", "throughput", lambda rate: f"{compact(rate)} tokens/s"),
    ("mfu", "mfu", percent),
    ("loss", "held_out_loss", lambda loss: f"{loss:.4f}"),
    ("bits_per_byte", "bits_per_byte", lambda bits: f"{bits:.4f}"),
    ("lzma_stream", "lzma_stream", lambda bits: f"{bits:.4f}"),
    ("lzma_each", "lzma_each", lambda bits: f"{bits:.4f}"),
    ("perplexity", "perplexity", significant),
    ("accuracy", "accuracy", percent),
    ("masked_accuracy", "masked_accuracy", percent),
    ("unigram_accuracy", "unigram", percent),
    ("bigram_accuracy", "bigram", percent),
    ("both_neighbours_accuracy", "both_neighbours", percent),
    ("bleu", "bleu", lambda score: f"{score:.1f}"),
    ("chrf", "chrf", lambda score: f"{score:.1f}"),
    ("class_accuracy", "class_accuracy", percent),
    ("macro_f1", "macro_f1", percent),
    ("parse_rate", "parse_rate", percent),
)
"""A figure's name, the key of its words, and how it is written."""


def summary(folder: Path) -> dict[str, Any]:
    """The figures of a run's folder, by the names in ROWS; those that its files don't tell are left out.

    Raises DataError for a folder without metrics, or with files that are not as hasten writes them.
    """
    return figures_of(read_run(folder))


def figures_of(run: RunFiles) -> dict[str, Any]:
    """The figures of a run: the last ones of training, and medians of its pace."""
    trained, validated = values(run, "train"), values(run, "validation")
    losses, validation = trained("loss"), validated("validation_loss")
    steps, tokens, seconds = (values(run, None)(name) for name in ("step", "tokens", "seconds"))
    recent = losses[-max(len(losses) // RECENT, 1) :]
    figures = {
        "name": run.name,
        "parameters": run.parameters,
        "steps": int(max(steps)) if steps else None,
        "tokens": int(max(tokens)) if tokens else None,
        "seconds": run.training.seconds if run.training else max(seconds, default=None),
        "train_loss": sum(recent) / len(recent) if recent else None,
        "validation_loss": validation[-1] if validation else None,
        "best_validation_loss": min(validation, default=None),
        "tokens_per_second": median(rates) if (rates := trained("tokens_per_second")) else None,
        "mfu": median(shares) if (shares := trained("mfu")) else None,
        **evaluated(run),
    }
    return {name: value for name, value in figures.items() if value is not None}


def values(run: RunFiles, kind: str | None) -> Callable[[str], list[float]]:
    """For a name, its values in all lines of a kind (None: of any), in their order."""
    lines = [line for line in run.metrics if kind is None or line.get("kind") == kind]

    def of(name: str) -> list[float]:
        return [value for line in lines if (value := number(run, line, name)) is not None]

    return of


def evaluated(run: RunFiles) -> dict[str, Any]:
    """The figures of evaluation.json."""
    evaluation = run.evaluation
    if evaluation is None:
        return {}
    score, code, masked = evaluation.score, evaluation.code, evaluation.masked
    predicted = score or masked  # both have a loss
    compressed = {name: baseline.bits_per_byte for name, baseline in evaluation.baselines.items()}
    return {
        "loss": predicted.loss if predicted else None,
        "bits_per_byte": score.bits_per_byte if score else None,
        "stderr": score.stderr if score else None,
        "perplexity": predicted.perplexity if predicted else None,
        "accuracy": score.accuracy if score else None,
        "masked_accuracy": masked.accuracy if masked else None,
        **{f"{name}_accuracy": share for name, share in (masked.baselines if masked else {}).items()},
        "bleu": evaluation.translation.bleu.score if evaluation.translation else None,
        "chrf": evaluation.translation.chrf.score if evaluation.translation else None,
        "class_accuracy": evaluation.classification.accuracy if evaluation.classification else None,
        "macro_f1": evaluation.classification.macro_f1 if evaluation.classification else None,
        "parse_rate": code.rate if code else None,
        "lzma_stream": compressed.get("lzma_stream"),
        "lzma_each": compressed.get("lzma_each"),
    }


PUBLISHED = {
    "parameters": "parameters",
    "tokens": "tokens",
    "seconds": "seconds",
    "val_loss": "best_validation_loss",
    "test_loss": "loss",
    "test_bits_per_byte": "bits_per_byte",
    "test_accuracy": "accuracy",
    "masked_accuracy": "masked_accuracy",
    "unigram_accuracy": "unigram_accuracy",
    "bigram_accuracy": "bigram_accuracy",
    "both_neighbours_accuracy": "both_neighbours_accuracy",
    "bleu": "bleu",
    "chrf": "chrf",
    "class_accuracy": "class_accuracy",
    "macro_f1": "macro_f1",
    "parse_rate": "parse_rate",
    "lzma_bits_per_byte": "lzma_each",
    "lzma_stream_bits_per_byte": "lzma_stream",
}
"""The names in summary.json, for programs, and the figures that they stand for."""


def write_summary(folder: Path, page: Path) -> None:
    """Write summary.json: the names of PUBLISHED, null where nothing tells, and the page's path."""
    figures = summary(folder)
    published = {name: figures.get(figure) for name, figure in PUBLISHED.items()}
    write_json(folder / "summary.json", {**published, "report": str(page)})


def rows(summaries: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """For each figure that any run has: the key of its words, and how it reads in each run."""
    return [
        (key, [write(s[name]) if name in s else "–" for s in summaries])
        for name, key, write in ROWS
        if any(name in s for s in summaries)
    ]


def show(*folders: Path, language: Language = "en") -> None:
    """Print the table of one run or several."""
    Console().print(table(folders, language))


def show_samples(folder: Path, count: int = 3) -> None:
    """Print the first texts that the model wrote, the prompt dimmed."""
    for sample in read_run(folder).samples[:count]:
        between = "\n" if sample.from_source else ""
        Console().print(Text(sample.prompt + between, style="dim") + Text(sample.text.rstrip()), end="\n\n")


def table(folders: Sequence[Path], language: Language = "en") -> Table:
    """The figures of runs side by side, for `rich` to print."""
    summaries = [figures_of(run) for run in read_runs(folders)]
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("")
    for figures in summaries:
        result.add_column(Text(figures["name"]), justify="right")  # a Text: brackets in a name are no markup
    for key, cells in rows(summaries):
        result.add_row(word(key, language), *cells)
    return result
