"""Texts made of a row's columns: `Summarise:\\n{dialogue}` with the names of columns in braces."""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from hasten.data.tasks.columns import column
from hasten.data.tasks.layouts import answers, text


@dataclass(frozen=True)
class Pattern:
    """A text with places for columns: pieces of text, each followed by a column's name or by nothing."""

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, written: str) -> "Pattern":
        """What `str.format` would read, names alone; ValueError for anything more, or for no name at all."""
        try:
            parsed = list(Formatter().parse(written))
        except ValueError as error:
            raise ValueError(
                f"{written[:60]!r} cannot be read ({error}); write {{{{ and }}}} for braces"
            ) from None
        for _, name, form, conversion in parsed:
            if name is not None and (form or conversion or not name or set(name) & set(".[]")):
                raise ValueError(
                    f"{written[:60]!r} should have nothing but names of columns in braces; write {{column}},"
                    " and {{ and }} for braces"
                )
        if all(name is None for _, name, _, _ in parsed):
            raise ValueError(f"{written[:60]!r} names no column; write for example '{{question}}'")
        return cls(tuple((literal, name) for literal, name, _, _ in parsed))

    @property
    def column(self) -> str | None:
        """The one column that this is, where there is nothing else in it."""
        [(literal, name), *more] = self.pieces
        return name if not literal and not more else None

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text for a row."""
        return "".join(
            literal + ("" if name is None else text(column(row, name), name)) for literal, name in self.pieces
        )

    def several(self, row: Mapping[str, Any]) -> list[str]:
        """The texts for a row: all that are in a cell which holds a list, where this is that column alone."""
        return [self.fill(row)] if self.column is None else answers(column(row, self.column), self.column)
