"""The index of tensors that lie in boxes in several files: made, checked, read.

    {"files": ["model-00001-of-00002.safetensors", ...],
     "tensors": {name: {"dtype": "F32", "shape": [8, 4], "boxes": [[number of the file, start, shape], ...]}}}

The boxes of a tensor must tile it: an index that leaves a gap or counts a number twice is refused, when it is
written and when it is read.
"""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hasten.core.errors import CheckpointError
from hasten.core.foreign import NotJsonError, mapping
from hasten.model.safetensors_file import DTYPES, MAX_BYTES, MAX_TENSORS, counts
from hasten.parallel.arrangement import Piece

MAX_INDEX_BYTES, MAX_DIMS, MAX_NAME = 1 << 29, 8, 255
WORDS = {dtype: word for word, dtype in DTYPES.items()}
OTHER = "use another checkpoint"


class Box(NamedTuple):
    """A part of a tensor, and the file that holds it."""

    file: str
    start: tuple[int, ...]
    shape: tuple[int, ...]


class Whole(NamedTuple):
    """A tensor, and the boxes that it lies in."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    boxes: list[Box]


def overlap(box: Box, piece: Piece) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What a box and a piece of one tensor share, as slices of the box and of the piece; None for nothing."""
    spans = [
        (max(a, b), min(a + n, b + m))
        for a, n, b, m in zip(box.start, box.shape, piece.start, piece.shape, strict=True)
    ]
    if any(begin >= end for begin, end in spans):
        return None
    there, here = (
        tuple(slice(begin - at, end - at) for (begin, end), at in zip(spans, starts, strict=True))
        for starts in (box.start, piece.start)
    )
    return there, here


def index_of(files: Mapping[str, Mapping[str, tuple[torch.dtype, Piece]]]) -> dict[str, Any]:
    """The index of what several files hold, {name: its type, its piece} of each.

    Raises CheckpointError for a tensor that they do not hold whole, or not once.
    """
    wholes: dict[str, Whole] = {}
    for file, tensors in files.items():
        for name, (dtype, piece) in tensors.items():
            whole = wholes.setdefault(name, Whole(dtype, piece.whole, []))
            if (dtype, piece.whole) != whole[:2]:
                raise CheckpointError(
                    f"'{name}' is {list(piece.whole)} {dtype} in {file} and other elsewhere"
                )
            whole.boxes.append(Box(file, piece.start, piece.shape))
    for name, whole in wholes.items():
        check_tiling(name, whole)
    number = {file: at for at, file in enumerate(files)}
    return {
        "files": list(files),
        "tensors": {
            name: {
                "dtype": WORDS[whole.dtype],
                "shape": whole.shape,
                "boxes": [(number[box.file], box.start, box.shape) for box in whole.boxes],
            }
            for name, whole in sorted(wholes.items())
        },
    }


def check_tiling(name: str, whole: Whole) -> None:
    """Refuse boxes that do not cover a tensor, each number once.

    How often each number is counted follows from the boxes' corners, counted plus or minus by how many of
    their sides are far ones: it is once everywhere just where the corners are those of the tensor itself.
    So no pair of boxes has to be compared.
    """
    corners: Counter[tuple[int, ...]] = Counter()
    for box in whole.boxes:
        if len(box.start) != len(whole.shape) or (0 in box.shape and len(whole.boxes) > 1):
            raise CheckpointError(f"a box of '{name[:80]}' has the shape {list(box.shape)}")
        add_corners(corners, box.start, box.shape, 1)
    add_corners(corners, (0,) * len(whole.shape), whole.shape, -1)
    if any(corners.values()):
        raise CheckpointError(f"the boxes of '{name[:80]}' do not make up its {list(whole.shape)}")


def add_corners(
    corners: Counter[tuple[int, ...]], start: tuple[int, ...], shape: tuple[int, ...], times: int
) -> None:
    """Count the corners of one box."""
    for far in product((0, 1), repeat=len(start)):
        corner = tuple(at + size * side for at, size, side in zip(start, shape, far, strict=True))
        corners[corner] += times * (-1) ** sum(far)


def read_index(path: Path) -> dict[str, Whole]:
    """What an index says, every word of it checked; a fault is a CheckpointError that names the file."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: has more than {MAX_INDEX_BYTES >> 20} MiB, which no index has")
        index = mapping(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {OTHER}") from None
    try:
        return wholes_in(index)
    except (CheckpointError, NotJsonError) as error:
        raise CheckpointError(f"{path}: {error}; {OTHER}") from None


def wholes_in(index: dict[str, Any]) -> dict[str, Whole]:
    """The tensors of an index; a complaint does not name the file."""
    files, tensors = index.get("files"), index.get("tensors")
    if index.keys() != {"files", "tensors"} or not isinstance(files, list) or not isinstance(tensors, dict):
        raise NotJsonError("should hold a list of files and a mapping of tensors")
    if not all(isinstance(name, str) and len(name) <= MAX_NAME for name in files):
        raise NotJsonError(f"should name files by at most {MAX_NAME} characters")
    if len(set(files)) != len(files):
        raise NotJsonError("should name each file once")
    if not tensors or len(tensors) > MAX_TENSORS:
        raise NotJsonError(f"should name a tensor at least and at most {MAX_TENSORS:,}")
    wholes = {name: whole_in(name, entry, files) for name, entry in tensors.items()}
    idle = set(files) - {box.file for whole in wholes.values() for box in whole.boxes}
    if idle:
        raise NotJsonError(f"names {min(idle)[:80]!r}, which holds nothing")
    return wholes


def whole_in(name: str, entry: Any, files: list[str]) -> Whole:
    """One tensor of an index."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "boxes"}:
        raise NotJsonError(f"'{name[:80]}' should have a dtype, a shape and boxes")
    dtype, shape, boxes = entry["dtype"], entry["shape"], entry["boxes"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise NotJsonError(f"'{name[:80]}' is of type {str(dtype)[:20]!r}, which hasten does not read")
    if not counts(shape) or len(shape) > MAX_DIMS or not isinstance(boxes, list) or not boxes:
        raise NotJsonError(f"'{name[:80]}' has the shape {str(shape)[:80]} and boxes {str(boxes)[:80]}")
    if math.prod(filter(None, shape)) * DTYPES[dtype].itemsize >= MAX_BYTES:
        raise NotJsonError(f"'{name[:80]}' has the impossible shape {str(shape)[:80]}")
    whole = Whole(DTYPES[dtype], tuple(shape), [box_in(name, box, files) for box in boxes])
    check_tiling(name, whole)
    return whole


def box_in(name: str, box: Any, files: list[str]) -> Box:
    """One box of an index."""
    if isinstance(box, list) and len(box) == 3:
        at, start, shape = box
        if counts([at]) and at < len(files) and counts(start) and counts(shape) and len(start) == len(shape):
            return Box(files[at], tuple(start), tuple(shape))
    raise NotJsonError(f"a box of '{name[:80]}' should be [file, start, shape], got {str(box)[:80]}")
