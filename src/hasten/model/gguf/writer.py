"""GGUF files, written: `container.py` says the format."""

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.core.files import beside, sync
from hasten.model.gguf.container import (
    ALIGNMENT,
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    LONGEST_NAME,
    MAGIC,
    STRING,
    UINT32,
    VERSIONS,
)
from hasten.model.gguf.quant import Bytes, Format


@dataclass(frozen=True)
class Block:
    """A tensor to write: its shape as torch has it, and what gives its bytes when it is its turn."""

    name: str
    shape: tuple[int, ...]
    format: Format
    make: Callable[[], Bytes]

    @property
    def num_bytes(self) -> int:
        """What `make` gives."""
        return self.format.num_bytes(prod(self.shape))


def write(path: Path, metadata: Mapping[str, Any], tensors: Iterable[Block]) -> None:
    """Replace `path` by a file of version 3, in one step; one tensor at a time is in memory.

    Values are written by their Python type: bool, int (u32), float (f32), str, or a list of one of these, in
    which int is i32.
    """
    blocks = list(tensors)
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(header(metadata, blocks))
            for block in blocks:
                file.write(bytes(-file.tell() % ALIGNMENT))
                packed = block.make()
                assert packed.nbytes == block.num_bytes, block.name
                file.write(packed.data)
            file.write(bytes(-file.tell() % ALIGNMENT))  # llama.cpp asks for the last padding too
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def header(metadata: Mapping[str, Any], blocks: list[Block]) -> bytes:
    """Everything before the tensors' bytes."""
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(blocks), len(metadata))]
    parts += [text(key) + typed(value) for key, value in metadata.items()]
    offset = 0
    for block in blocks:
        assert 0 < len(block.name.encode()) <= LONGEST_NAME, block.name
        dims = block.shape[::-1]
        parts.append(text(block.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", block.format.id, offset))
        offset += -(-block.num_bytes // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)


def text(value: str) -> bytes:
    """A string as the format has it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value: Any) -> bytes:
    """A value after its type."""
    match value:
        case bool():
            return struct.pack("<IB", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + text(value)
    return struct.pack("<I", ARRAY) + elements(value)


def elements(values: list[Any]) -> bytes:
    """The elements of a list after their type and number."""
    kind, body = STRING, b""
    match values[0] if values else "":
        case bool():
            kind, body = BOOL, bytes(values)
        case int():
            kind, body = INT32, numbers(values, "<i4")
        case float():
            kind, body = FLOAT32, numbers(values, "<f4")
        case str():
            body = b"".join(map(text, values))
    return struct.pack("<IQ", kind, len(values)) + body


def numbers(values: list[Any], dtype: str) -> bytes:
    array: NDArray[Any] = np.array(values, dtype)
    return array.tobytes()
