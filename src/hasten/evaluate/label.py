"""Texts in, classes out: what a model says of each row of a file, or of each line.

A row keeps its columns and its place; beside them it gets `predicted`, `probability` and `probabilities`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.errors import ConfigError, DataError
from hasten.data.config import SourceConfig
from hasten.data.formats import BadLines
from hasten.data.source import ROWS, File, documents_of
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.protocol import Record, RowError
from hasten.data.tasks.records import RecordReader
from hasten.evaluate.classifier import Classifier

CHUNK_ROWS = 1024
"""Rows that are read together; what is said of them is written when all of it is there."""
SAID = ("predicted", "probability", "probabilities")
Row = dict[str, Any]


@dataclass(frozen=True)
class WholeRow(RecordReader):
    """Reads rows whose texts a task asks about: the row and its record, as JSON."""

    task: LabelledConfig

    def __call__(self, row: Mapping[str, Any], where: str, bad: BadLines, required: bool) -> str:
        """Raises DataError for a row without the task's texts: whoever asks wants an answer for each."""
        try:
            record = self.task.asked(row)
        except RowError as error:
            raise DataError(f"{where}: {error}") from None
        return json.dumps([row, record], ensure_ascii=False, default=str)


def rows_of(path: Path, task: LabelledConfig) -> Iterator[tuple[Row, Record]]:
    """The rows of a file with columns, each with what the model reads of it."""
    source = SourceConfig(paths=(str(path),), text_field=task.text_field)
    for document in documents_of(File(path, path.name), source, WholeRow(task), BadLines("error")):
        row, record = json.loads(document.text)
        yield row, record


def lines_of(lines: Iterable[str], task: LabelledConfig) -> Iterator[tuple[Row, Record]]:
    """Each line as a row with a text; ConfigError for a task that reads two."""
    if task.pair_field is not None:
        raise ConfigError(
            f"this model reads two texts, {task.text_field} and {task.pair_field}; give a file with these"
            f" columns: {' '.join(sorted(ROWS))}"
        )
    for line in lines:
        text = line.rstrip("\r\n")
        yield {task.text_field: text}, {"text": text}


def classify(
    classifier: Classifier,
    asked: Iterable[tuple[Row, Record]],
    write: Callable[[Row], object],
    *,
    chunk_rows: int = CHUNK_ROWS,
    progress: Callable[[str], object] = lambda said: None,
) -> dict[str, int]:
    """Hand each row with what the model says of it to `write`, in order; how many rows got which class.

    At most `chunk_rows` rows are held.  A text without a token, or that the task's `too_long: drop` leaves
    out, gets null.
    """
    counts, incoming = dict.fromkeys([*classifier.names, ""], 0), iter(asked)
    while chunk := list(islice(incoming, chunk_rows)):
        for (row, _), said in zip(chunk, said_of(classifier, [record for _, record in chunk]), strict=True):
            counts[said["predicted"] or ""] += 1
            write({**row, **said})
        progress(f"{sum(counts.values()):,} texts")
    nothing = counts.pop("")
    return {**counts, **({"(no answer)": nothing} if nothing else {})}


def said_of(classifier: Classifier, records: list[Record]) -> list[Row]:
    """What the model says of each record: the likeliest class, how likely it is, and all others."""
    found: list[Row] = [dict.fromkeys(SAID) for _ in records]
    numbers, log_probs = classifier.asked(records)
    for number, probs in zip(numbers, np.exp(log_probs), strict=True):
        order = np.argsort(-probs, kind="stable")
        each = {classifier.names[at]: round(float(probs[at]), 6) for at in order}
        best = classifier.names[order[0]]
        found[number] = dict(zip(SAID, (best, each[best], each), strict=True))
    return found


def as_json(row: Row) -> str:
    """A line of a .jsonl file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def as_columns(row: Row, task: LabelledConfig) -> str:
    """For a person, and for `cut`: class, probability and text, with a tab between them."""
    probability = "" if row["probability"] is None else f"{row['probability']:.4f}"
    texts = (" ".join(str(row[name]).split()) for name in task.columns)
    return "\t".join([row["predicted"] or "", probability, *texts]) + "\n"
