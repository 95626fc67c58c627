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
from hasten.core.files import write_json, write_text
from hasten.model.transformer import Transformer
from hasten.train.optim import Optimizer

MODEL, TOKENIZER = "model.yaml", "tokenizer.json"
WEIGHTS, OPTIMIZER, RANDOM = "weights/model", "state/optimizer", "state/random"  # .safetensors
STATE, RANDOM_NUMBERS = "state/state.json", "state/random.json"


def weights_of(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors by name; a tensor that two modules share is there once."""
    live = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name, tensor in live.items():
        names.setdefault(id(tensor), name)
    return {name: live[name].detach() for name in names.values()}


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


def layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shape and type of each tensor."""
    return {name: (list(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Snapshot:
    """A training at one step: everything that a later process needs to go on as if nothing had happened."""

    tensors: dict[str, Tensor]  # "{file without suffix}:{name}", all in CPU memory
    model: str  # model.yaml
    state: dict[str, Any]
    random_numbers: dict[str, Any]
    tokenizer: Path | None

    @classmethod
    def take(
        cls,
        stage: Stage,
        model: Transformer,
        optimizer: Optimizer,
        state: dict[str, Any],
        tokenizer: Path | None,
    ) -> "Snapshot":
        """Copy a training as it is now into `stage`; returns when the live tensors may change again."""
        generators, numbers = random_state()
        groups = {WEIGHTS: weights_of(model), OPTIMIZER: optimizer.state_dict(), RANDOM: generators}
        live = {f"{file}:{name}": t for file, tensors in groups.items() for name, t in tensors.items()}
        # Through JSON and back: what the caller changes later is no part of the snapshot.
        kept = json.loads(json.dumps({"state": state, "numbers": numbers}))
        return cls(stage.copy(live), dump(model.config), kept["state"], kept["numbers"], tokenizer)

    def write(self, folder: Path) -> None:
        """Lay the snapshot down in an empty folder."""
        (folder / WEIGHTS).parent.mkdir()
        (folder / STATE).parent.mkdir()
        for file in (WEIGHTS, OPTIMIZER, RANDOM):
            prefix = f"{file}:"
            own = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
            save_file(own, folder / f"{file}.safetensors", metadata={"format": "pt"})
        write_text(folder / MODEL, self.model)
        write_json(folder / STATE, self.state)
        write_text(folder / RANDOM_NUMBERS, json.dumps(self.random_numbers))
        if self.tokenizer is not None:
            source = self.tokenizer / TOKENIZER if self.tokenizer.is_dir() else self.tokenizer
            shutil.copyfile(source, folder / TOKENIZER)


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
