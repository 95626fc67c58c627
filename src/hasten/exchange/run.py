"""Models from elsewhere and back: the work of `hasten import` and `hasten export`.

An imported model is a checkpoint of ours with all that came along (tokenizer, chat template, generation
settings) and a record of its origin; an exported one has them again, and its numbers in the types they had.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hasten import __version__
from hasten.core.console import Progress, say
from hasten.core.errors import ConfigError
from hasten.core.files import contents, publish, sha256, write_json
from hasten.exchange.options import ExportConfig, ImportConfig
from hasten.exchange.pack import (
    GGUF_TYPES,
    gguf_type,
    types_of,
    whole_folder,
    write_checkpoint,
    write_folder,
    write_gguf,
)
from hasten.exchange.parcel import LUGGAGE, Parcel, described, opened, title_of
from hasten.model.hub import fetch, is_hub_name
from hasten.model.interop import CONFIG, OnTensor
from hasten.train.restore import is_checkpoint

ORIGIN = "origin.json"
BLOCKS = ("q8_0", "q4_0")
"""What only GGUF has."""


def bring_in(name: str, config: ImportConfig) -> Path:
    """Make a checkpoint out of a Hugging Face folder, a model of the hub, or a GGUF file; its folder."""
    place = located(name, config)
    output = config.output or Path("models") / title_of(place)
    refuse_existing(output)
    with progress("import") as on_tensor:
        parcel = opened(place, config.pickle, on_tensor)
    origin = {"name": name, "revision": revision_of(place) or config.revision, **record(place, parcel)}
    with publish(output, {"step": 0, "metric": None, "parent": name}) as folder:
        write_checkpoint(folder, parcel)
        write_json(folder / ORIGIN, origin)
    say(f"{output}: {described(parcel, parcel.types.values())}; every verb takes this folder")
    return output


def send_out(name: str, config: ExportConfig) -> Path:
    """Write a run's model, a checkpoint or a folder for `transformers` or for llama.cpp; where it is."""
    place = Path(name).expanduser()
    if config.to == "gguf" and config.dtype == "bfloat16":
        raise ConfigError("dtype=bfloat16 is not written to GGUF; write float32, float16, q8_0 or q4_0")
    if config.to == "hf" and config.dtype in BLOCKS:
        raise ConfigError(f"dtype={config.dtype} is for to=gguf; write float32, bfloat16 or float16")
    if config.to == "hf" and config.nearest_split:
        raise ConfigError("nearest_split is for to=gguf: a Hugging Face folder keeps the tokenizer as it is")
    suffix = ".gguf" if config.to == "gguf" else ""
    output = config.output or Path("exports") / f"{title_of(place)}{suffix}"
    refuse_existing(output)
    parcel = opened(place)
    if config.to == "gguf":
        kinds: list[Any] = [config.dtype or gguf_type(parcel.model)]
        write_gguf(parcel, output, GGUF_TYPES[kinds[0]], config.nearest_split)
    else:
        types = types_of(parcel, getattr(torch, config.dtype) if config.dtype else None)
        kinds = list(types.values())
        with whole_folder(output) as folder, progress("export") as on_tensor:
            write_folder(folder, parcel, types, config.max_shard_bytes, on_tensor)
    size = sum(path.stat().st_size for path in ([output] if output.is_file() else contents(output)))
    say(f"{output}: {described(parcel, kinds)}, {size / 1e6:,.1f} MB")
    return output


def located(name: str, config: ImportConfig) -> Path:
    """The folder or file that `name` means, fetched where it is a name of the hub."""
    place = Path(name).expanduser()
    if place.exists():
        if config.revision is not None:
            raise ConfigError(f"{name} is on this machine, so revision={config.revision} cannot matter")
        if is_checkpoint(place):
            raise ConfigError(f"{name}: is a checkpoint of hasten already; every verb takes it as it is")
        return place
    if is_hub_name(name):
        return fetch(name, config.revision, config.pickle)
    raise ConfigError(
        f"{name}: there is no such folder or file, and no name of the hub (owner/name) is spelt so; give a"
        " folder with config.json and safetensors, a .gguf file, or a name of the hub"
    )


def revision_of(place: Path) -> str | None:
    """The commit of a folder in the hub's cache."""
    real = place.resolve()
    return real.name if real.parent.name == "snapshots" else None


def refuse_existing(output: Path) -> None:
    """Nothing is written over."""
    if output.is_file() or output.is_symlink() or (output.is_dir() and any(output.iterdir())):
        raise ConfigError(f"{output}: is there already; move it away, or write another output=...")


def record(place: Path, parcel: Parcel) -> dict[str, Any]:
    """What came from where, so that it can be told later: each file's size and digest, types of numbers."""
    used = [place] if place.is_file() else [path for path in sorted(place.iterdir()) if is_part(path)]
    return {
        "hasten": __version__,
        "kind": parcel.model.config.kind,
        "types": dict(Counter(str(kind).removeprefix("torch.") for kind in parcel.types.values())),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in used},
    }


def is_part(path: Path) -> bool:
    """Whether a file of a folder is one that hasten reads."""
    weights = path.suffix == ".safetensors" or path.name.endswith(".index.json") or is_pickle(path.name)
    return path.is_file() and (weights or path.name == CONFIG or path.name in LUGGAGE)


def is_pickle(name: str) -> bool:
    """Whether a file is named as PyTorch's pickled weights are."""
    return name.startswith("pytorch_model") and name.endswith(".bin")


@contextmanager
def progress(stage: str) -> Iterator[OnTensor]:
    """A line that counts tensors."""
    with Progress(stage, unit="tensors") as line:

        def on_tensor(done: int, total: int) -> None:
            line.total = total
            line.update(done + 1)

        yield on_tensor
