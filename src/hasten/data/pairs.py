"""A pair of texts, such as a sentence and its translation, on its way from a row to token shards.

Between reading and tokenizing a pair is one text, its two sides with BETWEEN in the middle, so that what is
made for documents serves pairs too: parts, exact and near-duplicates, contamination, resuming.
"""

from dataclasses import dataclass

from hasten.core.errors import DataError
from hasten.data.clean import mended
from hasten.data.config import PairsConfig
from hasten.data.formats import BETWEEN
from hasten.data.ngrams import Words, words
from hasten.data.source import Document

EMPTY_SIDE = "empty side"
TOO_LONG, UNEVEN = "too many words", "uneven lengths"


@dataclass(frozen=True)
class Pair:
    """What is read and what is to be written, with the name of its row."""

    id: str
    source: str
    target: str
    origin: str  # the source of the recipe that it comes from


def join(source: str, target: str) -> str:
    """One text of two sides."""
    return f"{source}{BETWEEN}{target}"


def pair_of(document: Document) -> Pair:
    """The pair in a prepared document."""
    return Pair(document.id, *sides(document.text), document.source)


def sides(text: str) -> tuple[str, str]:
    """The two sides of what `join` made."""
    source, between, target = text.partition(BETWEEN)
    if not between or BETWEEN in target:
        raise DataError("a pair has exactly two sides; run `hasten prepare` again")
    return source, target


def look_pair(text: str, config: PairsConfig) -> tuple[str, Words, str | None]:
    """The mended pair, its words, and the rule that it breaks; each side without blanks at its ends."""
    source, target = (mended(side, config.repair).strip() for side in sides(text))
    lengths = [len(words(side)) for side in (source, target)]
    joined = join(source, target)
    return joined, words(joined), broken_rule(source, target, lengths, config)


def broken_rule(source: str, target: str, lengths: list[int], config: PairsConfig) -> str | None:
    """The first rule that a pair breaks, whose sides have so many words, or None."""
    if not source or not target:
        return EMPTY_SIDE
    if config.max_words is not None and max(lengths) > config.max_words:
        return TOO_LONG
    # A side of signs alone counts as one word, as any other short side does.
    shortest, longest = max(min(lengths), 1), max(lengths)
    return UNEVEN if config.max_ratio is not None and longest > config.max_ratio * shortest else None
