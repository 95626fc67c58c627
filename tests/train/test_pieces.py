"""Tensors in boxes over several files: any part reads back exactly, and only tilings are an index."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.parallel.arrangement import Piece
from hasten.train import pieces
from hasten.train.boxes import Box, Whole, check_tiling, index_of, overlap
from hasten.train.pieces import Pieces, starts_of

FILE = "weights/model"


def tiling(shape: tuple[int, ...], cuts: int, dice: random.Random) -> list[Piece]:
    """A random tiling: one box, of which one part after the other is cut in two somewhere."""
    boxes = [((0,) * len(shape), shape)]
    for _ in range(cuts):
        start, size = boxes.pop(dice.randrange(len(boxes)))
        dims = [dim for dim, length in enumerate(size) if length > 1]
        if not dims:
            boxes.append((start, size))
            continue
        dim = dice.choice(dims)
        at = dice.randrange(1, size[dim])
        first, rest, further = list(size), list(size), list(start)
        first[dim], rest[dim], further[dim] = at, size[dim] - at, start[dim] + at
        boxes += [(start, tuple(first)), (tuple(further), tuple(rest))]
    return [Piece(start, size, shape) for start, size in boxes]


def write(folder: Path, wholes: dict[str, Tensor], cuts: dict[str, list[Piece]], files: int) -> None:
    """Deal the boxes of each tensor out to files, at most one to each."""
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    held: dict[str, dict[str, Piece]] = {
        f"model-{i + 1:05}-of-{files:05}.safetensors": {} for i in range(files)
    }
    for name, boxes in cuts.items():
        for file, box in zip(held, boxes, strict=False):
            held[file][name] = box
    held = {file: boxes for file, boxes in held.items() if boxes}
    for file, boxes in held.items():
        own = {name: wholes[name][box.slices].clone() for name, box in boxes.items()}
        save_file(own, folder / "weights" / file, metadata={"format": "pt", **starts_of(boxes)})
    told = {f: {n: (wholes[n].dtype, box) for n, box in boxes.items()} for f, boxes in held.items()}
    (folder / f"{FILE}.index.json").write_text(json.dumps(index_of(told)))


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=3), st.integers(0, 10**6), st.sampled_from([8, 64, 1 << 26]))
def test_any_part_of_any_tiling_reads_back_exactly(tmp_path_factory, shape, seed, block):
    dice, folder = random.Random(seed), tmp_path_factory.mktemp("folder")
    pieces.BLOCK_BYTES = block
    dtype = dice.choice((torch.float32, torch.bfloat16, torch.int64))
    wholes = {name: numbers(tuple(shape), dtype, seed + i) for i, name in enumerate("ab")}
    cuts = {name: tiling(tuple(shape), dice.randrange(8), dice) for name in wholes}
    for boxes in cuts.values():
        dice.shuffle(boxes)
    write(folder, wholes, cuts, files=8)
    read = Pieces(folder, FILE)
    assert read.layout() == dict.fromkeys(wholes, (shape, dtype))
    for name, whole in wholes.items():
        assert torch.equal(read[name], whole)
        start = tuple(dice.randrange(n + 1) for n in shape)
        size = tuple(dice.randrange(n - at + 1) for n, at in zip(shape, start, strict=True))
        piece = Piece(start, size, tuple(shape))
        assert torch.equal(read.part(name, piece), whole[piece.slices])
        expected = [box for box in cuts[name] if overlap(Box("", box.start, box.shape), piece)]
        assert len(read.files({name: piece})) == len(expected)


def test_only_files_that_hold_some_of_a_part_are_opened(tmp_path):
    whole = numbers((6, 4), torch.float32, 0)
    boxes = [Piece((at, 0), (2, 4), (6, 4)) for at in (0, 2, 4)]
    write(tmp_path, {"a": whole}, {"a": boxes}, files=3)
    (tmp_path / "weights/model-00002-of-00003.safetensors").unlink()
    read = Pieces(tmp_path, FILE)
    piece = Piece((5, 1), (1, 2), (6, 4))
    assert torch.equal(read.part("a", piece), whole[5:6, 1:3])
    assert list(read.opened) == ["model-00003-of-00003.safetensors"]
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors: there is no such file"):
        read.part("a", Piece((1, 0), (2, 1), (6, 4)))


def test_a_single_file_is_read_in_parts_too(tmp_path):
    whole = numbers((5, 7), torch.float32, 0)
    (tmp_path / "weights").mkdir()
    save_file(
        {"a": whole, "none": torch.zeros(2, 0), "one": torch.tensor(3)}, tmp_path / f"{FILE}.safetensors"
    )
    read = Pieces(tmp_path, FILE)
    assert torch.equal(read.part("a", Piece((1, 2), (3, 4), (5, 7))), whole[1:4, 2:6])
    assert read["none"].shape == (2, 0) and read["one"] == 3


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_tiling_is_what_counts_every_number_once(data):
    """Held to a count of every number, over boxes that often tile and often do not."""
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    dice = random.Random(data.draw(st.integers(0, 10**6)))
    boxes = [Box("", piece.start, piece.shape) for piece in tiling(shape, dice.randrange(5), dice)]
    for _ in range(dice.choice((0, 0, 1, 2))):
        at = dice.randrange(len(boxes))
        start = tuple(dice.randrange(n) for n in shape)
        size = tuple(dice.randrange(1, n + 2) for n in shape)
        boxes[at : at + dice.randrange(2)] = [Box("", start, size)]
    counted = np.zeros([2 * n + 1 for n in shape], dtype=int)
    for box in boxes:
        counted[Piece(box.start, box.shape, shape).slices] += 1
    inside = np.zeros_like(counted)
    inside[tuple(slice(n) for n in shape)] = 1
    whole = Whole(torch.float32, shape, boxes)
    if (counted == inside).all():
        check_tiling("a", whole)
    else:
        with pytest.raises(CheckpointError, match="the boxes of 'a' do not make up its"):
            check_tiling("a", whole)


def test_boxes_of_other_wholes_and_types_make_no_index():
    half, other = Piece((0,), (1,), (2,)), Piece((1,), (1,), (3,))
    with pytest.raises(CheckpointError, match=r"'a' is \[3\] torch.float32 in two and other elsewhere"):
        index_of({"one": {"a": (torch.float32, half)}, "two": {"a": (torch.float32, other)}})
    with pytest.raises(CheckpointError, match="the boxes of 'a' do not make up"):
        index_of({"one": {"a": (torch.float32, half)}})


def test_an_index_beside_a_single_file_is_refused(tmp_path):
    whole = numbers((2,), torch.float32, 0)
    write(tmp_path, {"a": whole}, {"a": [Piece((0,), (2,), (2,))]}, files=1)
    save_file({"a": whole}, tmp_path / f"{FILE}.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has both weights/model\.safetensors and weights/model\.index"
    ):
        Pieces(tmp_path, FILE)
