"""Lines and rows of a person's files, each answered in its place: translated, told its class, answered."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from hasten.core.errors import ConfigError, DataError
from hasten.data.source import ROWS, extension
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.spans import SpansConfig
from hasten.data.tasks.wording import prompt_of
from hasten.evaluate import label, questions
from hasten.evaluate.classifier import Classifier, class_names
from hasten.evaluate.rows import CHUNK_ROWS, as_json, rows_of
from hasten.evaluate.spans import AnswerFinder
from hasten.generate import translate as translations
from hasten.recipe import Recipe
from hasten.stages import EVALUATION, loaded
from hasten.tokenizer.tokenizer import Tokenizer


def translate(recipe: Recipe, source: Path | None, target: Path | None) -> None:
    """Translate the lines of a file, or of standard input, to a file or to standard output."""
    model, tokenizer, _ = loaded(recipe)
    one_by_one = source is None and sys.stdin.isatty()
    with opened(source, "r", sys.stdin) as lines, opened(target, "w", sys.stdout) as out:
        work = translations.translate(
            model,
            tokenizer,
            lines,
            recipe.generate,
            writing(out, one_by_one),
            chunk_lines=1 if one_by_one else translations.CHUNK_LINES,
            progress=aside,
        )
    if not work.lines:
        raise DataError(f"{source or 'standard input'}: holds no line to translate")


def classify(recipe: Recipe, source: Path | None, target: Path | None) -> None:
    """Tell the class of each row or line of a file, or of standard input: to a file or standard output."""
    columns = in_columns(target)
    classifier = classifier_here(recipe, *loaded(recipe))
    task = classifier.task
    rows = source if source is not None and extension(source) in ROWS else None
    one_by_one = source is None and sys.stdin.isatty()
    with (
        opened(None if rows else source, "r", sys.stdin) as lines,
        opened(target, "w", sys.stdout) as out,
    ):
        write = writing(out, one_by_one)
        counts = label.classify(
            classifier,
            label.lines_of(lines, task) if rows is None else rows_of(rows, task),
            lambda row: write(label.columns_of(row, task) if columns else as_json(row)),
            chunk_rows=1 if one_by_one else CHUNK_ROWS,
            progress=aside,
        )
    tell(counts, f"{source or 'standard input'}: holds no text to classify")


def answer(recipe: Recipe, source: Path | None, target: Path | None) -> None:
    """Find the answer to each question of a file's rows, or of standard input about the text of a file."""
    columns = in_columns(target)
    if source is None:
        raise ConfigError(
            "hasten answer reads questions with their contexts, or a text that standard input asks about;"
            " name a file: questions.jsonl, or text.txt"
        )
    model, tokenizer, folder = loaded(recipe)
    finder = finder_here(recipe, model, tokenizer)
    task, of_rows = finder.task, extension(source) in ROWS
    one_by_one = not of_rows and sys.stdin.isatty()
    with opened(target, "w", sys.stdout) as out:
        write = writing(out, one_by_one)
        counts = questions.answer(
            finder,
            rows_of(source, task) if of_rows else questions.about(text_of(source), sys.stdin, task),
            lambda row: write(questions.columns_of(row, task) if columns else as_json(row)),
            most=recipe.evaluate.extraction.max_answer_tokens,
            threshold=threshold_here(recipe, folder),
            chunk_rows=1 if one_by_one else CHUNK_ROWS,
            progress=aside,
        )
    tell(counts, f"{source if of_rows else 'standard input'}: holds no question")


def tell(counts: dict[str, int], nothing: str) -> None:
    """Say how many rows came to what; DataError, in words for `nothing`, where there were none."""
    if not any(counts.values()):
        raise DataError(nothing)
    aside(", ".join(f"{name} {count:,}" for name, count in counts.items()))


def in_columns(target: Path | None) -> bool:
    """Whether answers go out as columns, not as JSON; ConfigError for a file of another kind."""
    if target is not None and target.suffix not in (".jsonl", ".tsv"):
        raise ConfigError(f"{target}: is neither .jsonl nor .tsv; give it one of these endings")
    return target is None or target.suffix == ".tsv"


def writing(out: TextIO, at_once: bool) -> Callable[[str], None]:
    """Writes lines, each `at_once` where somebody waits for it."""

    def write(line: str) -> None:
        out.write(line)
        if at_once:
            out.flush()

    return write


def aside(said: object) -> None:
    """Print a line for a person: beside the answers nothing else may go to standard output."""
    print(said, file=sys.stderr, flush=True)


def classifier_here(recipe: Recipe, model: Any, tokenizer: Tokenizer, folder: Path) -> Classifier:
    """The recipe's model as something to be asked; a model without a recipe about the column `text`."""
    data, config = recipe.data, recipe.evaluate
    task = data.task if data is not None and isinstance(data.task, LabelledConfig) else None
    task = task or LabelledConfig(prompt=prompt_of(folder, ("text",)))
    names, longest = class_names(model, task), model.config.max_positions if data is None else data.row_tokens
    groups = recipe.prepared().learnt.get("groups") if task.group_field is not None else None
    sizes = longest, config.batch_tokens
    return Classifier(model, tokenizer, task, names, *sizes, bf16=config.bf16(model), groups=groups)


def finder_here(recipe: Recipe, model: Any, tokenizer: Tokenizer) -> AnswerFinder:
    """The recipe's model as something to be asked; a model without a recipe about SQuAD's own columns."""
    data, config = recipe.data, recipe.evaluate
    task = data.task if data is not None and isinstance(data.task, SpansConfig) else SpansConfig()
    sizes = model.config.max_positions if data is None else data.row_tokens, config.batch_tokens
    return AnswerFinder(model, tokenizer, task, *sizes, bf16=config.bf16(model))


def threshold_here(recipe: Recipe, folder: Path) -> float | None:
    """From where on no answer is given: as the recipe says, or as the evaluation of these weights found."""
    given, path = recipe.evaluate.extraction.null_threshold, recipe.output / EVALUATION
    if given is not None or not path.is_file():
        return given
    found = json.loads(path.read_text(encoding="utf-8"))
    fitted: float | None = found.get("answers", {}).get("null_threshold")
    return fitted if found.get("checkpoint") == str(folder) else None


def text_of(path: Path) -> str:
    """All that stands in a text file; DataError where that is nothing."""
    with opened(path, "r", sys.stdin) as file:
        text = file.read()
    if not text.strip():
        raise DataError(f"{path}: holds no text to look for answers in")
    return text


@contextmanager
def opened(path: Path | None, mode: Literal["r", "w"], standard: TextIO) -> Iterator[TextIO]:
    """A file of lines of UTF-8, or the standard stream where there is no path."""
    if path is None:
        yield standard
        return
    try:
        with path.open(mode, encoding="utf-8", newline="\n") as file:
            yield file
    except (OSError, UnicodeDecodeError) as error:
        what = "read as UTF-8 text" if mode == "r" else "written"
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be {what} ({reason}); name another file") from None
