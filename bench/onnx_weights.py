"""The weights in an ONNX file, read from the bytes: no library for it, nothing executed.

ONNX is Protocol Buffers (protobuf.dev/programming-guides/encoding): records of a tag and a value.  The
numbers below are those of `onnx.proto`.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hasten.core.errors import CheckpointError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
GRAPH, INITIALIZER = 7, 5  # of ModelProto and GraphProto
FLOAT32, MAX_DIMS = 1, 8
MAX_VARINT_BYTES = 10


class DamagedError(ValueError):
    """The bytes are no record of what they should be."""


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """The float32 initializers of an ONNX file by name; those of other types (shapes, indices) are left out.

    Raises CheckpointError for a file that is damaged, keeps its weights elsewhere, or has a name twice.
    """
    try:
        with path.open("rb") as file:
            return initializers(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise CheckpointError(f"{path}: is no ONNX file that can be read ({error}); fetch it again") from None


def initializers(model: memoryview) -> dict[str, np.ndarray]:
    """The float32 initializers of a ModelProto's bytes."""
    found: dict[str, np.ndarray] = {}
    for graph in messages(model, GRAPH):
        for tensor in messages(graph, INITIALIZER):
            name, value = read_tensor(tensor)
            if value is None:
                continue
            if name in found:
                raise DamagedError(f"two weights are called {name!r}")
            found[name] = value
    return found


def messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """The messages in the field `number`."""
    for field, value in records(data):
        if field == number:
            if isinstance(value, int):
                raise DamagedError(f"field {number} is a number, not a message")
            yield value


def read_tensor(data: memoryview) -> tuple[str, np.ndarray | None]:
    """Name and copied value of a TensorProto; None for one that is not float32."""
    dims: list[int] = []
    data_type, name, payload = 0, "", None
    for field, value in records(data):
        match field, value:
            case (1, int()):  # dims
                dims.append(value)
            case (1, _):  # dims, packed
                dims += varints(value)
            case (2, int()):
                data_type = value
            case (8, memoryview()):
                name = bytes(value).decode("utf-8")
            case (4 | 9, memoryview()):  # float_data, packed, or raw_data
                payload = value
            case (14, int()) if value:  # data_location: EXTERNAL
                raise DamagedError("a weight is kept in another file")
    if data_type != FLOAT32:
        return name, None
    return name, array_of(name, dims, payload)


def array_of(name: str, dims: list[int], payload: memoryview | None) -> np.ndarray:
    """`payload` in the shape `dims`; its length is compared before anything is allocated."""
    size = 0 if payload is None else len(payload)
    if len(dims) > MAX_DIMS or math.prod(dims) * 4 != size:
        raise DamagedError(f"{name!r} of shape {dims[:MAX_DIMS]} has {size} bytes")
    return np.frombuffer(payload or b"", dtype="<f4").reshape(dims).copy()


def records(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: a number, or the bytes of one that has a length."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield field, value
            continue
        if kind == LENGTH:
            size, at = varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise DamagedError(f"wire type {kind} at byte {at}")
        if size > len(data) - at:
            raise DamagedError(f"a field of {size} bytes where {len(data) - at} are left")
        yield field, data[at : at + size]
        at += size


def varints(data: memoryview) -> Iterator[int]:
    """The numbers of a packed field."""
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield value


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at byte `at`, seven bits a byte from the lowest, and where it ends."""
    value = 0
    for place in range(MAX_VARINT_BYTES):
        if at + place >= len(data):
            raise DamagedError("a number is cut off")
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise DamagedError(f"a number of more than {MAX_VARINT_BYTES} bytes")
