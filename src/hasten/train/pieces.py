"""Tensors that many processes laid down in boxes, and any part of them read back by any other.

    weights/model.index.json                    which box of which tensor is where (`train/boxes.py`)
    weights/model-00001-of-00004.safetensors    the boxes of one process, each under its tensor's name

Where one process has everything there is `weights/model.safetensors` alone, and each tensor is one box.
Nothing is taken on trust, as in `model/safetensors_file.py`: each file says of itself where its boxes begin,
and an index that says otherwise is refused.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.core.foreign import NotJsonError, file_inside, parse
from hasten.model.safetensors_file import SafetensorsFile
from hasten.parallel.arrangement import Piece
from hasten.train.boxes import OTHER, Box, Whole, overlap, read_index

INDEX, FILE = ".index.json", ".safetensors"
STARTS = "starts"
"""The word under which a file says where its boxes begin, {name: [start in each dimension]}."""
BLOCK_BYTES = 1 << 26
"""Of rows that are read at a time where only some columns of them are wanted."""

Layout = dict[str, tuple[list[int], torch.dtype]]
"""Shape and type of each tensor."""


class Pieces(Mapping[str, Tensor]):
    """The tensors of a folder's `file` by name, whole or any part of them, read when they are asked for.

    `Pieces(folder, "weights/model")`.  What is wrong with an index is found here, what is wrong with one of
    several files when it is first needed; either is a `CheckpointError` that names it.
    """

    def __init__(self, folder: Path, file: str) -> None:
        self.path = folder / f"{file}{FILE}"
        self.opened: dict[str, SafetensorsFile] = {}
        if is_spread(folder, file):
            self.path = folder / f"{file}{INDEX}"
            self.wholes = read_index(self.path)
        else:
            self.wholes = self.open_single(self.path)
        self.held: dict[str, dict[str, Box]] = defaultdict(dict)
        for name, whole in self.wholes.items():
            for box in whole.boxes:
                if name in self.held[box.file]:
                    raise CheckpointError(f"{self.path}: {box.file[:80]} has two of '{name[:80]}'; {OTHER}")
                self.held[box.file][name] = box

    def open_single(self, path: Path) -> dict[str, Whole]:
        """The tensors of a file that has all of each."""
        found = self.opened[path.name] = SafetensorsFile(path)
        return {
            name: Whole(e.dtype, e.shape, [Box(path.name, (0,) * len(e.shape), e.shape)])
            for name, e in found.entries.items()
        }

    def part(self, name: str, piece: Piece) -> Tensor:
        """The box `piece` of the tensor `name`, on the CPU; only files that hold some of it are opened."""
        whole = self.wholes[name]
        shared = [(box, where) for box in whole.boxes if (where := overlap(box, piece))]
        files = [self.file(box.file) for box, _ in shared]  # before memory is taken for what they should hold
        if len(shared) == 1 and (shared[0][0].start, shared[0][0].shape) == (piece.start, piece.shape):
            return files[0][name]
        part = torch.empty(piece.shape, dtype=whole.dtype)
        for file, (_, (there, here)) in zip(files, shared, strict=True):
            copy_rows(file, name, there, part[here])
        return part

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor `name`."""
        shape = self.wholes[name].shape
        return self.part(name, Piece((0,) * len(shape), shape, shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.wholes)

    def __len__(self) -> int:
        return len(self.wholes)

    def __contains__(self, name: object) -> bool:
        return name in self.wholes

    def layout(self) -> Layout:
        """Shape and type of each tensor, for which nothing is read."""
        return {name: (list(whole.shape), whole.dtype) for name, whole in self.wholes.items()}

    def files(self, wanted: Mapping[str, Piece]) -> set[str]:
        """The files that these parts lie in, by their names beside the index."""
        boxes = [(box, piece) for name, piece in wanted.items() for box in self.wholes[name].boxes]
        return {box.file for box, piece in boxes if overlap(box, piece)}

    def file(self, name: str) -> SafetensorsFile:
        """One of the files, which must hold what the index says and nothing else."""
        if name not in self.opened:
            found = SafetensorsFile(file_inside(self.path.parent, name, str(self.path)))
            self.check_file(found, self.held[name])
            self.opened[name] = found
        return self.opened[name]

    def check_file(self, file: SafetensorsFile, boxes: Mapping[str, Box]) -> None:
        """Refuse a file that is not as the index says."""
        starts = starts_in(file)
        for name in sorted(file.entries.keys() | boxes.keys() | starts.keys()):
            entry, box = file.entries.get(name), boxes.get(name)
            said = (self.wholes[name].dtype, box.shape, list(box.start)) if box else None
            if entry is None or said != (entry.dtype, entry.shape, starts.get(name)):
                raise CheckpointError(
                    f"{file.path}: holds '{name[:80]}' otherwise than {self.path.name} says; {OTHER}"
                )


def is_spread(folder: Path, file: str) -> bool:
    """Whether the tensors of a folder's `file` lie in several files, with an index."""
    single, index = folder / f"{file}{FILE}", folder / f"{file}{INDEX}"
    if single.exists() and index.exists():
        raise CheckpointError(f"{folder}: has both {file}{FILE} and {file}{INDEX}; {OTHER}")
    return index.exists()


def copy_rows(file: SafetensorsFile, name: str, where: tuple[slice, ...], to: Tensor) -> None:
    """Copy a part of a file's tensor: whole rows are read, some at a time, and the columns taken out."""
    rows, columns = where[0], where[1:]
    entry = file.entries[name]
    step = max(BLOCK_BYTES * entry.shape[0] // (entry.end - entry.begin), 1)
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        to[start - rows.start : stop - rows.start] = file.rows(name, start, stop)[(slice(None), *columns)]


def starts_of(pieces: Mapping[str, Piece]) -> dict[str, str]:
    """What a file of boxes says of itself, as its metadata."""
    return {STARTS: json.dumps({name: piece.start for name, piece in pieces.items()})}


def starts_in(file: SafetensorsFile) -> dict[str, Any]:
    """Where the boxes of a file begin, as it says itself."""
    try:
        starts = parse(file.metadata.get(STARTS, "").encode())
    except NotJsonError as error:
        raise CheckpointError(f"{file.path}: does not say where its boxes begin ({error}); {OTHER}") from None
    if not isinstance(starts, dict):
        raise CheckpointError(f"{file.path}: does not say where its boxes begin; {OTHER}")
    return starts
