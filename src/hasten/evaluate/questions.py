"""Questions in, answers out: what a model finds in a text, for each row of a file or each line that asks.

Beside a row's columns stand `predicted`, the answer, null where there is none; `start`, where it begins in
the context, in characters from 0; and `above_none`, by how much it scores above no answer.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from hasten.data.tasks.protocol import Record
from hasten.data.tasks.spans import SpansConfig
from hasten.evaluate.rows import CHUNK_ROWS, Row, answered, as_columns
from hasten.evaluate.spans import AnswerFinder, Found

SAID = ("predicted", "start", "above_none")


def about(context: str, lines: Iterable[str], task: SpansConfig) -> Iterator[tuple[Row, Record]]:
    """Each line that is not blank as a question about one text."""
    for line in lines:
        if question := line.strip():
            yield {task.question_field: question}, {"question": question, "context": context}


def answer(
    finder: AnswerFinder,
    asked: Iterable[tuple[Row, Record]],
    write: Callable[[Row], object],
    *,
    most: int,
    threshold: float | None,
    chunk_rows: int = CHUNK_ROWS,
    progress: Callable[[str], object] = lambda said: None,
) -> dict[str, int]:
    """Hand each row with its answer of at most `most` tokens to `write`, in order; how many have one.

    None is given where it scores above the answer by more than `threshold`; with None there always is one,
    but for a question without a token, or that the task's `too_long: drop` leaves out.
    """
    counts = {"answered": 0, "(no answer)": 0}
    said = partial(said_of, finder, most, math.inf if threshold is None else threshold)
    for row in answered(asked, said, chunk_rows=chunk_rows, progress=progress):
        counts["answered" if row["predicted"] else "(no answer)"] += 1
        write(row)
    return counts


def said_of(finder: AnswerFinder, most: int, threshold: float, records: list[Record]) -> list[Row]:
    """What the model finds for each record."""
    return [shown(found, threshold) for found in finder.find(records, most, aloud=False)]


def shown(found: Found, threshold: float) -> Row:
    """What stands beside a row's columns."""
    text = found.given(threshold)
    above = None if math.isinf(found.margin) else round(-found.margin, 4)
    return dict(zip(SAID, (text or None, found.start if text else None, above), strict=True))


def columns_of(row: Row, task: SpansConfig) -> str:
    """Answer, how much it scores above none, and question."""
    above = None if row["above_none"] is None else f"{row['above_none']:.2f}"
    return as_columns(row["predicted"], above, row[task.question_field])
