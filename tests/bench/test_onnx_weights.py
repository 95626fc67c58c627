"""ONNX initializers read from the bytes: what is written is read, and what is damaged is refused."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from models import MATRICES, renamed
from onnx_weights import read_onnx

from hasten.core.errors import CheckpointError


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(name: str, value: np.ndarray, kind: int = 1, packed: bool = False, more: bytes = b"") -> bytes:
    """A TensorProto."""
    dims = (
        block(1, b"".join(map(varint, value.shape)))
        if packed
        else b"".join(number(1, n) for n in value.shape)
    )
    return dims + number(2, kind) + block(8, name.encode()) + block(9, value.tobytes()) + more


def model(*tensors: bytes) -> bytes:
    """A ModelProto: a version, a graph with initializers, and what a reader must step over."""
    graph = block(1, b"node") + block(2, b"graph") + b"".join(block(5, t) for t in tensors)
    fixed = varint(15 << 3 | 5) + struct.pack("<f", 1.0) + varint(16 << 3 | 1) + struct.pack("<d", 1.0)
    return number(1, 8) + fixed + block(7, graph) + block(8, b"opset")


FIRST = np.arange(6, dtype=np.float32).reshape(2, 3)
SECOND = np.array([1.5], dtype=np.float32)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def test_float_initializers_are_read_and_others_left_out(tmp_path):
    shape = tensor("shape", np.array([1, -1]), kind=7)
    scalar = tensor("scalar", np.float32(3).reshape(()))
    floats = block(1, varint(1)) + number(2, 1) + block(8, b"typed") + block(4, SECOND.tobytes())
    path = written(
        tmp_path, model(tensor("a", FIRST), shape, tensor("b", FIRST.T.copy(), packed=True), scalar, floats)
    )
    found = read_onnx(path)
    assert found.keys() == {"a", "b", "scalar", "typed"}
    for name, value in {"a": FIRST, "b": FIRST.T, "scalar": 3, "typed": SECOND}.items():
        np.testing.assert_array_equal(found[name], value)


EXTERNAL = number(14, 1)
DAMAGED = {
    "empty": b"",
    "no such message": number(7, 3),
    "two of a name": model(tensor("a", FIRST), tensor("a", SECOND)),
    "another shape than bytes": model(tensor("a", FIRST).replace(number(1, 3), number(1, 4), 1)),
    "a shape of 2^62 numbers": model(
        number(1, 1 << 31) + number(1, 1 << 31) + number(2, 1) + block(9, b"1234")
    ),
    "kept elsewhere": model(tensor("a", FIRST, more=EXTERNAL)),
    "a name that is no text": model(tensor("a", FIRST).replace(block(8, b"a"), block(8, b"\xff"))),
    "longer than the file": model(tensor("a", FIRST))[:-8],
    "a length beyond the file": varint(7 << 3 | 2) + varint(1 << 40),
    "a number without an end": b"\x08" + b"\xff" * 11,
    "a group": varint(7 << 3 | 3),
    "nine dimensions": model(tensor("a", FIRST.reshape(2, 3, *[1] * 7))),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused(data, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.onnx: is no ONNX file that can be read"):
        read_onnx(written(tmp_path, data))


def test_no_cut_and_no_flipped_byte_ends_in_anything_but_a_refusal_or_a_value(tmp_path):
    whole, chance = model(tensor("a", FIRST), tensor("b", SECOND, packed=True)), random.Random(0)
    flipped = []
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        flipped.append(bytes(data))
    refused = 0
    for data in [whole[:size] for size in range(len(whole))] + flipped:
        try:
            read_onnx(written(tmp_path, data))
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / 2


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"none\.onnx: is no ONNX file that can be read \(.*No such file"
    ):
        read_onnx(tmp_path / "none.onnx")


def weights_of_two_layers() -> dict[str, np.ndarray]:
    """As the export leaves them: matrices without names, numbered with gaps."""
    numbers = [8, 9, 12, 20, 100, 101, 102, 103, 110, 120, 121, 122]
    matrices = {f"onnx::MatMul_{n}": np.full((2, 3), n, np.float32) for n in reversed(numbers)}
    return {"model.0.auto_model.embeddings.LayerNorm.bias": SECOND, **matrices}


def test_matrices_get_their_names_in_the_order_of_their_numbers():
    found = renamed(weights_of_two_layers())
    assert len(found) == 1 + 2 * len(MATRICES)
    assert found["embeddings.LayerNorm.bias"] is SECOND
    assert found["encoder.layer.0.attention.self.query.weight"].shape == (3, 2)
    assert found["encoder.layer.0.intermediate.dense.weight"][0, 0] == 100
    assert found["encoder.layer.1.attention.output.dense.weight"][0, 0] == 120
    assert found["encoder.layer.1.output.dense.weight"][0, 0] == 122


@pytest.mark.parametrize("change", [{"onnx::MatMul_123": SECOND}, {"another": SECOND}])
def test_an_export_of_another_model_is_refused(change):
    with pytest.raises(CheckpointError, match="no export of such a model"):
        renamed({**weights_of_two_layers(), **change})
