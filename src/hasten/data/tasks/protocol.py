"""What every task is made of: rows to records, records to examples.

A row comes from a file or a hub, with whatever columns it has.  A *record* is what the task needs of it, in
one form whatever the columns were called; it is kept as JSON, and evaluation reads it again.  A *unit* goes
into a row of a batch whole: one example, or two that are compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from hasten.core.config import Config
from hasten.tokenizer.tokenizer import Tokenizer

Record = dict[str, Any]
ModelKind = Literal["decoder", "encoder", "seq2seq"]
TooLong = Literal["error", "drop", "cut"]


class RowError(Exception):
    """What is wrong with a row, as the end of a sentence that begins with where it is."""


@dataclass(frozen=True)
class Example:
    """A text as the model reads it, and what is to be said at each of its places.  Letters: n tokens."""

    tokens: Sequence[int]  # [n]
    targets: Sequence[int]  # [n], IGNORE where nothing is to be learnt
    types: Sequence[int] | None = None  # [n] token types, of an encoder that has them
    places: Mapping[str, int] = field(default_factory=dict)
    """Places in `tokens` by name, such as where an answer begins."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Numbers of the example by name."""


Unit = tuple[Example, ...]
"""What stays together in a row: `per_unit` examples."""


@dataclass(frozen=True)
class Setting:
    """What a task has to know to turn records into examples."""

    tokenizer: Tokenizer
    reads: ModelKind
    row_tokens: int  # of a row: no unit may be longer
    base: Path | None = None  # the folder of the model to begin from, where its chat template is
    learnt: Mapping[str, Any] = field(default_factory=dict)  # what `survey` found out


class Encoding(Protocol):
    """A task with a tokenizer."""

    def units(self, records: Sequence[Record]) -> list[list[Unit] | str]:
        """For each record its units, in order, or the rule by which it is left out, such as `too long`.

        Raises DataError, with what to write instead, where the task's `too_long` is "error".
        """
        ...


class TaskConfig(Config):
    """A recipe's `data.task`: how rows are read.  Each kind is a subclass in a file of its own."""

    kind: str
    per_unit: ClassVar[int] = 1

    def record(self, row: Mapping[str, Any]) -> Record:
        """What the task needs of a row, values of JSON only; `RowError` where the row does not have it."""
        raise NotImplementedError

    @property
    def held_out(self) -> "TaskConfig":
        """How rows are read that are there to measure with, where more is asked of them."""
        return self

    def key(self, record: Record) -> str | None:
        """What decides the split: records with equal keys, such as a question asked twice, stay together.

        None of a record that stays in training.
        """
        raise NotImplementedError

    def texts(self, record: Record) -> list[str]:
        """All text in a record: for a tokenizer to learn from, and to find duplicates and leaks by."""
        raise NotImplementedError

    def survey(self, records: Iterable[Record]) -> dict[str, Any]:
        """What has to be known of all training records before any is encoded, such as the names of labels."""
        return {}

    def identity(self, base: Path | None) -> Any:
        """What examples depend on beside records and settings, as JSON: a template in the `base` folder."""
        return None

    def open(self, setting: Setting) -> Encoding:
        """The task with a tokenizer; ConfigError where the model is of a kind that cannot do it."""
        raise NotImplementedError
