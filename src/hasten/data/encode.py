"""The second half of preparing: documents that were kept, as token shards of their splits."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.core.files import TEMPORARY, sync, write_json
from hasten.data.config import SplitConfig
from hasten.data.formats import short_pieces
from hasten.data.shards import SUFFIX, ShardWriter
from hasten.data.split import Split, split_of, split_text
from hasten.data.stage import Advance, Part, TextWriter
from hasten.tokenizer.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20
TEXTS_SUFFIX = ".jsonl.zst"


@dataclass
class Counts:
    """How much of something there is; `tokens` are each text's tokens and its end, of a pair both sides'.

    Of a task's records some have no examples: `left_out` says by which rule how many.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Counts") -> None:
        """Count what `other` counted."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.bytes += other.bytes
        for rule, count in other.left_out.items():
            self.left_out[rule] = self.left_out.get(rule, 0) + count


@dataclass(frozen=True)
class Cut:
    """How the documents of a part are divided: those not in `keep` [D] are left out."""

    part: Part
    keep: NDArray[np.bool_]
    config: SplitConfig
    by_document: bool
    key: Callable[[str], str | None] | None = None
    """Of texts that stay whole: what decides the split, so that all targets of one source are on one side."""

    def texts(self) -> Iterator[tuple[Split, str, str]]:
        """(split, name, text) of every document, or piece of one, that is kept."""
        for (name, text), keep in zip(self.part.texts(), self.keep.tolist(), strict=True):
            if not keep:
                continue
            if self.part.split != "train":
                yield self.part.split, name, text
            elif self.key is not None:
                yield split_of(self.key(text), self.config), name, text
            elif self.by_document:
                yield split_of(name, self.config), name, text
            else:
                yield from ((split, name, piece) for split, piece in split_text(text, self.config))


def batches(texts: Iterator[tuple[Split, str, str]]) -> Iterator[list[tuple[Split, str, str]]]:
    """Consecutive texts, about `BATCH_CHARACTERS` together."""
    batch, size = list[tuple[Split, str, str]](), 0
    for entry in texts:
        batch.append(entry)
        size += len(entry[2])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_batch(tokenizer: Tokenizer, texts: list[str]) -> list[NDArray[np.uint32]]:
    """The ids of each text; one longer than a piece is cut at line ends, to bound memory."""
    pieces = [list(short_pieces(text)) or [""] for text in texts]
    ids = iter(tokenizer.encode_batch([piece for cut in pieces for piece in cut]))
    return [np.concatenate([np.array(next(ids), np.uint32) for _ in cut]) for cut in pieces]


@dataclass(frozen=True)
class Encoder:
    """Writes the shards of parts below `folder`, and remembers in `done` which are written.

    `cut_text` says which parts of a text are encoded each by itself: the two sides of a pair.
    """

    tokenizer: Tokenizer
    folder: Path
    done: Path
    advance: Advance
    cut_text: Callable[[str], Sequence[str]] = lambda text: (text,)

    def encode(self, cut: Cut) -> dict[Split, Counts]:
        """What came of a part, split by split; a part that was written before is not written again."""
        record = self.done / f"{cut.part.folder.name}.json"
        if record.exists():
            counts = json.loads(record.read_text(encoding="utf-8"))
            self.advance(cut.part.tally.bytes)
            return {split: Counts(**entry) for split, entry in counts.items()}
        written = self.write(cut)
        record.parent.mkdir(exist_ok=True)
        write_json(record, {split: asdict(counts) for split, counts in written.items()})
        return written

    def write(self, cut: Cut) -> dict[Split, Counts]:
        """Write a part's shards, one for each split that it has documents of."""
        outputs: dict[Split, Output] = {}
        for batch in batches(cut.texts()):
            parts = [self.cut_text(text) for _, _, text in batch]
            encoded = iter(encode_batch(self.tokenizer, [part for each in parts for part in each]))
            for (split, name, text), each in zip(batch, parts, strict=True):
                if split not in outputs:
                    outputs[split] = Output(self.folder / split, cut.part, self.tokenizer, split != "train")
                outputs[split].add(name, text, [(part, next(encoded)) for part in each])
            self.advance(sum(len(text.encode()) for _, _, text in batch))
        for output in outputs.values():
            output.close()
        return {split: output.counts for split, output in outputs.items()}


class TextsBeside:
    """A part of a split in the making, with the texts beside it where they are wanted later."""

    def __init__(self, folder: Path, part: Part, texts: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{part.source}-{part.number:05}"
        self.counts = Counts()
        self.texts = (
            TextWriter(self.path.with_name(self.path.name + TEXTS_SUFFIX + TEMPORARY)) if texts else None
        )

    def keep(self, name: str, text: str) -> None:
        """Write a text beside."""
        if self.texts:
            self.texts.write(name, text)

    def close(self) -> Path:
        """Make the texts appear, whole; returns where what was made of them goes."""
        if self.texts:
            self.texts.close()
            sync(self.texts.path)
            self.texts.path.rename(self.path.with_name(self.path.name + TEXTS_SUFFIX))
        return self.path.with_name(self.path.name + SUFFIX)


class Output(TextsBeside):
    """One shard in the making."""

    def __init__(self, folder: Path, part: Part, tokenizer: Tokenizer, texts: bool) -> None:
        super().__init__(folder, part, texts)
        self.shard = ShardWriter(part.source, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eot_id)

    def add(self, name: str, text: str, parts: list[tuple[str, NDArray[np.uint32]]]) -> None:
        """Take in a document, or the two sides of a pair, which follow each other in the shard."""
        for part, ids in parts:
            size = len(part.encode())
            self.shard.add(name, ids, size)
            self.counts.add(Counts(0, len(ids) + 1, size))
        self.counts.documents += 1
        self.keep(name, text)

    def close(self) -> Path:
        """Make the files appear, whole."""
        path = super().close()
        self.shard.write(path)
        return path
