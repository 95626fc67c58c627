"""The first half of preparing: read, mend and judge documents, and keep what passed as numbered parts.

A part is some 64 MiB of text.  It is whole or absent, so an interrupted run goes on after the last
whole one.  Beside its text lies what duplicates are found by: equal documents may be in different
parts, so they are looked for when all parts are there.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from hasten.core.files import publish, read_manifest, sweep
from hasten.data.clean import EMPTY
from hasten.data.config import DataConfig, SourceConfig
from hasten.data.contamination import Protected
from hasten.data.dedup import bands, digest, signatures
from hasten.data.formats import BadLines
from hasten.data.kinds import Texts, kind_of
from hasten.data.ngrams import Hashes
from hasten.data.pairs import EMPTY_SIDE
from hasten.data.source import Document
from hasten.data.split import Split
from hasten.data.tally import Tally
from hasten.data.tasks.records import EMPTY_RECORD

PART_BYTES, PART_DOCUMENTS = 64 << 20, 1 << 16
SIGNED_WORDS = 1 << 20  # so many words are signed together
TEXTS = "texts.jsonl.zst"
SIZES, DIGESTS = "sizes.npy", "digests.npy"
LENGTHS, SIGNATURES, BAND_KEYS = "lengths.npy", "signatures.npy", "bands.npy"

Advance = Callable[[int], None]
"""Called with the bytes of text read since the last call."""


@dataclass(frozen=True)
class Part:
    """A folder with documents of one source that passed the rules."""

    folder: Path
    split: Split
    source: str
    number: int  # among the parts of its source, from 0
    read_to: int  # how many documents of the source had been read at its end
    last: bool  # whether the source has no more
    tally: Tally

    @classmethod
    def load(cls, folder: Path) -> "Part | None":
        """The part in `folder`, or None where there is no whole one."""
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        note = manifest["note"]
        return cls(folder=folder, **(note | {"tally": Tally.from_json(note["tally"])}))

    @property
    def documents(self) -> int:
        """Documents kept so far: duplicates are not yet looked for."""
        return self.tally.kept

    def texts(self) -> Iterator[tuple[str, str]]:
        """(name, text) of each document."""
        return read_texts(self.folder / TEXTS)

    def array(self, name: str) -> NDArray[Any]:
        """One of the arrays beside the text, read from the disk where it is looked at."""
        return np.load(self.folder / name, mmap_mode="r" if self.documents else None)


@dataclass
class Draft:
    """A part in the making: its text goes to the disk at once, its fingerprints are held."""

    folder: Path
    near: bool  # whether near-duplicates will be looked for
    tally: Tally = field(default_factory=Tally)
    sizes: list[int] = field(default_factory=list)  # bytes
    lengths: list[int] = field(default_factory=list)  # words
    digests: list[int] = field(default_factory=list)
    signed: list[NDArray[np.uint32]] = field(default_factory=list)
    waiting: list[Hashes] = field(default_factory=list)
    waiting_words: int = 0

    def __post_init__(self) -> None:
        self.writer = TextWriter(self.folder / TEXTS)

    def keep(self, name: str, text: str, hashes: Hashes) -> None:
        """Take in a document that passed the rules."""
        self.writer.write(name, text)
        self.sizes.append(len(text.encode()))
        self.digests.append(digest(text))
        if self.near:
            self.lengths.append(len(hashes))
            self.waiting.append(hashes)
            self.waiting_words += len(hashes)
            if self.waiting_words > SIGNED_WORDS:
                self.sign()

    def sign(self) -> None:
        """Turn the words of waiting documents into signatures."""
        self.signed.append(signatures(self.waiting))
        self.waiting, self.waiting_words = [], 0

    def finish(self) -> None:
        """Write what is still in memory."""
        self.writer.close()
        np.save(self.folder / SIZES, np.array(self.sizes, np.int64))
        np.save(self.folder / DIGESTS, np.array(self.digests, np.uint64))
        if self.near:
            self.sign()
            signed = np.concatenate(self.signed)
            np.save(self.folder / LENGTHS, np.array(self.lengths, np.int64))
            np.save(self.folder / SIGNATURES, signed)
            np.save(self.folder / BAND_KEYS, bands(signed))

    @property
    def is_full(self) -> bool:
        """Whether the next document belongs to the next part."""
        return self.tally.bytes >= PART_BYTES or self.tally.documents >= PART_DOCUMENTS


class TextWriter:
    """Named texts as compressed JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = zstandard.open(path, "wb", zstandard.ZstdCompressor(level=1))

    def write(self, name: str, text: str) -> None:
        """Append one."""
        self.file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        """End the file."""
        self.file.close()


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each line that a `TextWriter` wrote."""
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            entry = json.loads(line)
            yield entry["id"], entry["text"]


@dataclass(frozen=True)
class Stage:
    """Where parts are kept, and what documents are judged by."""

    folder: Path
    config: DataConfig
    protected: Protected
    advance: Advance

    @cached_property
    def kind(self) -> Texts:
        """What documents are."""
        return kind_of(self.config)

    def parts(self, split: Split, source: SourceConfig) -> Iterator[Part]:
        """All parts of a source, in order: those that are there, then new ones as they are made."""
        bad, number, read_to, last = BadLines(self.config.on_bad_line), 0, 0, False
        while part := Part.load(self.part_folder(split, source, number)):
            yield part
            number, read_to, last = number + 1, part.read_to, part.last
        if last:
            return
        sweep(self.folder)
        stream = self.kind.documents(source, bad, split)
        for _ in islice(stream, read_to):
            pass
        while not last:
            note = {"split": split, "source": source.title, "number": number}
            part = self.write(note, stream, bad, read_to, self.part_folder(split, source, number))
            yield part
            number, read_to, last = number + 1, part.read_to, part.last

    def part_folder(self, split: Split, source: SourceConfig, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"{split}-{source.title}-{number:05}"

    def write(
        self, note: dict[str, Any], stream: Iterator[Document], bad: BadLines, read_to: int, folder: Path
    ) -> Part:
        """Read documents from `stream` until the part is full or there are no more."""
        bad.count, bad.examples = 0, []
        with publish(folder, note) as temporary:
            draft = Draft(temporary, self.config.near_duplicates is not None)
            last = True
            for document in stream:
                self.take(document, draft, held_out=note["split"] != "train")
                if draft.is_full:
                    last = False
                    break
            draft.finish()
            draft.tally.bad_rows, draft.tally.bad_examples = bad.count, bad.examples
            read_to += draft.tally.documents
            note |= {"read_to": read_to, "last": last, "tally": draft.tally.to_json()}
        part = Part.load(folder)
        assert part is not None
        return part

    def take(self, document: Document, draft: Draft, held_out: bool) -> None:
        """Judge a document: into the draft, or into its tally.

        Of held-out sources only empty documents go: what to test on is not for the rules to choose.
        """
        text, found, rule = self.kind.look(document)
        size, share = len(text.encode()), self.config.clean.contamination
        draft.tally.documents += 1
        draft.tally.bytes += size
        self.advance(size)
        if rule and (not held_out or rule in {EMPTY, EMPTY_SIDE, EMPTY_RECORD}):
            draft.tally.drop(rule, document.id, text)
        elif not held_out and (passage := self.protected.passage_in(found.hashes, share)):
            draft.tally.drop("contaminated", document.id, text, f"holds a passage of {passage}")
        else:
            draft.keep(document.id, text, found.hashes)
