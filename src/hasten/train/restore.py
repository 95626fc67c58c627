"""Reading checkpoints: which one is whole, a training put back.  `load.py` takes a model out.

No file is read before every byte of it is as the manifest says, and none is ever unpickled.  Whatever mesh
of processes wrote a checkpoint, any other reads it: each process takes the parts that it holds.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.core.config import load
from hasten.core.console import say
from hasten.core.errors import CheckpointError
from hasten.core.files import MANIFEST, changed, damage, read_manifest
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer
from hasten.parallel.arrangement import Arrangement
from hasten.train.held import OPTIMIZER, WEIGHTS, Held, held_here, is_spread_out, place_of
from hasten.train.optim import Optimizer
from hasten.train.pieces import FILE, INDEX, Layout, Pieces
from hasten.train.snapshot import MODEL, RANDOM, STATE, mark_of, set_random_state


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


def first_whole(
    folder: Path,
    candidates: list[Path],
    damage_of: Callable[[Path], str | None] = damage,
    aloud: bool = True,
) -> Path | None:
    """The first candidate without damage; `aloud` says which ones have some."""
    for candidate in candidates:
        problem = damage_of(candidate)
        if problem is None:
            return candidate
        if aloud:
            say(f"{candidate} is damaged and passed over: {problem}")
    if candidates:
        raise CheckpointError(
            f"{folder}: all {len(candidates)} checkpoints are damaged; bring one back from a copy, or move"
            " the folder away to begin anew"
        )
    return None


def restore(
    folder: Path, model: Transformer, optimizer: Optimizer, arrangement: Arrangement | None = None
) -> dict[str, Any]:
    """Put a training back to where `folder` was saved, bit for bit; returns the saved `state`.

    Of a training that is spread over processes each calls this, and reads of weights and moments what it
    holds.  Weights, optimizer and the random generators of torch, Python and numpy are set; the generators
    only where as many processes wrote the checkpoint, or one.  Raises `CheckpointError`, with nothing
    changed, where the folder is damaged or holds another model or optimizer.
    """
    names = whole_names(folder, arrangement)
    check(folder, names)
    held = held_here(model, optimizer, arrangement)
    saved = {file: Pieces(folder, file) for file in held}
    state, generators = read_mapping(folder, STATE), read_generators(folder, arrangement)
    # Of a pipeline each process holds some of the names.
    all_names = arrangement is None or arrangement.grid.degrees["pipeline"] == 1
    for file, kind in ((WEIGHTS, "weight"), (OPTIMIZER, "optimizer state")):
        here = {n: (list(h.piece.whole), h.tensor.dtype) for n, h in held[file].items()}
        compare(folder, kind, saved[file].layout(), here, all_names)
    compare_configs(folder, model.config)
    if names is not None:
        check(folder, {name for file in held for name in files_of(saved[file], held[file], file)})
    for file, pieces in saved.items():
        assign(held[file], pieces)
    if generators is not None:
        set_generators(folder, *generators)
    return state


def whole_names(folder: Path, arrangement: Arrangement | None) -> set[str] | None:
    """The files that every process reads whole, by which it learns what else to read; None: all there are."""
    if not is_spread_out(arrangement):
        return None
    names = {MODEL, STATE, *(f"{file}{INDEX}" for file in (WEIGHTS, OPTIMIZER))}
    names |= {f"{RANDOM}{mark}{suffix}" for mark in marks(arrangement) for suffix in (".json", FILE)}
    return {name for name in names if (folder / name).exists() or name in (MODEL, STATE)}


def marks(arrangement: Arrangement | None) -> list[str]:
    """What the names of files may end in that this process's random state is in."""
    return ["", mark_of(*(place_of(arrangement) if arrangement else (0, 1)))]


def files_of(pieces: Pieces, held: Mapping[str, Held], file: str) -> set[str]:
    """The files that have what is held, by their names in the folder."""
    found = pieces.files({name: it.piece for name, it in held.items()})
    return {f"{Path(file).parent}/{name}" for name in found}


def read_generators(
    folder: Path, arrangement: Arrangement | None
) -> tuple[str, Mapping[str, Tensor], dict[str, Any]] | None:
    """The random state that is this process's, and the file's name; None where others wrote the folder."""
    for mark in marks(arrangement):
        file = f"{RANDOM}{mark}"
        if (folder / f"{file}{FILE}").exists() or (folder / f"{file}.json").exists():
            return f"{file}.json", read_tensors(folder, file), read_mapping(folder, f"{file}.json")
    return None


def set_generators(
    folder: Path, name: str, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put every random generator where it was; refuse numbers that are none."""
    try:
        set_random_state(tensors, numbers)
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{folder / name}: is no random state ({error})") from None


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` was written by `Checkpoints`, even if something of it is gone."""
    return (folder / MODEL).is_file() or (folder / MANIFEST).is_file()


def checkpoint_in(folder: Path) -> Path:
    """The folder that holds a model: `folder` itself, or the best or latest checkpoint of a run."""
    if is_checkpoint(folder) or any(
        (folder / name).is_file() for name in ("config.json", "adapter_config.json")
    ):
        return folder
    for run in (folder / "checkpoints", folder):
        found = best(run) or latest(run)
        if found is not None:
            return found
    what = "holds no model" if folder.is_dir() else "there is no such folder"
    raise CheckpointError(
        f"{folder}: {what}; give a run (with checkpoints/), a checkpoint (step-…) or a Hugging Face folder"
    )


def check(folder: Path, names: set[str] | None = None) -> None:
    """Refuse a damaged checkpoint before anything is read from it; or just some files of it."""
    if problem := damage(folder) if names is None else changed(folder, names):
        raise CheckpointError(f"{folder}: {problem}; use another checkpoint")


def compare(folder: Path, kind: str, there: Layout, here: Layout, all_names: bool = True) -> None:
    """Refuse tensors that are not exactly those of this training, naming the first that differs.

    Without `all_names` those count that are here.
    """
    for key in sorted(there.keys() | here.keys() if all_names else here):
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
def assign(held: Mapping[str, Held], saved: Pieces) -> None:
    """Copy what is held out of `saved`, in place: whoever holds the tensors sees the new values."""
    for name, (piece, tensor) in held.items():
        tensor.copy_(saved.part(name, piece))


def read_tensors(folder: Path, file: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's `file`, in one file or in several, each whole."""
    return dict(Pieces(folder, file))


def read_mapping(folder: Path, file: str) -> dict[str, Any]:
    """The mapping in one JSON file of a checkpoint."""
    try:
        value = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / file}: cannot be read ({error}); use another checkpoint") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / file}: holds no mapping; use another checkpoint")
    return value
