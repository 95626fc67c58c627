"""Records between a row and an example: one text each, as JSON, so that what is made for documents serves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import DataError
from hasten.data.formats import BadLines, is_unicode
from hasten.data.ngrams import Words, words
from hasten.data.tasks.protocol import Record, RowError, TaskConfig

EMPTY_RECORD = "empty record"


@dataclass(frozen=True)
class RecordReader:
    """Reads of a row what a task needs."""

    task: TaskConfig
    columns: None = None

    @property
    def setting(self) -> str:
        """What in the recipe says which columns are read."""
        return "data.task"

    def __call__(self, row: Mapping[str, Any], where: str, bad: BadLines, required: bool) -> str | None:
        """The record of a row, or None where it is bad; if `required`, that is the recipe's mistake."""
        try:
            text = as_text(self.task.record(row))
        except RowError as error:
            if required:
                raise DataError(f"{where}: {error}") from None
            bad.note(where, str(error))
            return None
        if not is_unicode(text):
            bad.note(where, "holds half a surrogate pair, which is no character")
            return None
        return text


def as_text(record: Record) -> str:
    """A record as one line."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True)


def record_of(text: str) -> Record:
    """What `as_text` wrote."""
    record: Record = json.loads(text)
    return record


def look_record(text: str, task: TaskConfig) -> tuple[str, Words, str | None]:
    """The record unchanged, the words in it, and the rule that it breaks."""
    texts = task.texts(record_of(text))
    return text, words("\n".join(texts)), None if any(part.strip() for part in texts) else EMPTY_RECORD
