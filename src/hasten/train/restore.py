"""Reading checkpoints: which one is whole, a training put back, a model taken out.

Nothing is read before every byte of the folder is as its manifest says, and no file is ever unpickled.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.core.config import load
from hasten.core.console import say
from hasten.core.errors import CheckpointError
from hasten.core.files import MANIFEST, damage, read_manifest
from hasten.model.config import ModelConfig
from hasten.model.interop import load_hugging_face
from hasten.model.safetensors_file import SafetensorsFile
from hasten.model.transformer import Transformer, assemble
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.optim import Optimizer
from hasten.train.snapshot import (
    MODEL,
    OPTIMIZER,
    RANDOM,
    RANDOM_NUMBERS,
    STATE,
    TOKENIZER,
    WEIGHTS,
    layout,
    set_random_state,
    weights_of,
)


def checkpoints_in(folder: Path) -> list[Path]:
    """Every `step-…` folder of a run, newest first, whole or not."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def by_metric(folder: Path) -> Iterator[Path]:
    """The checkpoints that have a metric, the lowest first; of equals, the newest."""
    notes = [(path, (read_manifest(path) or {"note": {}})["note"]) for path in checkpoints_in(folder)]
    scored = [(note["metric"], path) for path, note in notes if is_number(note.get("metric"))]
    yield from (path for _, path in sorted(scored, key=lambda pair: pair[0]))


def is_number(value: object) -> bool:
    """Whether a metric can be compared."""
    return isinstance(value, int | float) and math.isfinite(value)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's `checkpoints` folder; damaged ones are named and passed over.

    None where there is no checkpoint.  Raises `CheckpointError` where all are damaged: to begin anew
    without a word would throw a training away.
    """
    return first_whole(folder, checkpoints_in(folder))


def best(folder: Path) -> Path | None:
    """As `latest`, for the lowest metric instead of the highest step."""
    return first_whole(folder, list(by_metric(folder)))


def first_whole(folder: Path, candidates: list[Path]) -> Path | None:
    """The first candidate without damage."""
    for candidate in candidates:
        problem = damage(candidate)
        if problem is None:
            return candidate
        say(f"{candidate} is damaged and passed over: {problem}")
    if candidates:
        raise CheckpointError(
            f"{folder}: all {len(candidates)} checkpoints are damaged; bring one back from a copy, or move"
            " the folder away to begin anew"
        )
    return None


def restore(folder: Path, model: Transformer, optimizer: Optimizer) -> dict[str, Any]:
    """Put a training back to where `folder` was saved, bit for bit; returns the saved `state`.

    Weights, optimizer and the random generators of torch, Python and numpy are set.  Raises
    `CheckpointError`, with nothing changed, where the folder is damaged or holds another model or optimizer.
    """
    check(folder)
    weights, moments = read_tensors(folder, WEIGHTS), read_tensors(folder, OPTIMIZER)
    generators, numbers = read_tensors(folder, RANDOM), read_mapping(folder, RANDOM_NUMBERS)
    state = read_mapping(folder, STATE)
    compare(folder, "weight", weights, weights_of(model))
    compare(folder, "optimizer state", moments, optimizer.state_dict())
    compare_configs(folder, model.config)
    assign(model, weights)
    optimizer.load_state_dict(moments)
    try:
        set_random_state(generators, numbers)
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{folder / RANDOM_NUMBERS}: is no random state ({error})") from None
    return state


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer | None]:
    """The model in `folder`, in evaluation mode, and its tokenizer where there is one.

    `folder` is a run (its best checkpoint, or the latest where none has a metric), a checkpoint, or a
    model as Hugging Face lays it out (config.json and safetensors).
    """
    folder = checkpoint_in(folder)
    if is_checkpoint(folder):
        check(folder)
        model = load_assembled(folder, device)
    else:
        model = load_hugging_face(folder).to(device)
    tokenizer = Tokenizer.load(folder) if (folder / TOKENIZER).is_file() else None
    return model.eval(), tokenizer


def load_assembled(folder: Path, device: torch.device | str) -> Transformer:
    """The model of a checkpoint, built without drawing weights that would be overwritten.

    Its numbers are float32 whatever their type in the file: an imported model keeps the type it came in.
    """
    with torch.device("meta"):
        model: Transformer = assemble(load(ModelConfig, folder / MODEL))
    weights = SafetensorsFile(folder / f"{WEIGHTS}.safetensors")
    compare(folder, "weight", weights.widened(), weights_of(model))
    model.to_empty(device=device)
    assign(model, weights)
    return model


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` was written by `Checkpoints`, even if something of it is gone."""
    return (folder / MODEL).is_file() or (folder / MANIFEST).is_file()


def checkpoint_in(folder: Path) -> Path:
    """The folder that holds a model: `folder` itself, or the best or latest checkpoint of a run."""
    if is_checkpoint(folder) or (folder / "config.json").is_file():
        return folder
    for run in (folder / "checkpoints", folder):
        found = best(run) or latest(run)
        if found is not None:
            return found
    what = "holds no model" if folder.is_dir() else "there is no such folder"
    raise CheckpointError(
        f"{folder}: {what}; give a run (with checkpoints/), a checkpoint (step-…) or a Hugging Face folder"
    )


def check(folder: Path) -> None:
    """Refuse a damaged checkpoint before anything is read from it."""
    if problem := damage(folder):
        raise CheckpointError(f"{folder}: {problem}; use another checkpoint")


def compare(folder: Path, kind: str, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not exactly those of this training, naming the first that differs."""
    there, here = layout(saved), layout(own)
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            saved_as, needed = (f"{x[key][0]} {x[key][1]}" if key in x else "missing" for x in (there, here))
            raise CheckpointError(
                f"{folder}: {kind} '{key}' is {saved_as} in the checkpoint and {needed} here; resume with the"
                " model and the optimizer that the run began with"
            )


def compare_configs(folder: Path, config: ModelConfig) -> None:
    """Refuse a model that has the same tensors and uses them in another way."""
    saved = load(ModelConfig, folder / MODEL)
    for field in ModelConfig.model_fields:
        there, here = getattr(saved, field), getattr(config, field)
        if there != here:
            raise CheckpointError(
                f"{folder}: model.{field} is {there!r} in the checkpoint and {here!r} here; resume with the"
                " model that the run began with"
            )


@torch.no_grad()
def assign(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into the model's own tensors, in place: whoever holds them sees the new values."""
    for key, tensor in weights_of(model).items():
        tensor.copy_(weights[key])


def read_tensors(folder: Path, file: str) -> dict[str, Tensor]:
    """The tensors of one safetensors file of a checkpoint, after its header was checked."""
    return dict(SafetensorsFile(folder / f"{file}.safetensors"))


def read_mapping(folder: Path, file: str) -> dict[str, Any]:
    """The mapping in one JSON file of a checkpoint."""
    try:
        value = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / file}: cannot be read ({error}); use another checkpoint") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / file}: holds no mapping; use another checkpoint")
    return value
