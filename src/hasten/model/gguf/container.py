"""The file format GGUF: named values, then named tensors, memory-mapped.

After ggml's `docs/gguf.md`, versions 2 and 3, little-endian:

    "GGUF", version u32, number of tensors u64, number of keys u64
    each key:     name, type u32, value            (a string is its length u64 and UTF-8)
    each tensor:  name, number of dims u32, dims u64 (innermost first), type u32, offset u64
    padding to general.alignment, then the tensors' bytes, each at a multiple of it

A file may come from anywhere: every count is held against the bytes that are left before anything is made
for it, and whatever is not exactly as the format says is a `CheckpointError` with file, name and reason.
"""

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hasten.core.config import shorten
from hasten.core.errors import CheckpointError
from hasten.model.gguf.quant import FORMATS, OTHERS, Bytes, Floats, Format, dequantize

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT, ALIGNMENT_KEY = 32, "general.alignment"
LONGEST_KEY, LONGEST_NAME = 65_535, 63  # docs/gguf.md; ggml.h, GGML_MAX_NAME with its zero
MOST_STRINGS = 1 << 22
"""The largest vocabularies have 0.3 million tokens and as many merges; a string in memory is larger than in
the file, so a file of nothing else is refused rather than read."""
DEEPEST = 4
"""Arrays of arrays: no writer nests at all."""

SCALARS: dict[int, tuple[str, np.dtype[Any]]] = {
    0: ("B", np.dtype("u1")),
    1: ("b", np.dtype("i1")),
    2: ("<H", np.dtype("<u2")),
    3: ("<h", np.dtype("<i2")),
    4: ("<I", np.dtype("<u4")),
    5: ("<i", np.dtype("<i4")),
    6: ("<f", np.dtype("<f4")),
    7: ("B", np.dtype("u1")),
    10: ("<Q", np.dtype("<u8")),
    11: ("<q", np.dtype("<i8")),
    12: ("<d", np.dtype("<f8")),
}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
LEAST_TENSOR_BYTES, LEAST_KEY_BYTES = 8 + 1 + 4 + 4 + 8, 8 + 1 + 4 + 1


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its shape as torch has it, and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    format: Format
    begin: int
    end: int


@dataclass(frozen=True)
class Container:
    """What a file holds; `data` is the whole file, mapped and not read until it is looked at.

    A value is a bool, int, float or str, a list of str (or of lists), or an array of numbers.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, Entry]
    data: Bytes

    def floats(self, name: str) -> Floats:
        """The tensor `name` in float32: as many numbers as its shape says, 4 bytes each, newly allocated."""
        entry = self.tensors[name]
        return dequantize(self.data[entry.begin : entry.end], entry.format).reshape(entry.shape)


def read(path: Path) -> Container:
    """Map a file and read what is before the tensors; raises `CheckpointError`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise CheckpointError(f"{path}: has {size} bytes and is no GGUF file; fetch it again")
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give a .gguf file") from None
    return Reader(path, data).container()


@dataclass(frozen=True)
class Promise:
    """What a file's header says of a tensor; `offset` counts from where the tensors begin."""

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int


class Reader:
    """Reads a file from its beginning; `what` names the part being read, for the complaint."""

    def __init__(self, path: Path, data: Bytes) -> None:
        self.path, self.data, self.at = path, data, 0
        self.bytes, self.size = memoryview(data.data), len(data)
        self.what, self.strings = "the header", 0

    def fail(self, reason: str) -> NoReturn:
        """Say what is wrong where."""
        raise CheckpointError(f"{self.path}: {self.what}: {reason}; fetch the file again or convert it anew")

    def container(self) -> Container:
        """Everything, in the order of the file."""
        version = self.version()
        num_tensors, num_keys = self.number(UINT64), self.number(UINT64)
        self.check_count("tensors", num_tensors, LEAST_TENSOR_BYTES)
        self.check_count("keys", num_keys, LEAST_KEY_BYTES)
        metadata: dict[str, Any] = {}
        for index in range(num_keys):
            self.read_key(index, metadata)
        alignment = self.alignment(metadata)
        promised = dict[str, Promise]()
        for index in range(num_tensors):
            self.read_tensor(index, promised)
        begin = -(-self.at // alignment) * alignment
        tensors = {name: self.place(promise, begin, alignment) for name, promise in promised.items()}
        self.check_overlaps(list(tensors.values()))
        return Container(self.path, version, metadata, tensors, self.data)

    def version(self) -> int:
        """The version, once the first bytes are right."""
        if self.take(4) != MAGIC:
            self.fail(f"begins with {bytes(self.bytes[:4])!r} and not with {MAGIC!r}, so it is no GGUF file")
        version = self.number(UINT32)
        if version not in VERSIONS:
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            said = "is big-endian, and hasten reads little-endian" if big else f"is version {version}"
            self.fail(f"{said}; hasten reads versions {VERSIONS[0]} and {VERSIONS[1]}")
        return version

    def read_key(self, index: int, metadata: dict[str, Any]) -> None:
        """The next key and its value."""
        self.what = f"key number {index}"
        key = self.string(LONGEST_KEY)
        self.what = f"the key {shorten(key)}"
        if not key:
            self.fail("has no name")
        if key in metadata:
            self.fail("is there twice")
        metadata[key] = self.value(self.number(UINT32), 0)

    def value(self, kind: int, depth: int) -> Any:
        """A value of the given type."""
        if kind == STRING:
            return self.string(self.size)
        if kind == ARRAY:
            return self.array(depth + 1)
        if kind not in SCALARS:
            self.fail(f"has the type {kind}, which the format does not have")
        value = self.number(kind)
        if kind == BOOL:
            self.check_bools(value > 1)
        return bool(value) if kind == BOOL else value

    def array(self, depth: int) -> Any:
        """An array: strings and arrays as a list, numbers as a copy of their bytes."""
        if depth > DEEPEST:
            self.fail(f"nests arrays more than {DEEPEST} deep")
        kind, count = self.number(UINT32), self.number(UINT64)
        if kind in (STRING, ARRAY):
            self.check_count("elements", count, 8 if kind == STRING else 12)
            self.strings += count
            if self.strings > MOST_STRINGS:
                self.fail(f"brings the strings to {self.strings:,}, more than the {MOST_STRINGS:,} allowed")
            return [self.value(kind, depth) for _ in range(count)]
        if kind not in SCALARS:
            self.fail(f"is an array of the type {kind}, which the format does not have")
        dtype = SCALARS[kind][1]
        self.check_count("elements", count, dtype.itemsize)
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype).copy()
        if kind == BOOL:
            self.check_bools(bool((values > 1).any()))
            return values.astype(bool)
        return values

    def check_bools(self, wrong: bool) -> None:
        """A bool is 0 or 1."""
        if wrong:
            self.fail("holds a truth value that is neither 0 nor 1")

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        """Where tensors begin is a multiple of this."""
        value = metadata.get(ALIGNMENT_KEY, ALIGNMENT)
        if type(value) is not int or value < 8 or value & (value - 1):
            self.what = f"the key {ALIGNMENT_KEY!r}"
            self.fail(f"is {shorten(value)}, not a power of two from 8 on")
        return value

    def read_tensor(self, index: int, promised: dict[str, Promise]) -> None:
        """The next tensor's name, shape, format and offset."""
        self.what = f"tensor number {index}"
        name = self.string(LONGEST_NAME)
        self.what = f"the tensor {name!r}"
        if not name:
            self.fail("has no name")
        if name in promised:
            self.fail("is there twice")
        num_dims = self.number(UINT32)
        if not 1 <= num_dims <= 4:
            self.fail(f"has {num_dims} dimensions; the format has 1 to 4")
        dims = [self.number(UINT64) for _ in range(num_dims)]
        kind, offset = self.number(UINT32), self.number(UINT64)
        if kind not in FORMATS:
            known = ", ".join(each.name for each in FORMATS.values())
            self.fail(f"is stored as {OTHERS.get(kind, f'type {kind}')}, and hasten reads {known}")
        promised[name] = Promise(name, tuple(reversed(dims)), FORMATS[kind], offset)

    def place(self, promise: Promise, begin: int, alignment: int) -> Entry:
        """The tensor with its place in the file, which must hold it; `begin` is where tensors do."""
        name, shape, format, offset = promise.name, promise.shape, promise.format, promise.offset
        self.what = f"the tensor {name!r}"
        count = prod(shape)  # of Python's numbers, which cannot overflow
        if not count:
            self.fail(f"has the shape {list(shape)} and so no numbers")
        if shape[-1] % format.block:
            self.fail(f"has rows of {shape[-1]:,} numbers, no multiple of {format.name}'s {format.block}")
        if offset % alignment:
            self.fail(f"lies at {offset:,}, no multiple of the alignment {alignment}")
        first = begin + offset
        end = first + format.num_bytes(count)
        if end > self.size:
            self.fail(
                f"needs the bytes {first:,} to {end:,} for the shape {list(shape)} in {format.name},"
                f" and the file ends at {self.size:,}"
            )
        return Entry(name, shape, format, first, end)

    def check_overlaps(self, entries: list[Entry]) -> None:
        """No byte belongs to two tensors."""
        ordered = sorted(entries, key=lambda entry: entry.begin)
        for before, after in pairwise(ordered):
            if after.begin < before.end:
                self.what = f"the tensor {after.name!r}"
                self.fail(f"overlaps the tensor {before.name!r}")

    def check_count(self, what: str, count: int, least_bytes: int) -> None:
        """Refuse a number of things that the rest of the file cannot hold."""
        most = (self.size - self.at) // least_bytes
        if count > most:
            self.fail(f"promises {count:,} {what}, and the rest of the file holds {most:,} at most")

    def string(self, longest: int) -> str:
        """A length and as many bytes of UTF-8."""
        length = self.number(UINT64)
        if length > min(longest, self.size - self.at):
            self.fail(f"promises a text of {length:,} bytes, longer than allowed or than the file")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            self.fail("holds a text that is not UTF-8")

    def number(self, kind: int) -> Any:
        """One number of the given scalar type."""
        code, dtype = SCALARS[kind]
        return struct.unpack(code, self.take(dtype.itemsize))[0]

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count > self.size - self.at:
            self.fail(f"the file ends at byte {self.size:,}, in the middle of it")
        self.at += count
        return self.bytes[self.at - count : self.at]
