"""What stands in the columns of a row, with a sentence about whatever is not as it should be."""

from collections.abc import Mapping
from typing import Any

from hasten.core.config import shorten
from hasten.core.errors import did_you_mean
from hasten.data.tasks.protocol import RowError


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value in the column `name`; RowError where there is none, with a near match."""
    if name not in row:
        near, known = did_you_mean(name, map(str, row)), ", ".join(map(str, row))
        raise RowError(f"has no column '{name}'.{near} It has: {known or 'none'}")
    if row[name] is None:
        raise RowError(f"has nothing in the column '{name}'; fill it in or remove the row")
    return row[name]


def text_in(row: Mapping[str, Any], name: str) -> str:
    """The text in the column `name`, as it is: cleaning and checks tell what is blank."""
    value = column(row, name)
    if not isinstance(value, str):
        raise RowError(f"should have a text in the column '{name}', got {shorten(value)}")
    return value
