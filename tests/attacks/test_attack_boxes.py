"""Damaged and forged indices of checkpoints in parts: refused by name, or exactly what was written."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from mutations import SCALE, changed_values, mutations
from safetensors.torch import save_file
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.parallel.arrangement import Piece
from hasten.train.boxes import index_of
from hasten.train.pieces import Pieces, starts_of

FILE = "weights/model"
WHOLES = {
    "layers.0.up.weight": torch.arange(48.0).view(8, 6),
    "layers.0.down.weight": -torch.arange(48.0).view(8, 6),
    "norm.weight": torch.arange(8.0),
    "scale": torch.tensor(2.0),
}


def held(number: int) -> dict[str, Piece]:
    """What one of four processes has: quarters of matrices, halves of a vector; one has the scalar."""
    row, column = divmod(number, 2)
    quarter = Piece((4 * row, 3 * column), (4, 3), (8, 6))
    boxes = {"layers.0.up.weight": quarter, "layers.0.down.weight": quarter}
    boxes |= {"norm.weight": Piece((4 * row,), (4,), (8,))} if column == 0 else {}
    return boxes | ({"scale": Piece((), (), ())} if number == 0 else {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of four files and their index."""
    (tmp_path / "weights").mkdir()
    told = {}
    for number in range(4):
        boxes, name = held(number), f"model-{number + 1:05}-of-00004.safetensors"
        own = {name: WHOLES[name][box.slices].clone() for name, box in boxes.items()}
        save_file(own, tmp_path / "weights" / name, metadata={"format": "pt", **starts_of(boxes)})
        told[name] = {n: (torch.float32, box) for n, box in boxes.items()}
    (tmp_path / f"{FILE}.index.json").write_text(json.dumps(index_of(told)))
    return tmp_path


def read(folder: Path) -> dict[str, Tensor] | None:
    """All tensors whole; None where they are refused in one sentence that names a file."""
    try:
        return dict(Pieces(folder, FILE))
    except CheckpointError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        assert len(str(error)) < 1000
        return None


def check(folder: Path) -> bool:
    """Whether the folder is read; then every number is as it was written."""
    found = read(folder)
    if found is None:
        return False
    assert found.keys() == WHOLES.keys()
    assert all(torch.equal(found[name], whole) for name, whole in WHOLES.items())
    return True


def test_an_index_of_nothing_is_refused(folder: Path) -> None:
    (folder / f"{FILE}.index.json").write_text('{"files": [], "tensors": {}}')
    assert not check(folder)


def test_an_undamaged_folder_is_read(folder: Path) -> None:
    assert check(folder)


def test_damaged_indices_are_refused_or_read_exactly(folder: Path) -> None:
    path = folder / f"{FILE}.index.json"
    text = path.read_bytes()
    accepted = 0
    for damaged in mutations(text, 500, seed=11):
        path.write_bytes(damaged)
        accepted += check(folder)
    for changed in changed_values(json.loads(text), 200, seed=12):
        path.write_text(json.dumps(changed))
        accepted += check(folder)
    assert accepted < 140 * SCALE, "most damage shows"


def test_damaged_files_of_boxes_are_refused_or_read_as_they_are_laid_out(folder: Path) -> None:
    path = folder / "weights/model-00002-of-00004.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for damaged in mutations(whole, 300, seed=13, text_ends=header):
        path.write_bytes(damaged)
        found = read(folder)
        if found is not None:  # a number may differ, which the manifest's digest finds; no place of one may
            assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in WHOLES.items()}
            assert all(torch.equal(found[n][4:], WHOLES[n][4:]) for n in WHOLES if n != "scale")


def forged(folder: Path, **fields: Any) -> None:
    """The index with one tensor more."""
    path = folder / f"{FILE}.index.json"
    index = json.loads(path.read_text())
    entry = {"dtype": "F32", "shape": [2], "boxes": [[0, [0], [2]]], **fields}
    path.write_text(json.dumps({**index, "tensors": {**index["tensors"], "evil": entry}}))


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({}, "holds 'evil' otherwise than model.index.json says"),
        ({"shape": [2**61], "boxes": [[0, [0], [2**61]]]}, "has the impossible shape"),
        ({"shape": [2**40], "boxes": [[0, [0], [2**40]]]}, "holds 'evil' otherwise than"),
        ({"shape": [1] * 9, "boxes": [[0, [0] * 9, [1] * 9]]}, "has the shape"),
        ({"shape": [-2], "boxes": [[0, [0], [-2]]]}, "has the shape"),
        ({"boxes": []}, "has the shape"),
        ({"boxes": [[4, [0], [2]]]}, "should be [file, start, shape]"),
        ({"boxes": [[-1, [0], [2]]]}, "should be [file, start, shape]"),
        ({"boxes": [[0, [0], [1]], [0, [1], [1]]]}, "has two of 'evil'"),
        ({"boxes": [[0, [0], [2]], [1, [1], [1]]]}, "do not make up its [2]"),
        ({"boxes": [[0, [0], [2]], [1, [2], [0]]]}, "a box of 'evil' has the shape [0]"),
        ({"boxes": [[0, [0], [1]]]}, "do not make up its [2]"),
        ({"boxes": [[0, [2**62], [2]]]}, "should be [file, start, shape]"),
        ({"dtype": "PY"}, "is of type 'PY'"),
    ],
    ids=str,
)
def test_hostile_entries_are_refused(folder: Path, fields: dict[str, Any], complaint: str) -> None:
    forged(folder, **fields)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        dict(Pieces(folder, FILE))
    assert complaint in str(caught.value) and str(folder) in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["../model-00001-of-00004.safetensors", "/etc/passwd", "", ".", "a\0b"])
def test_an_index_leads_nowhere_else(folder: Path, name: str) -> None:
    path = folder / f"{FILE}.index.json"
    path.write_text(path.read_text().replace("model-00001-of-00004.safetensors", json.dumps(name)[1:-1]))
    with pytest.raises(CheckpointError, match="is not a file of this folder"):
        dict(Pieces(folder, FILE))


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path_factory) -> None:
    path = folder / "weights/model-00001-of-00004.safetensors"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        dict(Pieces(folder, FILE))


def test_boxes_that_changed_places_are_found_out(folder: Path) -> None:
    """Both tile, and only the files themselves tell which is which."""
    one, two = (folder / f"weights/model-0000{i}-of-00004.safetensors" for i in (2, 4))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    with pytest.raises(CheckpointError, match=r"otherwise than model\.index\.json says"):
        dict(Pieces(folder, FILE))
