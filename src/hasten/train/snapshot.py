"""What a training is made of at one instant: copied aside, written to a folder, put back.

Taking a snapshot is all that a training has to wait for; writing it can go on beside the next steps.
"""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.core.config import dump
from hasten.core.console import say
from hasten.core.files import Record, vouched, write_json, write_text
from hasten.model.transformer import Transformer
from hasten.parallel.arrangement import Arrangement, Piece
from hasten.tokenizer.files import GENERATION_FILE, ROLES_FILE
from hasten.train.held import OPTIMIZER, WEIGHTS, held_here, is_spread_out, place_of, spoken_for
from hasten.train.optim import Optimizer
from hasten.train.pieces import FILE, Layout, starts_of

MODEL, TOKENIZER, ADAPTER = "model.yaml", "tokenizer.json", "adapter.yaml"
STATE, RANDOM = "state/state.json", "state/random"


@dataclass(frozen=True)
class Part:
    """What one of several processes wrote: what the others need to know of it."""

    records: dict[str, Record]  # of each file
    boxes: dict[str, dict[str, tuple[torch.dtype, Piece]]]  # of each of WEIGHTS and OPTIMIZER, by name
    mark: str


def mark_of(rank: int, world_size: int) -> str:
    """What the names of a process's own files end in: `mark_of(0, 8)` -> `-00001-of-00008`."""
    return f"-{rank + 1:05}-of-{world_size:05}"


@dataclass
class Stage:
    """One copy of a training in CPU memory, reused from save to save.

    Reused because fresh memory is slow: the first touch of a page costs far more than copying into it.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def copy(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy every tensor of `live` aside; the copies stay as they are until the next call."""
        if layout(self.tensors) != layout(live):
            self.tensors.clear()  # the old copy goes before the new one comes
            self.tensors.update({name: beside(tensor) for name, tensor in live.items()})
        for name, tensor in live.items():
            self.tensors[name].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in live.values()):
            torch.cuda.synchronize()
        return self.tensors


def beside(tensor: Tensor) -> Tensor:
    """Room for a copy in CPU memory, where a GPU can write to it without waiting."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Shape and type of each tensor."""
    return {name: (list(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Snapshot:
    """A training at one step: everything that a later process needs to go on as if nothing had happened.

    Where it is spread over processes, what one of them has to write of it.
    """

    tensors: dict[str, Tensor]  # "{file without suffix}:{name}", all in CPU memory
    pieces: dict[str, dict[str, Piece]]  # of each of WEIGHTS and OPTIMIZER, which boxes its tensors are
    mark: str  # what its files' names end in; empty where one process writes all
    model: str  # model.yaml
    state: dict[str, Any]
    random_numbers: dict[str, Any]
    tokenizer: Path | None
    leads: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)  # further files of text by name

    @classmethod
    def take(
        cls,
        stage: Stage,
        model: Transformer,
        optimizer: Optimizer,
        state: dict[str, Any],
        tokenizer: Path | None,
        *,
        arrangement: Arrangement | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> "Snapshot":
        """Copy a training as it is now into `stage`; returns when the live tensors may change again."""
        generators, numbers = random_state()
        held, mark, leads = held_here(model, optimizer, arrangement), "", True
        if arrangement is not None and is_spread_out(arrangement):
            rank, world_size = place_of(arrangement)
            held, mark, leads = spoken_for(held, arrangement), mark_of(rank, world_size), rank == 0
        live = {f"{RANDOM}:{name}": tensor for name, tensor in generators.items()}
        live |= {f"{file}:{name}": it.tensor for file, group in held.items() for name, it in group.items()}
        pieces = {file: {name: it.piece for name, it in group.items()} for file, group in held.items()}
        # Through JSON and back: what the caller changes later is no part of the snapshot.
        kept = json.loads(json.dumps({"state": state, "numbers": numbers}))
        what = dump(model.config), kept["state"], kept["numbers"], tokenizer, leads, notes or {}
        return cls(stage.copy(live), pieces, mark, *what)

    def write(self, folder: Path) -> None:
        """Lay the snapshot down in a folder that holds nothing yet, or what other processes lay there."""
        for file in (WEIGHTS, OPTIMIZER, RANDOM):
            (folder / file).parent.mkdir(exist_ok=True)
            tensors = self.group(file)
            starts = starts_of(self.pieces[file]) if self.mark and file in self.pieces else {}
            if tensors or not self.mark:
                save_file(tensors, folder / f"{file}{self.mark}{FILE}", metadata=starts or {"format": "pt"})
        write_text(folder / f"{RANDOM}{self.mark}.json", json.dumps(self.random_numbers))
        if self.leads:
            self.write_common(folder)

    def write_common(self, folder: Path) -> None:
        """What there is once, however many write."""
        write_text(folder / MODEL, self.model)
        write_json(folder / STATE, self.state)
        for name, text in self.notes.items():
            write_text(folder / name, text)
        if self.tokenizer is not None:
            source = self.tokenizer / TOKENIZER if self.tokenizer.is_dir() else self.tokenizer
            shutil.copyfile(source, folder / TOKENIZER)
            for name in (ROLES_FILE, GENERATION_FILE):  # which of its tokens begin and end a text
                if source.with_name(name).is_file() and name not in self.notes:
                    shutil.copyfile(source.with_name(name), folder / name)

    def group(self, file: str) -> dict[str, Tensor]:
        """The tensors of one file, by name."""
        prefix = f"{file}:"
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    def part(self, folder: Path) -> Part:
        """What of this process's own lies in `folder`, flushed to the disk."""
        files = [f"{file}{self.mark}{FILE}" for file in (WEIGHTS, OPTIMIZER, RANDOM) if self.group(file)]
        files.append(f"{RANDOM}{self.mark}.json")
        boxes = {
            file: {name: (self.tensors[f"{file}:{name}"].dtype, piece) for name, piece in pieces.items()}
            for file, pieces in self.pieces.items()
        }
        return Part({name: vouched(folder / name) for name in files}, boxes, self.mark)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and optimizer that this process writes."""
        return num_bytes({name: t for name, t in self.tensors.items() if not name.startswith(f"{RANDOM}:")})


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that `tensors` hold together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where every random generator stands: torch's as tensors, Python's and numpy's as numbers."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = np.random.get_state(legacy=True)
    return tensors, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def set_random_state(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put every random generator where `random_state` found it."""
    version, internal, gauss = numbers["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = numbers["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["cpu"])
    gpus = torch.cuda.device_count()
    for key in sorted(tensors.keys() - {"cpu"}):
        index = int(key.removeprefix("cuda:"))
        if index < gpus:
            torch.cuda.set_rng_state(tensors[key], index)
        else:
            say(f"the checkpoint knows the random state of {key}, which is not here: dropout will differ")
