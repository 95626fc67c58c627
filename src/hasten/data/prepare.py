"""Text to token shards, once: the folder is named after what went in, and a second run finds it.

    cache/<fingerprint>/
        prepared.json                     sizes, sources, what cleaning dropped
        tokenizer/tokenizer.json
        train/<source>-00000.safetensors  and so on: one shard for each part of the text
        validation/, test/                shards, and the texts themselves as .jsonl.zst

The way there: parts (`stage.py`), duplicates over all parts, the tokenizer, then shards, part by part.
Each step leaves whole files, so an interrupted run goes on where it was and ends with equal bytes.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.core.console import Progress, say
from hasten.core.errors import DataError, HastenError
from hasten.core.files import damage, publish, replace_folder, sweep, write_json, write_manifest
from hasten.data.config import DataConfig, SourceConfig
from hasten.data.contamination import RUN_WORDS, Protected
from hasten.data.encode import TEXTS_SUFFIX, Counts, Cut, Encoder
from hasten.data.identity import input_fingerprint, only_one
from hasten.data.judge import Judgement
from hasten.data.kinds import kind_of
from hasten.data.pairs import Pair, pair_of
from hasten.data.shards import Shards, open_split
from hasten.data.source import Document, documents, left_out, text_bytes
from hasten.data.split import SPLITS, Split, by_document
from hasten.data.stage import Advance, Part, Stage, read_texts
from hasten.data.tally import Tally
from hasten.data.tasks.leave_out import rows_to_leave_out
from hasten.data.tasks.protocol import ModelKind, Record, Setting
from hasten.data.tasks.records import record_of
from hasten.data.tasks.write import TaskEncoder
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import train

RECORD, TOKENIZER, STAGE = "prepared.json", "tokenizer", "stage"

__all__ = ["Prepared", "input_fingerprint", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared text: token shards by split, a tokenizer, and the record of how it came about."""

    folder: Path
    splits: dict[Split, dict[str, Counts]]  # split, source: how much there is
    report: Tally  # what cleaning dropped

    @classmethod
    def load(cls, folder: Path) -> "Prepared":
        """What `prepare` left in `folder`; DataError where anything in it is not as it was written."""
        if trouble := damage(folder):
            raise DataError(f"{folder}: {trouble}; delete the folder and run `hasten prepare` again")
        return cls.read(folder)

    @classmethod
    def read(cls, folder: Path) -> "Prepared":
        """`load` of a folder that is known to be whole."""
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        splits = {
            split: {source: Counts(**counts) for source, counts in sources.items()}
            for split, sources in record["splits"].items()
        }
        return cls(folder, splits, Tally.from_json(record["clean"]))

    @cached_property
    def learnt(self) -> dict[str, Any]:
        """What a task found out from all training records, such as the names of labels."""
        record: dict[str, Any] = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        return record.get("learnt") or {}

    @property
    def tokenizer(self) -> Path:
        """The folder that `Tokenizer.load` reads."""
        return self.folder / TOKENIZER

    def total(self, split: Split) -> Counts:
        """How much there is in a split, over all sources."""
        total = Counts()
        for counts in self.splits[split].values():
            total.add(counts)
        return total

    def shards(self, split: Split) -> dict[str, Shards]:
        """{source: its shards}."""
        return open_split(self.folder / split)

    def texts(self, split: Split) -> Iterator[Document]:
        """The documents of `validation` or `test`, as text; the training text is kept as tokens only."""
        if split == "train":
            raise DataError(
                f"{self.folder}: keeps the texts of validation and test; read train from data.sources"
            )
        for path in sorted((self.folder / split).glob(f"*{TEXTS_SUFFIX}")):
            source = path.name.removesuffix(TEXTS_SUFFIX)[: -len("-00000")]
            yield from (Document(name, text, source) for name, text in read_texts(path))

    def records(self, split: Split) -> Iterator[tuple[str, Record]]:
        """(name, record) of a task's rows: those of training are kept, too."""
        for path in sorted((self.folder / split).glob(f"*{TEXTS_SUFFIX}")):
            yield from ((name, record_of(text)) for name, text in read_texts(path))

    def pairs(self, split: Split) -> Iterator[Pair]:
        """The pairs of `validation` or `test`, as texts."""
        for document in self.texts(split):
            yield pair_of(document)

    def show(self) -> None:
        """Print what there is."""
        for split in self.splits:
            total = self.total(split)
            megabytes = f"{total.bytes / 1e6:,.2f} MB"
            left = "".join(f"; {count:,} {rule}, left out" for rule, count in total.left_out.items())
            say(f"{split:<10} {total.documents:,} documents, {total.tokens:,} tokens, {megabytes}{left}")
        say(f"prepared   {self.folder}")


def prepare(
    config: DataConfig, progress: bool = True, reads: ModelKind = "decoder", base: Path | None = None
) -> Prepared:
    """Make token shards of `config`'s text, or find those that were made before.

    A task is encoded for a model that `reads` in its way, with what the folder `base` says of its
    beginning.

    Raises DataError for sources that cannot be read, and then leaves nothing behind.  What an interrupted
    run or a full disk leaves in `<fingerprint>.work` is where the next run goes on.
    """
    folder = config.cache / input_fingerprint(config, reads, base)
    try:
        with only_one(folder):
            trouble = damage(folder)
            if trouble and folder.exists():
                say(f"prepare    {folder}: {trouble}; it is made again")
            if trouble:
                Preparation(config, folder, progress, reads, base).run()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"data.cache: {error.filename or folder} cannot be written ({reason}); make room or choose"
            " another place, and run again: it goes on from here"
        ) from error
    prepared = Prepared.read(folder)
    if config.task is None:
        check_row(prepared.total("train").tokens, config)
    if progress:
        prepared.show()
    return prepared


def check_row(tokens: int, config: DataConfig) -> None:
    """Refuse text that does not fill one row."""
    if tokens < config.row_tokens:
        raise DataError(
            f"data: the training text has at most {tokens:,} tokens, less than one row of"
            f" {config.row_tokens:,}; give more text, or write data.row_tokens={largest_row(tokens)}"
        )


def largest_row(tokens: int) -> int:
    """The largest power of two, from 2 on, that is at most `tokens`."""
    return max(1 << tokens.bit_length() >> 1, 2)


@dataclass(frozen=True)
class Preparation:
    """The work of `prepare`, in a folder beside the final one that an interrupted run leaves for the next."""

    config: DataConfig
    final: Path
    progress: bool
    reads: ModelKind = "decoder"
    base: Path | None = None

    @property
    def work(self) -> Path:
        """Where things are until all is done."""
        return self.final.with_name(self.final.name + ".work")

    def run(self) -> None:
        """Fill the work folder and publish it as the final one."""
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            if not (self.work / RECORD).exists():
                self.fill()
        except HastenError:
            shutil.rmtree(self.work)
            raise
        shutil.rmtree(self.work / STAGE, ignore_errors=True)
        for folder in self.work, self.work / TOKENIZER, *(self.work / split for split in SPLITS):
            sweep(folder)
        write_manifest(self.work, {"fingerprint": self.final.name})
        replace_folder(self.work, self.final)

    def fill(self) -> None:
        """Everything from reading the sources to the record, which is written last."""
        parts = self.stage()
        judgement = Judgement(parts, self.config)
        tally = judgement.tally()
        if self.progress:
            tally.show()
        cuts = self.cut(parts, judgement.keep())
        if self.config.task is None:
            check_row(sum(part.tally.bytes + part.documents for part in parts), self.config)
        tokenizer, learnt = self.tokenizer(cuts), kind_of(self.config).survey(training_texts(cuts))
        splits = self.encode(cuts, tokenizer, learnt)
        for split in SPLITS:
            self.check_split(split, splits)
        counts = {split: {name: asdict(c) for name, c in by.items()} for split, by in splits.items() if by}
        kept = {"clean": tally.to_json(), "config": self.config.model_dump(mode="json"), "learnt": learnt}
        write_json(self.work / RECORD, {"splits": counts, **kept})

    def sources(self) -> Iterator[tuple[Split, SourceConfig]]:
        """Held-out sources come first: of two equal documents the one in training goes."""
        yield from (("test", source) for source in self.config.split.test_sources)
        yield from (("validation", source) for source in self.config.split.validation_sources)
        yield from (("train", source) for source in self.config.sources)

    def stage(self) -> list[Part]:
        """Read, mend and judge every document of every source."""
        protected = Protected(
            document for source in self.config.decontaminate_against for document in documents(source)
        )
        if protected.too_short and self.progress:
            short = f"{protected.too_short:,} protected texts of fewer than {RUN_WORDS} words"
            say(f"clean      {short} are too short to be looked for")
        self.tell_left_out()
        sizes = [text_bytes(source) for _, source in self.sources()]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with self.line("clean", total) as line:
            stage = Stage(self.work / STAGE / "parts", self.config, protected, line.advance)
            return [part for split, source in self.sources() for part in stage.parts(split, source)]

    def tell_left_out(self) -> None:
        """Say which files in the sources' folders are not read."""
        for _, source in self.sources() if self.progress else ():
            if others := left_out(source):
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(others.items()))
                say(f"sources    {source.title}: files of kinds that are not read: {kinds}")

    def cut(self, parts: list[Part], keep: list[NDArray[np.bool_]]) -> list[Cut]:
        """How each part is divided into splits."""
        kept: dict[tuple[Split, str], int] = defaultdict(int)
        for part, stays in zip(parts, keep, strict=True):
            kept[part.split, part.source] += int(stays.sum())
        for (split, source), count in kept.items():
            if not count:
                off = "" if self.config.stays_whole else ", or data.clean.profile=off"
                raise DataError(
                    f"data: cleaning left no document of {source} ({split}); see above which rule did it and"
                    f" write null for its threshold{off}"
                )
        config = self.config.split
        return [
            Cut(
                part,
                stays,
                config,
                by_document(config, kept[part.split, part.source]),
                kind_of(self.config).key,
            )
            for part, stays in zip(parts, keep, strict=True)
        ]

    def tokenizer(self, cuts: list[Cut]) -> Tokenizer:
        """Load the configured tokenizer, or learn one from the training text."""
        folder, config = self.work / TOKENIZER, self.config.tokenizer
        if not folder.exists():
            with publish(folder) as temporary:
                if isinstance(config, Path):
                    Tokenizer.load(config).save(temporary)
                else:
                    texts = training_texts(cuts)
                    parts = (part for text in texts for part in kind_of(self.config).parts(text))
                    train(parts, config, self.progress).save(temporary)
        return Tokenizer.load(folder)

    def encode(
        self, cuts: list[Cut], tokenizer: Tokenizer, learnt: dict[str, Any]
    ) -> dict[Split, dict[str, Counts]]:
        """Write every shard; how much there is by split and source."""
        splits: dict[Split, dict[str, Counts]] = {split: {} for split in SPLITS}
        with self.line("tokenize", sum(cut.part.tally.bytes for cut in cuts)) as line:
            encoder = self.encoder(cuts, tokenizer, learnt, line.advance)
            for cut in cuts:
                for split, counts in encoder.encode(cut).items():
                    splits[split].setdefault(cut.part.source, Counts()).add(counts)
        return splits

    def encoder(
        self, cuts: list[Cut], tokenizer: Tokenizer, learnt: dict[str, Any], advance: Advance
    ) -> Encoder:
        """What writes the shards, or the tables of a task."""
        place = tokenizer, self.work, self.work / STAGE / "encoded", advance
        if (task := self.config.task) is None:
            return Encoder(*place, kind_of(self.config).parts)
        setting = Setting(tokenizer, self.reads, self.config.row_tokens, self.base, learnt)
        entries = (entry for cut in cuts for entry in cut.texts())
        gone = rows_to_leave_out(task, entries, self.config.leave_out)
        return TaskEncoder(*place, task=task, encoding=task.open(setting), gone=gone)

    def check_split(self, split: Split, splits: dict[Split, dict[str, Counts]]) -> None:
        """Refuse a split that was asked for and came out empty."""
        wanted = split == "train" or self.config.split.share(split) > 0
        if wanted and not splits[split]:
            total = sum(counts.documents for by_source in splits.values() for counts in by_source.values())
            cut = "" if self.config.stays_whole else " data.split.by=position,"
            raise DataError(
                f"data.split: of {total:,} documents none fell to {split}; write{cut}"
                f" a larger data.split.{split}, or data.split.{split}_sources"
            )

    @contextmanager
    def line(self, stage: str, total: int | None = None) -> Iterator["Line"]:
        """A live line that counts bytes."""
        if not self.progress:
            yield Line(None)
            return
        with Progress(stage, total and total / 1e6, "MB") as progress:
            yield Line(progress)


def training_texts(cuts: Sequence[Cut]) -> Iterator[str]:
    """All that is trained on."""
    return (text for cut in cuts for split, _, text in cut.texts() if split == "train")


class Line:
    """Adds up bytes for a live line, if there is one."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.bytes = progress, 0

    def advance(self, size: int) -> None:
        """Note `size` further bytes."""
        self.bytes += size
        if self.progress:
            self.progress.update(self.bytes / 1e6)
