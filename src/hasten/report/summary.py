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
from hasten.report.figures import compact, duration, percent, significant, size
from hasten.report.files import Evaluation, RunFiles, read_run, read_runs
from hasten.report.frame import Language, Words
from hasten.report.words import WORDS

RECENT = 50  # the final training loss is the mean over the last fiftieth of the lines

Formatter = Callable[[Any], str]


def one_decimal(score: float) -> str:
    """A score in percent, as the official scripts give it."""
    return f"{score:.1f}"


def four_decimals(value: float) -> str:
    """Losses and bits."""
    return f"{value:.4f}"


ROWS: tuple[tuple[str, str, Formatter], ...] = (
    ("parameters", "parameters", compact),
    ("trained_parameters", "trained_parameters", compact),
    ("rank", "rank", str),
    ("steps", "steps_title", lambda steps: f"{steps:,}"),
    ("tokens", "tokens_title", compact),
    ("seconds", "time", duration),
    ("train_loss", "train_loss", four_decimals),
    ("validation_loss", "validation_loss", four_decimals),
    ("best_validation_loss", "best_validation_loss", four_decimals),
    ("best_score", "best_score", one_decimal),
    ("tokens_per_second", "throughput", lambda rate: f"{compact(rate)} tokens/s"),
    ("mfu", "mfu", percent),
    ("loss", "held_out_loss", four_decimals),
    ("base_loss", "base_loss", four_decimals),
    ("loss_fall", "loss_fall", percent),
    ("bits_per_byte", "bits_per_byte", four_decimals),
    ("lzma_stream", "lzma_stream", four_decimals),
    ("lzma_each", "lzma_each", four_decimals),
    ("perplexity", "perplexity", significant),
    ("accuracy", "accuracy", percent),
    ("masked_accuracy", "masked_accuracy", percent),
    ("unigram_accuracy", "unigram", percent),
    ("bigram_accuracy", "bigram", percent),
    ("both_neighbours_accuracy", "both_neighbours", percent),
    ("bleu", "bleu", one_decimal),
    ("chrf", "chrf", one_decimal),
    ("rouge1", "rouge1", one_decimal),
    ("rouge2", "rouge2", one_decimal),
    ("rougeL", "rougeL", one_decimal),
    ("rougeLsum", "rougeLsum", one_decimal),
    ("lead_rougeL", "lead_rougeL", one_decimal),
    ("f1", "f1", one_decimal),
    ("exact_match", "exact_match", one_decimal),
    ("preference_accuracy", "preference_accuracy", percent),
    ("preference_margin", "margin", significant),
    ("class_accuracy", "class_accuracy", percent),
    ("macro_f1", "macro_f1", percent),
    ("parse_rate", "parse_rate", percent),
    ("compressed_bytes", "compressed_bytes", size),
    ("compressed_speedup", "compressed_speedup", significant),
    ("compressed_quality", "compressed_quality", percent),
)
"""A figure's name, the key of its words, and how it is written."""
PASS = "pass@"
"""Begins the names of figures of programs: there may be one for any k."""


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
        "trained_parameters": run.adapter.trained if run.adapter else None,
        "rank": run.adapter.rank if run.adapter else None,
        "steps": int(max(steps)) if steps else None,
        "tokens": int(max(tokens)) if tokens else None,
        "seconds": run.training.seconds if run.training else max(seconds, default=None),
        "train_loss": sum(recent) / len(recent) if recent else None,
        "validation_loss": validation[-1] if validation else None,
        "best_validation_loss": min(validation, default=None),
        "best_score": max(values(run, "score")("score"), default=None),
        "tokens_per_second": median(rates) if (rates := trained("tokens_per_second")) else None,
        "mfu": median(shares) if (shares := trained("mfu")) else None,
        **(predicted(run.evaluation) | compared(run.evaluation) if run.evaluation else {}),
        **(run.compression.figures if run.compression else {}),
    }
    return {name: value for name, value in figures.items() if value is not None}


def values(run: RunFiles, kind: str | None) -> Callable[[str], list[float]]:
    """For a name, its values in all lines of a kind (None: of any), in their order."""
    lines = [line for line in run.metrics if kind is None or line.get("kind") == kind]

    def of(name: str) -> list[float]:
        return [value for line in lines if (value := number(run, line, name)) is not None]

    return of


def predicted(evaluation: Evaluation) -> dict[str, Any]:
    """How well text was predicted: whole texts, hidden tokens, or answers."""
    score, masked, answers = evaluation.score, evaluation.masked, evaluation.supervised
    either, code = score or masked or answers, evaluation.code
    told = score or answers
    compressed = {name: baseline.bits_per_byte for name, baseline in evaluation.baselines.items()}
    return {
        "loss": either.loss if either else None,
        "base_loss": answers.base.loss if answers and answers.base else None,
        "loss_fall": answers.fall if answers else None,
        "bits_per_byte": score.bits_per_byte if score else None,
        "stderr": score.stderr if score else None,
        "perplexity": either.perplexity if either else None,
        "accuracy": told.accuracy if told else None,
        "masked_accuracy": masked.accuracy if masked else None,
        **{f"{name}_accuracy": share for name, share in (masked.baselines if masked else {}).items()},
        "parse_rate": code.rate if code else None,
        "lzma_stream": compressed.get("lzma_stream"),
        "lzma_each": compressed.get("lzma_each"),
    }


def compared(evaluation: Evaluation) -> dict[str, Any]:
    """How what a model said compares with what it was to say."""
    translation, classes = evaluation.translation, evaluation.classification
    written, preferences = evaluation.written, evaluation.preferences
    scores = [scored for found in (evaluation.answers, written) if found for scored in found.scores]
    return {
        "bleu": translation.bleu.score if translation else None,
        "chrf": translation.chrf.score if translation else None,
        "class_accuracy": classes.accuracy if classes else None,
        "macro_f1": classes.macro_f1 if classes else None,
        **{scored.key: scored.score for scored in scores},
        "lead_rougeL": written.baseline.score if written and written.baseline else None,
        "preference_accuracy": preferences.accuracy if preferences else None,
        "preference_margin": preferences.margin if preferences else None,
    }


PUBLISHED = {
    "parameters": "parameters",
    "trained_parameters": "trained_parameters",
    "rank": "rank",
    "tokens": "tokens",
    "seconds": "seconds",
    "val_loss": "best_validation_loss",
    "test_loss": "loss",
    "base_test_loss": "base_loss",
    "test_loss_fall": "loss_fall",
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
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "rougeL",
    "rougeLsum": "rougeLsum",
    "lead_rougeL": "lead_rougeL",
    "f1": "f1",
    "exact_match": "exact_match",
    "preference_accuracy": "preference_accuracy",
    "preference_margin": "preference_margin",
    "parse_rate": "parse_rate",
    "compressed_bytes": "compressed_bytes",
    "compressed_speedup": "compressed_speedup",
    "compressed_quality": "compressed_quality",
    "lzma_bits_per_byte": "lzma_each",
    "lzma_stream_bits_per_byte": "lzma_stream",
}
"""Names in summary.json, for programs, and the figures that they stand for."""


def write_summary(folder: Path, page: Path) -> None:
    """Write summary.json: of PUBLISHED and pass@k what the run's files tell, and the page's path."""
    figures = summary(folder)
    published = {name: figures[figure] for name, figure in PUBLISHED.items() if figure in figures}
    passes = {name: score for name, score in figures.items() if name.startswith(PASS)}
    write_json(folder / "summary.json", {**published, **passes, "report": str(page)})


def rows(summaries: Sequence[dict[str, Any]]) -> list[tuple[Words, list[str]]]:
    """For each figure that any run has: its words, and how it reads in each run."""
    passes = dict.fromkeys(name for figures in summaries for name in figures if name.startswith(PASS))
    return [
        (title(key), [write(s[name]) if name in s else "–" for s in summaries])
        for name, key, write in (*ROWS, *((name, name, one_decimal) for name in passes))
        if any(name in s for s in summaries)
    ]


def title(key: str) -> Words:
    """The words of a figure; pass@k is one for any k."""
    name, _, k = key.partition("@")
    english, chinese = WORDS["pass_at_k" if k else name]
    return english.format(k), chinese.format(k)


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
    for words, cells in rows(summaries):
        result.add_row(words[language == "zh"], *cells)
    return result
