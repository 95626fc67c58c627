"""What a document of the recipe's data is: a text, a pair of texts, or the record of a task's row.

On its way from a source to shards each is one text, so that parts, duplicates, contamination and resuming are
the same for all; what differs is here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.data.clean import look
from hasten.data.config import DataConfig, SourceConfig
from hasten.data.formats import BadLines
from hasten.data.ngrams import Words
from hasten.data.pairs import look_pair, sides
from hasten.data.source import Document, documents
from hasten.data.split import Split
from hasten.data.tasks.protocol import TaskConfig
from hasten.data.tasks.records import look_record, record_of


@dataclass(frozen=True)
class Texts:
    """Documents, which may be cut."""

    config: DataConfig

    @property
    def key(self) -> Callable[[str], str | None] | None:
        """Of texts that stay whole: what decides the split, so that equal questions are on one side."""
        return None

    def documents(self, source: SourceConfig, bad: BadLines, split: Split) -> Iterator[Document]:
        """Every document of a source of training, or of one that is held out."""
        return documents(source, bad)

    def look(self, document: Document) -> tuple[str, Words, str | None]:
        """A document as it is kept, the words in it, and the rule that it breaks."""
        return look(document, self.config.clean)

    def parts(self, text: str) -> Sequence[str]:
        """What of a text a tokenizer reads each by itself."""
        return (text,)

    def survey(self, texts: Iterable[str]) -> dict[str, Any]:
        """What has to be known of all training texts before any is encoded."""
        return {}


class Pairs(Texts):
    """Sources with their targets."""

    @property
    def key(self) -> Callable[[str], str]:
        """The source."""
        return lambda text: sides(text)[0]

    def look(self, document: Document) -> tuple[str, Words, str | None]:
        """The mended pair."""
        return look_pair(document.text, self.config.pairs)

    def parts(self, text: str) -> Sequence[str]:
        """The two sides."""
        return sides(text)


class Records(Texts):
    """A task's rows."""

    @property
    def task(self) -> TaskConfig:
        """How they are read."""
        assert self.config.task is not None
        return self.config.task

    @property
    def key(self) -> Callable[[str], str | None]:
        """What the task says."""
        return lambda text: self.task.key(record_of(text))

    def documents(self, source: SourceConfig, bad: BadLines, split: Split) -> Iterator[Document]:
        """The record of every row."""
        return documents(source, bad, self.task if split == "train" else self.task.held_out)

    def look(self, document: Document) -> tuple[str, Words, str | None]:
        """The record unchanged."""
        return look_record(document.text, self.task)

    def parts(self, text: str) -> Sequence[str]:
        """All that is text in it."""
        return self.task.texts(record_of(text))

    def survey(self, texts: Iterable[str]) -> dict[str, Any]:
        """Such as the names of labels."""
        return self.task.survey(record_of(text) for text in texts)


def kind_of(config: DataConfig) -> Texts:
    """What a recipe's documents are."""
    if config.task is not None:
        return Records(config)
    return Pairs(config) if config.is_pairs else Texts(config)
