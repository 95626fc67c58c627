"""Rows of a whole JSON file: a list of objects, one under `data`, or questions nested as SQuAD's are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.core.errors import DataError
from hasten.data.formats import BadLines, Reader, Row, opened, text_of_rows

LONGEST_BYTES = 1 << 30
"""A JSON file is held whole, so it must not be larger than this; longer data come as .jsonl."""


def json_rows(path: Path, read: Reader, bad: BadLines) -> Iterator[Row]:
    """What is read of each object in the file."""
    yield from text_of_rows(objects(path, parsed(path), bad), str(path), read, bad)


def parsed(path: Path) -> Any:
    """The value that the file holds."""
    with opened(path) as file:
        data = file.read(LONGEST_BYTES + 1)
    if len(data) > LONGEST_BYTES:
        raise DataError(
            f"{path}: is longer than {LONGEST_BYTES >> 20:,} MiB; write one object a line as .jsonl"
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not JSON ({error}); if it has one object a line, call it .jsonl"
        ) from None


def objects(path: Path, value: Any, bad: BadLines) -> Iterator[dict[str, Any]]:
    """The rows in a value, each an object."""
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds no list of objects, by itself or under 'data'; give one, or .jsonl")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            bad.note(f"{path}:{number}", f"holds {type(row).__name__} instead of an object")
        elif isinstance(row.get("paragraphs"), list):
            yield from questions(row)
        else:
            yield row


def questions(article: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of an article of SQuAD (Rajpurkar et al. 2016), each with its paragraph."""
    for paragraph in article["paragraphs"]:
        for question in paragraph.get("qas", ()) if isinstance(paragraph, dict) else ():
            if isinstance(question, dict):
                yield {"title": article.get("title", ""), "context": paragraph.get("context"), **question}
