"""Rows of a person's file, each answered in its place: it keeps its columns, and what is said joins them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hasten.core.errors import DataError
from hasten.data.config import SourceConfig
from hasten.data.formats import BadLines
from hasten.data.source import File, documents_of
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.protocol import Record, RowError
from hasten.data.tasks.records import RecordReader
from hasten.data.tasks.spans import SpansConfig

CHUNK_ROWS = 1024
"""Rows that are read together; what is said of them is written when all of it is there."""
Row = dict[str, Any]


@dataclass(frozen=True)
class WholeRow(RecordReader):
    """Reads rows that a task asks about: the row and its record, as JSON."""

    task: LabelledConfig | SpansConfig

    def __call__(self, row: Mapping[str, Any], where: str, bad: BadLines, required: bool) -> str:
        """Raises DataError for a row without the task's texts: whoever asks wants an answer for each."""
        try:
            record = self.task.asked(row)
        except RowError as error:
            raise DataError(f"{where}: {error}") from None
        return json.dumps([row, record], ensure_ascii=False, default=str)


def rows_of(path: Path, task: LabelledConfig | SpansConfig) -> Iterator[tuple[Row, Record]]:
    """The rows of a file with columns, each with what the model reads of it."""
    source = SourceConfig(paths=(str(path),))
    for document in documents_of(File(path, path.name), source, WholeRow(task), BadLines("error")):
        row, record = json.loads(document.text)
        yield row, record


def answered(
    asked: Iterable[tuple[Row, Record]],
    said_of: Callable[[list[Record]], list[Row]],
    *,
    chunk_rows: int = CHUNK_ROWS,
    progress: Callable[[str], object] = lambda said: None,
) -> Iterator[Row]:
    """Each row with what is said of its record, in order; at most `chunk_rows` rows are held."""
    incoming, done = iter(asked), 0
    while chunk := list(islice(incoming, chunk_rows)):
        said = said_of([record for _, record in chunk])
        yield from ({**row, **own} for (row, _), own in zip(chunk, said, strict=True))
        done += len(chunk)
        progress(f"{done:,} rows")


def as_json(row: Row) -> str:
    """A line of a .jsonl file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def as_columns(*columns: object) -> str:
    """For a person, and for `cut`: columns with a tab between them, None an empty one."""
    return "\t".join("" if text is None else " ".join(str(text).split()) for text in columns) + "\n"
