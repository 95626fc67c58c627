"""What prepared text is named after: the content of its sources, its configuration, and our own code."""

import fcntl
import hashlib
import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

import hasten.tokenizer
from hasten.core.console import say
from hasten.core.errors import DataError
from hasten.core.files import fingerprint, write_json
from hasten.data.config import DataConfig, SourceConfig
from hasten.data.source import files
from hasten.data.tasks.protocol import ModelKind
from hasten.tokenizer.tokenizer import Tokenizer

CODE = (
    "clean",
    "contamination",
    "dedup",
    "encode",
    "formats",
    "judge",
    "kinds",
    "ngrams",
    "pairs",
    "prepare",
    "repetition",
    "shards",
    "source",
    "split",
    "stage",
    "json_rows",
)
LIBRARIES = ("tokenizers", "rensa", "ftfy", "zstandard")
MEMO, MEMO_BYTES = "digests.json", 64 << 20  # digests of files from this size on are remembered


def input_fingerprint(config: DataConfig, reads: ModelKind = "decoder", base: Path | None = None) -> str:
    """The name of the folder that `prepare` makes: equal for equal texts and settings, wherever they lie.

    Weights, the length of rows and what is asked of them change no shard and are left out; not so of a task,
    whose examples are made for rows of one length, for a model that `reads` in its way and for its `base`.
    """
    own = {"sources", "split", "decontaminate_against", "tokenizer", "row_tokens", "cache"}
    own |= {"examples", "masking", "source_row_tokens", "pairs", "task", "leave_out", "waive"}
    held_out = {"validation_sources", "test_sources"}
    memo = Memo(config.cache / MEMO)

    def identities(sources: tuple[SourceConfig, ...]) -> list[Any]:
        return [identity(source, memo) for source in sources]

    return fingerprint(
        {
            "settings": config.model_dump(mode="json", exclude=own),
            "pairs": config.pairs.model_dump(mode="json", exclude={"too_long"}) if config.is_pairs else None,
            "task": task_identity(config, reads, base),
            "split": config.split.model_dump(mode="json", exclude=held_out),
            "sources": identities(config.sources),
            "validation": identities(config.split.validation_sources),
            "test": identities(config.split.test_sources),
            "protected": identities(config.decontaminate_against),
            "tokenizer": tokenizer_identity(config),
            "code": code_version(),
        }
    )


def task_identity(config: DataConfig, reads: ModelKind, base: Path | None) -> Any:
    """How a task's rows become examples, or nothing where there is no task."""
    if config.task is None:
        return None
    settings = config.task.model_dump(mode="json"), config.row_tokens, sorted(config.leave_out)
    return [*settings, reads, config.task.identity(base)]


def identity(source: SourceConfig, memo: "Memo") -> dict[str, Any]:
    """A source by what is in its files, not by where they are."""
    settings = source.model_dump(mode="json", exclude={"paths", "weight"})
    return settings | {
        "name": source.title,
        "files": [[file.id, memo.digest(file.path)] for file in files(source)],
    }


def tokenizer_identity(config: DataConfig) -> Any:
    """How the tokenizer is trained, or what an existing one does."""
    if isinstance(config.tokenizer, Path):
        return Tokenizer.load(config.tokenizer).fingerprint
    return config.tokenizer.model_dump(mode="json")


def code_version() -> str:
    """A digest of the code and the libraries that decide what is in a shard."""
    own = [Path(__file__).with_name(f"{name}.py") for name in CODE]
    own += sorted(Path(__file__).with_name("tasks").glob("*.py"))
    tokenizer = sorted(Path(hasten.tokenizer.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(unicodedata.unidata_version.encode())
    for path in own + tokenizer:
        digest.update(path.read_bytes())
    for library in LIBRARIES:
        digest.update(version(library).encode())
    return digest.hexdigest()[:16]


class Memo:
    """Digests of file contents; those of large files are remembered by path, size and time of change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def digest(self, file: Path) -> str:
        """128 bits of a file's content, in hexadecimal."""
        try:
            stat = file.stat()
            if stat.st_size < MEMO_BYTES:
                return content_digest(file)
            state = [stat.st_size, stat.st_mtime_ns]
            if self.known.get(str(file), [])[:2] != state:
                self.known[str(file)] = [*state, content_digest(file)]
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self.known)
        except OSError as error:
            raise DataError(
                f"{error.filename}: cannot be read ({error.strerror}); check its permissions"
            ) from None
        return str(self.known[str(file)][2])


def content_digest(file: Path) -> str:
    """XXH3 of a file, read as a stream."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder in the making, waiting for a process that has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"prepare    another process is making {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
