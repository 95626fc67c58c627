"""Texts in, classes out: what a model says of each row of a file, or of each line.

Beside a row's columns stand `predicted`, `probability` and `probabilities`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from hasten.core.errors import ConfigError
from hasten.data.source import ROWS
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.protocol import Record
from hasten.evaluate.classifier import Classifier
from hasten.evaluate.rows import CHUNK_ROWS, Row, answered, as_columns

SAID = ("predicted", "probability", "probabilities")


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

    A text without a token, or that the task's `too_long: drop` leaves out, gets null.
    """
    counts = dict.fromkeys([*classifier.names, ""], 0)
    for row in answered(asked, partial(said_of, classifier), chunk_rows=chunk_rows, progress=progress):
        counts[row["predicted"] or ""] += 1
        write(row)
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


def columns_of(row: Row, task: LabelledConfig) -> str:
    """Class, probability and text."""
    probability = None if row["probability"] is None else f"{row['probability']:.4f}"
    return as_columns(row["predicted"], probability, *(row[name] for name in task.columns))
