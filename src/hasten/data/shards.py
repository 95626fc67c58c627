"""Token shards: the ids of many documents in one memory-mapped file that says what is in it.

A shard is a safetensors file, so any tool can look inside: an 8-byte header length, a JSON header,
then these arrays, little-endian.  Letters: N ids, D documents.

    tokens        [N]      uint16 or uint32   the documents' ids, one after the other
    bounds        [D + 1]  uint64             document d is tokens[bounds[d] : bounds[d + 1]]
    text_bytes    [D]      uint64             UTF-8 bytes of the text that became document d
    names         [...]    uint8              the documents' names, one after the other, UTF-8
    name_bounds   [D + 1]  uint64             name d is names[name_bounds[d] : name_bounds[d + 1]]

Each document is stored as [beginning] + its tokens + [end of text], so that n tokens give n + 1 targets
and no document learns from its neighbour.  Our tokenizers use one id for both.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hasten.core.errors import DataError
from hasten.core.files import TEMPORARY, sync

SUFFIX = ".safetensors"
NOTE = "hasten"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
Arrays = Mapping[str, set[str]]
"""The arrays that a file of ours must have, each with the types that it may have; `name.*` may be several."""
ARRAYS: Arrays = {
    "tokens": {"U16", "U32"},
    "bounds": {"U64"},
    "text_bytes": {"U64"},
    "names": {"U8"},
    "name_bounds": {"U64"},
}


@dataclass
class ShardWriter:
    """Collects documents of one source in memory and writes them as one shard."""

    source: str
    vocab_size: int
    bos_id: int
    eot_id: int
    ids: list[NDArray[Any]] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest id type that holds the vocabulary."""
        return DTYPES["U16" if self.vocab_size <= 1 << 16 else "U32"]

    def add(self, name: str, tokens: Sequence[int] | NDArray[Any], text_bytes: int) -> None:
        """Append the document `name`; the ids that begin and end it are put in here."""
        ids = np.empty(len(tokens) + 2, self.dtype)
        ids[0], ids[1:-1], ids[-1] = self.bos_id, tokens, self.eot_id
        self.ids.append(ids)
        self.names.append(name.encode())
        self.text_bytes.append(text_bytes)

    @property
    def num_tokens(self) -> int:
        """Ids so far."""
        return sum(len(ids) for ids in self.ids)

    def write(self, path: Path) -> None:
        """Make the shard appear at `path`, whole.  Equal documents give equal bytes."""
        arrays = {
            "tokens": np.concatenate(self.ids) if self.ids else np.empty(0, self.dtype),
            "bounds": bounds(len(ids) for ids in self.ids),
            "text_bytes": np.array(self.text_bytes, "<u8"),
            "names": np.frombuffer(b"".join(self.names), "<u1"),
            "name_bounds": bounds(len(name) for name in self.names),
        }
        ids = {"vocab_size": self.vocab_size, "bos_id": self.bos_id, "eot_id": self.eot_id}
        write_arrays(path, arrays, {"source": self.source, **ids})


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]], note: Mapping[str, Any]) -> None:
    """Make `arrays` appear at `path`, whole, with what the file says of itself."""
    temporary = path.with_name(path.name + TEMPORARY + "shard")
    save_file(arrays, temporary, {NOTE: json.dumps({"version": VERSION, **note}, sort_keys=True)})
    sync(temporary)
    os.replace(temporary, path)


def bounds(lengths: Iterable[int]) -> NDArray[np.uint64]:
    """[D] lengths -> [D + 1] running totals that begin at 0."""
    counts = np.fromiter(lengths, "<u8")
    return np.concatenate([np.zeros(1, "<u8"), np.cumsum(counts, dtype="<u8")])


class Shard:
    """One shard, memory-mapped and checked; `DataError` says what is wrong with the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header, start = read_header(path, ARRAYS)
        note = checked_note(path, header.pop("__metadata__")[NOTE])
        self.source: str = note["source"]
        self.vocab_size: int = note["vocab_size"]
        self.bos_id: int = note["bos_id"]
        self.eot_id: int = note["eot_id"]
        self.tokens = mapped(path, header["tokens"], start)
        self.bounds = mapped(path, header["bounds"], start)
        self.text_bytes = mapped(path, header["text_bytes"], start)
        self.names = mapped(path, header["names"], start)
        self.name_bounds = mapped(path, header["name_bounds"], start)
        check_bounds(path, "bounds", self.bounds, len(self.tokens), self.num_documents)
        check_bounds(path, "name_bounds", self.name_bounds, len(self.names), self.num_documents)

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.text_bytes)

    def name(self, document: int) -> str:
        """The name of document `document`: where its text came from."""
        start, stop = self.name_bounds[document : document + 2]
        return self.names[int(start) : int(stop)].tobytes().decode(errors="replace")


def mapped(path: Path, entry: Mapping[str, Any], start: int) -> NDArray[Any]:
    """The array of a header's `entry`, read from the disk only where it is looked at."""
    begin, _ = entry["data_offsets"]
    (count,) = entry["shape"]
    if count == 0:  # the operating system cannot map nothing
        return np.empty(0, DTYPES[entry["dtype"]])
    # `asarray` drops the memmap class, whose slicing is several times slower, and keeps the mapping.
    return np.asarray(np.memmap(path, DTYPES[entry["dtype"]], "r", start + begin, (count,)))


def check_bounds(path: Path, name: str, ends: NDArray[Any], whole: int, count: int) -> None:
    """Refuse `count` things that overlap, or that reach beyond the `whole` that they are cut from."""
    # Compared, not subtracted: a difference of unsigned numbers never looks negative.
    falls = len(ends) == 0 or bool((ends[1:] < ends[:-1]).any())
    if falls or ends[0] != 0 or int(ends[-1]) != whole or len(ends) != count + 1:
        raise damaged(path, f"{name} does not rise from 0 to {whole:,} in {count:,} steps")


def read_header(path: Path, arrays: Arrays) -> tuple[dict[str, Any], int]:
    """The checked header of the file at `path`, its note parsed, and the byte at which its `arrays` begin."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise damaged(path, f"its header claims {length:,} of {size:,} bytes")
            header = json.loads(file.read(length))
            check_header(header, size - 8 - length, arrays)
            header["__metadata__"] = {NOTE: read_note(header["__metadata__"][NOTE])}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run `hasten prepare` again") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"its header is not one of ours ({type(error).__name__}: {error})") from None
    return header, 8 + length


def check_header(header: dict[str, Any], data_bytes: int, arrays: Arrays) -> None:
    """Raise `ValueError` unless exactly the `arrays` fill exactly `data_bytes` bytes, end to end."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    kinds = {name: next((kind for kind in arrays if fnmatchcase(name, kind)), None) for name in entries}
    if None in kinds.values() or not {kind for kind in arrays if "*" not in kind} <= entries.keys():
        raise ValueError(f"arrays {sorted(entries)} instead of {sorted(arrays)}")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        (begin, stop), (count,) = entry["data_offsets"], entry["shape"]
        if not all(type(number) is int for number in (begin, stop, count)):
            raise ValueError(f"{name} lies at {begin!r} to {stop!r}, shape {count!r}")
        if entry["dtype"] not in arrays[str(kinds[name])]:
            raise ValueError(f"{name} of type {entry['dtype']}")
        if begin != end or count < 0 or stop - begin != count * DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"{name} lies at {begin} to {stop} and should hold {count} values from {end}")
        end = stop
    if end != data_bytes:
        raise ValueError(f"{data_bytes} bytes of data instead of {end}")


def read_note(text: str) -> dict[str, Any]:
    """What a file of ours says of itself; `ValueError` where it is of another version."""
    note: dict[str, Any] = json.loads(text)
    if note["version"] != VERSION:
        raise ValueError(f"version {note['version']} instead of {VERSION}")
    if not isinstance(note["source"], str):
        raise ValueError(f"source {note['source']!r}")
    return note


def checked_note(path: Path, note: dict[str, Any]) -> dict[str, Any]:
    """What a shard says of its tokens, or DataError where that is not plausible."""
    ids = [note.get(name) for name in ("vocab_size", "bos_id", "eot_id")]
    if not all(type(number) is int for number in ids) or not 0 <= note["eot_id"] < note["vocab_size"]:
        names = ", ".join(f"{name} {note.get(name)!r}" for name in ("vocab_size", "bos_id", "eot_id"))
        raise damaged(path, f"its header is not one of ours: {names}")
    return note


def damaged(path: Path, what: str) -> DataError:
    """The error for a file that is not as it was written."""
    return DataError(f"{path}: is damaged: {what}; delete its folder and run `hasten prepare` again")


class Shards:
    """Several shards of one source, addressed as one run of D documents."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.shards = [Shard(path) for path in paths]
        self.first = np.cumsum([0, *(shard.num_documents for shard in self.shards)])  # [shards + 1]

    @property
    def num_documents(self) -> int:
        """D."""
        return int(self.first[-1])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[D] ids of each document, first and last counted."""
        return np.concatenate(
            [np.empty(0, np.int64), *(np.diff(s.bounds).astype(np.int64) for s in self.shards)]
        )

    @cached_property
    def text_bytes(self) -> NDArray[np.int64]:
        """[D] UTF-8 bytes of each document's text."""
        return np.concatenate([np.empty(0, np.int64), *(s.text_bytes.astype(np.int64) for s in self.shards)])

    @property
    def num_tokens(self) -> int:
        """Ids in all documents; a document of n ids gives n - 1 targets."""
        return sum(len(shard.tokens) for shard in self.shards)

    def ids(self, document: int, start: int = 0, length: int | None = None) -> NDArray[Any]:
        """`length` ids (or as many as there are) of a document from its `start`-th on: a view, not a copy."""
        shard, index = self.locate(document)
        begin, end = int(shard.bounds[index]) + start, int(shard.bounds[index + 1])
        return shard.tokens[begin : end if length is None else min(begin + length, end)]

    def name(self, document: int) -> str:
        """Where the text of a document came from."""
        shard, index = self.locate(document)
        return shard.name(index)

    def locate(self, document: int) -> tuple[Shard, int]:
        """The shard that holds a document, and its number there."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        which = int(np.searchsorted(self.first, document, side="right")) - 1
        return self.shards[which], document - int(self.first[which])


def open_split(folder: Path) -> dict[str, Shards]:
    """{source name: its shards} of one split's folder, sources and shards in the order of their files."""
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        paths.setdefault(Shard(path).source, []).append(path)
    if not paths:
        raise DataError(f"{folder}: holds no shards; run `hasten prepare` again, or ask for another split")
    return {source: Shards(files) for source, files in paths.items()}
