"""A safetensors file read with no trust in it: the header is checked whole before a tensor is touched.

    8 bytes            length N of the header, little endian
    N bytes            {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}...}
    the rest           the tensors' numbers, without gaps and without overlaps

What the format demands (safetensors' README and its `src/tensor.rs`) is demanded here: N within the file
and at most 100 MB, no name twice, shape times width without overflow, every byte of the rest in exactly one
tensor.
No memory is taken that the file's own size does not pay for.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.core.foreign import NotJsonError, parse

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
MAX_HEADER_BYTES, MAX_TENSORS, MAX_DIMS = 100_000_000, 1 << 17, 16
MAX_BYTES = 1 << 62
MAX_ENTRY = 4096
"""Characters of one tensor's entry: three short keys and some numbers."""
SPACE = re.compile(r"[ \t\n\r]*")
ENTRY = re.compile(r"\{[^{}]*\}")
scan_string = json.decoder.scanstring  # type: ignore[attr-defined]  # it is there, unlisted


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: `begin` and `end` count bytes from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of one file by name, each read when it is asked for, into memory of its own.

    Making one reads and checks the header only; a fault is a `CheckpointError` that names file and tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():
                raise CheckpointError(f"{path}: there is no such file; fetch the folder again")
            with path.open("rb") as file:
                size = path.stat().st_size
                self.entries, self.metadata, self.start = read_header(file, size)
        except NotJsonError as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); use another checkpoint, or fetch the file again"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None

    def __getitem__(self, name: str) -> Tensor:
        """The tensor `name`, in the type that it has in the file."""
        return self.read(name, self.entries[name])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """The tensor `name` from `start` to `stop` of its first dimension, which is all that is read."""
        entry = self.entries[name]
        row = (entry.end - entry.begin) // max(entry.shape[0], 1)
        begin, end = entry.begin + start * row, entry.begin + stop * row
        return self.read(name, Entry(entry.dtype, (stop - start, *entry.shape[1:]), begin, end))

    def read(self, name: str, entry: Entry) -> Tensor:
        """The bytes that `entry` tells of, as a tensor; `name` is for complaints."""
        data = bytearray(entry.end - entry.begin)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start + entry.begin)
                whole = read_into(file, memoryview(data))
        except OSError as error:
            raise CheckpointError(f"{self.path}: '{name}' cannot be read ({error.strerror})") from None
        if not whole:
            raise CheckpointError(f"{self.path}: '{name}' is cut short; the file changed while it was read")
        return as_tensor(data, entry, f"{self.path}: '{name}'")

    @property
    def num_numbers(self) -> int:
        """How many numbers all tensors hold."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries


def read_into(file: BinaryIO, buffer: memoryview) -> bool:
    """Fill `buffer`; False where the file ends first."""
    while buffer:
        count = file.readinto(buffer)  # type: ignore[attr-defined]  # a raw file has it
        if not count:
            return False
        buffer = buffer[count:]
    return True


def as_tensor(data: bytearray, entry: Entry, what: str) -> Tensor:
    """The bytes of one tensor as such; `what` begins a complaint."""
    if not data:
        return torch.empty(entry.shape, dtype=entry.dtype)
    numbers = torch.frombuffer(data, dtype=torch.uint8)
    if entry.dtype == torch.bool and numbers.max() > 1:
        raise CheckpointError(f"{what} is BOOL and holds bytes other than 0 and 1; fetch the file again")
    return numbers.view(entry.dtype).view(entry.shape)


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Entry], dict[str, str], int]:
    """Entries, metadata and the place where tensors begin, of a file of `size` bytes; else `NotJsonError`."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8:
        raise NotJsonError(f"a file of {size} bytes has no room for a header")
    if length > MAX_HEADER_BYTES:
        raise NotJsonError(f"the header claims {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed")
    if length > size - 8:
        raise NotJsonError(
            f"the header claims {length:,} bytes and the file has {size - 8:,} after its length"
        )
    header = file.read(length)
    if header[:1] != b"{":
        raise NotJsonError("the header does not begin with '{'")
    try:
        entries, metadata = parse_header(header.decode("utf-8"))
    except UnicodeDecodeError:
        raise NotJsonError("the header is not UTF-8 text") from None
    check_layout(entries, size - 8 - length)
    return entries, metadata, 8 + length


def parse_header(text: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """The header's two levels, walked by hand: a parser for any JSON would build whatever it is given."""
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] | None = None
    place = skip(text, 1)
    if text[place : place + 1] == "}":
        return entries, end_of_header(text, place + 1, {})
    while True:
        name, place = string_at(text, place)
        place = skip(text, expect(text, place, ":"))
        if name in entries or (name == "__metadata__" and metadata is not None):
            raise NotJsonError(f"the tensor {name[:80]!r} is there twice")
        if name == "__metadata__":
            metadata, place = strings_at(text, place)
        else:
            entries[name], place = entry_at(text, place, name)
        if len(entries) > MAX_TENSORS:
            raise NotJsonError(f"there are more than {MAX_TENSORS:,} tensors")
        place = skip(text, place)
        if text[place : place + 1] == "}":
            return entries, end_of_header(text, place + 1, metadata or {})
        place = skip(text, expect(text, place, ","))


def end_of_header(text: str, place: int, metadata: dict[str, str]) -> dict[str, str]:
    """Only spaces may follow, which writers add so that tensors begin at a multiple of eight."""
    if skip(text, place) != len(text):
        raise NotJsonError("there is text after the header's closing brace")
    return metadata


def skip(text: str, place: int) -> int:
    """The first place from `place` that is no white space."""
    found = SPACE.match(text, place)
    assert found is not None  # it matches nothing, too
    return found.end()


def expect(text: str, place: int, sign: str) -> int:
    """The place after `sign`, which must be next."""
    place = skip(text, place)
    if text[place : place + 1] != sign:
        raise NotJsonError(f"character {place} of the header should be {sign!r}")
    return place + 1


def string_at(text: str, place: int) -> tuple[str, int]:
    """The JSON string that begins at `place`, and the place after it."""
    if text[place : place + 1] != '"':
        raise NotJsonError(f"character {place} of the header should be a quotation mark")
    try:
        word, after = scan_string(text, place + 1, True)
        word.encode()
    except UnicodeEncodeError:
        raise NotJsonError("a name holds half of a surrogate pair") from None
    except ValueError as error:
        raise NotJsonError(str(error)) from None
    return word, after


def strings_at(text: str, place: int) -> tuple[dict[str, str], int]:
    """The mapping of strings to strings that begins at `place`."""
    words: dict[str, str] = {}
    place = skip(text, expect(text, place, "{"))
    if text[place : place + 1] == "}":
        return words, place + 1
    while True:
        key, place = string_at(text, place)
        value, place = string_at(text, skip(text, expect(text, place, ":")))
        if key in words:
            raise NotJsonError(f"the key {key[:80]!r} is given twice")
        words[key] = value
        place = skip(text, place)
        if text[place : place + 1] == "}":
            return words, place + 1
        place = skip(text, expect(text, place, ","))


def entry_at(text: str, place: int, name: str) -> tuple[Entry, int]:
    """The entry of the tensor `name` that begins at `place`."""
    found = ENTRY.match(text, place, place + MAX_ENTRY)
    if found is None:
        raise NotJsonError(f"the tensor {name[:80]!r} has no entry {{dtype, shape, data_offsets}}")
    fields = parse(found[0].encode())
    if fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise NotJsonError(f"the entry of {name[:80]!r} has the keys {', '.join(sorted(fields))[:200]}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise NotJsonError(
            f"the tensor {name[:80]!r} is of type {str(dtype)[:20]!r}, which hasten does not read"
        )
    if not counts(shape) or len(shape) > MAX_DIMS or not counts(offsets) or len(offsets) != 2:
        raise NotJsonError(f"the tensor {name[:80]!r} has shape {shape!r:.80} and offsets {offsets!r:.80}")
    entry = Entry(DTYPES[dtype], tuple(shape), *offsets)
    check_size(entry, name)
    return entry, found.end()


def counts(value: object) -> bool:
    """Whether `value` is a list of whole numbers from zero."""
    return isinstance(value, list) and all(type(count) is int and 0 <= count < MAX_BYTES for count in value)


def check_size(entry: Entry, name: str) -> None:
    """The shape must fill exactly the bytes between the offsets; Python's whole numbers do not overflow."""
    needed = math.prod(entry.shape) * entry.dtype.itemsize
    if math.prod(filter(None, entry.shape)) * entry.dtype.itemsize >= MAX_BYTES:
        raise NotJsonError(f"the tensor {name[:80]!r} has the impossible shape {list(entry.shape)}")
    if entry.end - entry.begin != needed:
        raise NotJsonError(
            f"the tensor {name[:80]!r} of shape {list(entry.shape)} takes {needed:,} bytes and has"
            f" {entry.end - entry.begin:,}"
        )


def check_layout(entries: dict[str, Entry], size: int) -> None:
    """The tensors, in order, must cover the `size` bytes after the header, each byte once."""
    place = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            fault = "overlaps the one before it" if entry.begin < place else "leaves a gap before it"
            raise NotJsonError(
                f"the tensor {name[:80]!r} at {entry.begin:,} {fault}, which ends at {place:,}"
            )
        place = entry.end
    if place > size:
        raise NotJsonError(f"the tensors take {place:,} bytes and the file has {size:,}: it is cut short")
    if place < size:
        raise NotJsonError(f"{size - place:,} bytes at the end belong to no tensor")
