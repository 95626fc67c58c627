"""Which part of the text is held out: a pure function of a document's name, or of a place in it."""

from collections.abc import Iterator
from typing import Literal

import xxhash

from hasten.data.config import SplitConfig

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
EXPECTED_DOCUMENTS = 10


def by_document(config: SplitConfig, documents: int) -> bool:
    """Whether a source of so many documents is split by whole ones: `auto` wants about ten in each split."""
    if config.by != "auto":
        return config.by == "document"
    shares = [share for share in (config.share("validation"), config.share("test")) if share > 0]
    return documents * min(shares, default=1) >= EXPECTED_DOCUMENTS


def split_of(name: str | None, config: SplitConfig) -> Split:
    """Where the document `name` belongs: its hash, from 0 to 1, is the test's where it is smallest.

    None is in training, whatever is held out.
    """
    if name is None:
        return "train"
    place = xxhash.xxh3_64_intdigest(name.encode()) / 2**64
    if place < config.share("test"):
        return "test"
    return "validation" if place < config.share("test") + config.share("validation") else "train"


def split_text(text: str, config: SplitConfig) -> Iterator[tuple[Split, str]]:
    """`text` cut at line ends: its beginning trains, then comes validation, and the end is the test."""
    test = line_end(text, len(text) - round(config.share("test") * len(text)))
    held_out = round((config.share("validation") + config.share("test")) * len(text))
    validation = min(line_end(text, len(text) - held_out), test)
    parts: tuple[tuple[Split, str], ...] = (
        ("train", text[:validation]),
        ("validation", text[validation:test]),
        ("test", text[test:]),
    )
    yield from ((split, part) for split, part in parts if part.strip())


def line_end(text: str, place: int) -> int:
    """The beginning of the first line at or after `place`, or `place` where no line begins after it."""
    if place >= len(text) or place == 0:
        return place
    end = text.find("\n", place - 1)
    return place if end < 0 or end + 1 == len(text) else end + 1
