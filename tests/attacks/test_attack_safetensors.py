"""Damaged and forged safetensors files: refused in words, or exactly what is in the file; little memory."""

import json
import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from mutations import SCALE, mutations
from safetensors.torch import save

from hasten.core.errors import CheckpointError, HastenError
from hasten.core.foreign import NotJsonError
from hasten.model import safetensors_file
from hasten.model.safetensors_file import SafetensorsFile, parse_header
from hasten.model.weights import weights_in

KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Small tensors of several types, one without a number, one without an axis."""
    random_ = torch.Generator().manual_seed(seed)
    made = {f"layer.{i}": torch.randint(0, 2, (2, i), generator=random_).to(k) for i, k in enumerate(KINDS)}
    return {**made, "scale": torch.tensor(0.5)}


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def read(path: Path) -> dict[str, torch.Tensor] | None:
    """What is in a file, None where it is refused; any other exception is the test's failure."""
    try:
        return dict(SafetensorsFile(path))
    except HastenError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 1000
        return None


def check_against_the_library(content: bytes, ours: dict[str, torch.Tensor]) -> None:
    """What we accept the library accepts, and byte for byte the same."""
    theirs = dict(safetensors.deserialize(content))
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert list(tensor.shape) == theirs[name]["shape"]
        assert raw(tensor) == bytes(theirs[name]["data"])


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_or_read_exactly(seed, tmp_path):
    whole = save(tensors(seed), metadata={"format": "pt", "note": '{"a": [1]}'})
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    path, accepted = tmp_path / "model.safetensors", 0
    for content in mutations(whole, 2500, seed, text_ends=header):
        path.write_bytes(content)
        found = read(path)
        if found is not None:
            accepted += 1
            check_against_the_library(content, found)
    assert 0 < accepted < 2000 * SCALE, "most damage is to the header, and some to numbers alone"


def test_mutations_that_keep_the_header_consistent_are_read_or_refused(tmp_path):
    """Damage behind a length that is right again, so that it reaches the parser."""
    whole = save(tensors(9))
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = whole[8 : 8 + length], whole[8 + length :]
    path = tmp_path / "model.safetensors"
    for damaged in mutations(header, 3000, 17):
        content = packed(damaged, data)
        path.write_bytes(content)
        found = read(path)
        if found is not None:
            check_against_the_library(content, found)


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    whole = save(tensors(1))
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read(path) is None, length
    path.write_bytes(whole)
    assert read(path) is not None


FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FORGED = {
    "nothing": (b"", "no room for a header"),
    "a length beyond the file": (packed({}, length=2**63), r"more than the 100,000,000 allowed"),
    "a length just beyond it": (packed({}, length=3), r"the header claims 3 bytes and the file has 2"),
    "a header that is a list": (packed(b"[]"), "does not begin with '{'"),
    "a space before the header": (packed(b' {"a": 1}'), "does not begin with '{'"),
    "text after the header": (packed(b"{} {}"), "text after the header's closing brace"),
    "another encoding": (packed(b'{"\xff": 1}'), "not UTF-8"),
    "half a surrogate pair": (packed(b'{"\\ud800": {}}'), "half of a surrogate pair"),
    "bottomless nesting": (packed(b'{"a":' * 100_000), "has no entry"),
    "a name twice": (
        packed(b'{"a":%b,"a":%b}' % ((json.dumps(FLOAT).encode(),) * 2), b"\0" * 8),
        "'a' is there twice",
    ),
    "a key twice": (
        packed(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        "'dtype' is given twice",
    ),
    "metadata twice": (packed(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' is there twice"),
    "metadata that is no text": (packed({"__metadata__": {"a": 1}}), "should be a quotation mark"),
    "an unknown type": (packed({"a": {**FLOAT, "dtype": "PY"}}, b"\0" * 8), "of type 'PY'"),
    "half a byte": (packed({"a": {**FLOAT, "dtype": "F4"}}, b"\0" * 8), "of type 'F4'"),
    "an unknown key": (packed({"a": {**FLOAT, "strides": [1]}}, b"\0" * 8), "has the keys .*strides"),
    "a product that overflows": (
        packed({"a": {**FLOAT, "shape": [2**62, 8]}}, b"\0" * 8), "has shape"
    ),
    "another that overflows": (
        packed({"a": {**FLOAT, "shape": [2**33, 2**31, 2]}}, b"\0" * 8), "impossible shape"
    ),
    "nothing of an impossible size": (
        packed({"a": {"dtype": "U8", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}), "impossible shape"
    ),
    "a negative size": (packed({"a": {**FLOAT, "shape": [-2, -1]}}, b"\0" * 8), "has shape"),
    "a size that is a float": (packed({"a": {**FLOAT, "shape": [2.0]}}, b"\0" * 8), "has shape"),
    "a size that is true": (packed({"a": {**FLOAT, "shape": [True, 2]}}, b"\0" * 8), "has shape"),
    "a number of 4,000 digits": (
        packed(b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,8]}}' % (b"9" * 4000), b"\0" * 8),
        "a number has 4000 digits",
    ),
    "no number": (
        packed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', b"\0" * 8), "NaN is no number"
    ),
    "seventeen axes": (packed({"a": {**FLOAT, "shape": [1] * 16 + [2]}}, b"\0" * 8), "has shape"),
    "offsets reversed": (
        packed({"a": {**FLOAT, "data_offsets": [8, 0]}}, b"\0" * 8), "takes 8 bytes and has -8"
    ),
    "too few bytes": (packed({"a": FLOAT}, b"\0" * 7), "8 bytes and the file has 7: it is cut short"),
    "too many bytes": (packed({"a": FLOAT}, b"\0" * 9), "1 bytes at the end belong to no tensor"),
    "an overlap": (
        packed({"a": FLOAT, "b": {**FLOAT, "data_offsets": [4, 12]}}, b"\0" * 12), "'b' at 4 overlaps the one"
    ),
    "the same bytes twice": (packed({"a": FLOAT, "b": FLOAT}, b"\0" * 8), "overlaps the one before it"),
    "a gap": (
        packed({"a": FLOAT, "b": {**FLOAT, "data_offsets": [12, 20]}}, b"\0" * 20), "'b' at 12 leaves a gap"
    ),
    "a gap at the beginning": (packed({"a": {**FLOAT, "data_offsets": [4, 12]}}, b"\0" * 12), "leaves a gap"),
    "a truth that is neither": (
        packed({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2"),
        "bytes other than 0 and 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("content, reason", FORGED.values(), ids=FORGED)
def test_a_forged_header_is_refused_with_its_reason(content, reason, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        dict(SafetensorsFile(path))


def test_headers_in_any_order_and_spacing_are_read(tmp_path):
    header = (
        b'{ "b" : {"shape":[2] ,"data_offsets":[4,6],"dtype":"U8"},\n"a":%b, "__metadata__":{"k":"}{"} }  '
    )
    entry = json.dumps({"dtype": "F32", "shape": [], "data_offsets": [0, 4]}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed(header % entry, struct.pack("<f", 1.5) + b"\7\x08"))
    file = SafetensorsFile(path)
    assert file["a"].item() == 1.5
    assert file["b"].tolist() == [7, 8]
    assert file.metadata == {"k": "}{"}
    path.write_bytes(packed(b"{}"))
    assert dict(SafetensorsFile(path)) == {}


@pytest.mark.parametrize("name", ["claims", "names", "zeros", "numbers", "metadata"])
def test_no_more_memory_is_taken_than_a_few_times_the_file(name, tmp_path):
    """Headers made to be small on the disk and large in memory; tensors are counted, too."""
    content = {
        "claims": packed({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}),
        "names": packed(b"{" + b",".join(b'"%x":[]' % i for i in range(100_000)) + b"}"),
        "zeros": packed({"a": {"dtype": "U8", "shape": [0] * 200_000, "data_offsets": [0, 0]}}),
        "numbers": packed(b'{"a":' + b"[" * 500_000),
        "metadata": packed(b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(50_000)) + b"}"),
    }[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert read(path) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(content) + 200_000


def test_the_number_of_tensors_is_bounded(monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 100)
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    parse_header("{" + ",".join(entry % i for i in range(100)) + "}")
    with pytest.raises(NotJsonError, match="more than 100 tensors"):
        parse_header("{" + ",".join(entry % i for i in range(101)) + "}")


def test_reading_takes_the_memory_of_the_tensor_that_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({f"t{i}": torch.zeros(1 << 18) for i in range(8)}))
    tracemalloc.start()
    try:
        file = SafetensorsFile(path)
        before = tracemalloc.get_traced_memory()[1]
        file["t3"].sum()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert before < 100_000
    assert peak < 1.2 * (1 << 20)


def folder_of_shards(folder: Path, count: int = 3) -> dict[str, torch.Tensor]:
    """An index and its files; what is in them."""
    draw, everything, weight_map = random.Random(0), tensors(5), {}
    names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for name, tensor in everything.items():
        weight_map[name] = draw.choice(names)
        parts[weight_map[name]][name] = tensor
    for name, part in parts.items():
        (folder / name).write_bytes(save(part))
    weight_map = {k: v for k, v in weight_map.items() if v in weight_map.values()}
    index = {"metadata": {"total_size": 100}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return everything


def test_a_damaged_index_gives_all_tensors_or_a_refusal(tmp_path):
    expected = folder_of_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_bytes()
    assert weights_in(tmp_path).keys() == expected.keys()
    for content in mutations(whole, 1500, 3):
        index.write_bytes(content)
        try:
            found = weights_in(tmp_path)
        except HastenError:
            continue
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def with_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the weight_map of a folder."""
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    change(values["weight_map"])
    index.write_text(json.dumps(values))


def files_of(folder: Path) -> list[Path]:
    """The weights' files."""
    return sorted(folder.glob("model-*"))


def link_outside(folder: Path) -> None:
    """The first file is a link to itself, moved out of the folder."""
    first, outside = files_of(folder)[0], folder.parent / "elsewhere.safetensors"
    first.rename(outside)
    first.symlink_to(outside)


def replace_file(folder: Path, how: str) -> None:
    """The first file is something else."""
    first = files_of(folder)[0]
    first.unlink()
    if how == "circle":
        first.symlink_to(first)
    elif how == "folder":
        first.mkdir()
    elif how == "pipe":
        os.mkfifo(first)


def swap(weight_map: dict[str, str]) -> None:
    """A tensor is said to be in another file."""
    names = sorted(set(weight_map.values()))
    weight_map["layer.1"] = names[(names.index(weight_map["layer.1"]) + 1) % len(names)]


def cut_short(path: Path) -> None:
    """The last byte is gone."""
    path.write_bytes(path.read_bytes()[:-1])


def naming(name: Any) -> Callable[[Path], None]:
    """A tensor is said to be in the file `name`."""
    return lambda folder: with_index(folder, lambda weight_map: weight_map.update({"layer.1": name}))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "extra in the index": (
        lambda folder: with_index(folder, lambda m: m.update(ghost=files_of(folder)[0].name)),
        "holds 'ghost', which it does not",
    ),
    "missing in the index": (
        lambda folder: with_index(folder, lambda m: m.pop("layer.1")),
        "does not name 'layer.1'",
    ),
    "in another file": (lambda folder: with_index(folder, swap), "'layer.1'"),
    "a file missing": (lambda folder: replace_file(folder, "nothing"), "there is no such file"),
    "a file cut short": (lambda folder: cut_short(files_of(folder)[0]), "it is cut short"),
    "a file outside": (naming("../elsewhere.safetensors"), "not a file of this folder"),
    "a file of the system": (naming("/etc/passwd"), "not a file of this folder"),
    "a file of another system": (naming("..\\elsewhere"), "not a file of this folder"),
    "a link outside": (link_outside, "a link that leads out of its folder"),
    "a link in a circle": (lambda folder: replace_file(folder, "circle"), "cannot be looked up|no such file"),
    "a folder instead": (lambda folder: replace_file(folder, "folder"), "there is no such file"),
    "a pipe instead": (lambda folder: replace_file(folder, "pipe"), "there is no such file"),
    "a name with a zero": (naming("model\0.safetensors"), "not a file of this folder"),
    "a name beyond measure": (naming("m" * 5000), "cannot be looked up|there is no such file"),
    "a name that is a number": (naming(1), "'layer.1' should be in a file, got 1"),
    "one tensor in two files": (
        lambda folder: files_of(folder)[1].write_bytes(files_of(folder)[0].read_bytes()),
        "index.json: (says|does not name)",
    ),
    "nothing": (lambda folder: with_index(folder, lambda m: m.clear()), "has no weight_map"),
}


@pytest.mark.parametrize("change, reason", WRONG.values(), ids=WRONG)
def test_an_index_that_disagrees_with_its_files_is_refused(change, reason, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    folder_of_shards(folder)
    change(folder)
    with pytest.raises(CheckpointError, match=reason):
        dict(weights_in(folder))


def test_links_within_the_cache_of_the_hub_are_followed_and_no_further(tmp_path):
    """`snapshots/REVISION` holds links into `blobs`; one that leads further is refused."""
    snapshot = tmp_path / "models--owner--name/snapshots/abc"
    blobs = tmp_path / "models--owner--name/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f").write_bytes(save({"a": torch.ones(2)}))
    (snapshot / "model.safetensors").symlink_to("../../blobs/1f")
    assert weights_in(snapshot)["a"].tolist() == [1, 1]
    (blobs / "1f").rename(tmp_path / "1f")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../1f")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        weights_in(snapshot)
