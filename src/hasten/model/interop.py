"""Hugging Face checkpoints: `config.json` and safetensors, in both directions, with equal logits."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hasten.core.config import parse
from hasten.core.errors import CheckpointError, ConfigError
from hasten.core.files import write_json
from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields, combine
from hasten.model.families.registry import family_named, family_of
from hasten.model.transformer import Decoder

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def load_hugging_face(folder: Path) -> Decoder:
    """The model in a Hugging Face folder, in float32 on the CPU, with dropout off.

    Whatever the folder says about the model that hasten cannot hold, or a tensor that is missing, has another
    shape or is left over, is a `CheckpointError`.
    """
    family, config = read_config(folder / CONFIG)
    with torch.device("meta"):
        model = Decoder(config)
    tensors = read_tensors(folder)
    theirs = {short: tensors[name] for short, name in family.plain_names(tensors, str(folder)).items()}
    model.load_state_dict(translate(theirs, model, family, folder), assign=True)
    return model


def read_config(path: Path) -> tuple[Family, ModelConfig]:
    """The architecture that a `config.json` describes, and its shape."""
    fields = Fields(read_json(path), str(path))
    family = family_named(fields.values.get("model_type"), str(path))
    shape = family.read(fields)
    fields.finish()
    try:
        return family, parse(ModelConfig, shape, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); a Hugging Face folder has it"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not JSON; fetch the folder again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: should hold a mapping, got {type(values).__name__}")
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or from the files that its index names."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{folder / INDEX}: has no weight_map; fetch the folder again")
        names = sorted({str(name) for name in weight_map.values()})
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:  # a file of strangers must not point outside of its folder
            raise CheckpointError(f"{folder / INDEX}: names {name!r}, which is not a file of this folder")
        tensors |= read_safetensors(folder / name)
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; hasten reads safetensors only")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); fetch it again") from None


def translate(theirs: dict[str, Tensor], model: Decoder, family: Family, folder: Path) -> dict[str, Tensor]:
    """`theirs` as a state of `model`, every shape checked and no tensor left over."""
    sources = family.sources(model.config)
    state = {}
    for name, parameter in model.named_parameters():
        source = sources[name]
        tensor = theirs.get(source.name)
        if tensor is None:
            raise CheckpointError(f"{folder}: has no tensor '{source.name}', which {CONFIG} asks for")
        ours = source.extract(tensor)
        if ours.shape != parameter.shape:
            raise CheckpointError(
                f"{folder}: '{source.name}' is {list(tensor.shape)}, which gives {list(ours.shape)} for"
                f" {name} where {CONFIG} asks for {list(parameter.shape)}"
            )
        state[name] = ours.float()
    check_leftovers(theirs, model.config, family, folder)
    return state


def check_leftovers(theirs: dict[str, Tensor], config: ModelConfig, family: Family, folder: Path) -> None:
    """Refuse a tensor that has no place, or that is a copy and differs from what it should repeat."""
    used = {source.name for source in family.sources(config).values()}
    copies, derived = family.copies(config), family.derived(config)
    for name, tensor in theirs.items():
        if name in copies and not torch.equal(tensor, theirs[copies[name]]):
            raise CheckpointError(
                f"{folder}: '{name}' differs from the embedding '{copies[name]}', yet {CONFIG} ties them; set"
                " tie_word_embeddings to false"
            )
        if name in derived and not torch.allclose(tensor.float(), derived[name](), atol=1e-5):
            raise CheckpointError(f"{folder}: '{name}' is not what {CONFIG} makes of it, and cannot be kept")
        if name not in {*used, *copies, *derived} and not name.endswith(family.leftovers):
            raise CheckpointError(f"{folder}: the tensor '{name}' has no place in the model of {CONFIG}")


def save_hugging_face(model: Decoder, folder: Path) -> None:
    """Write `model` so that `transformers` loads it with equal logits.

    `CheckpointError` where no architecture that we know of can hold it.
    """
    family, fields = family_of(model.config)
    sources = family.sources(model.config)
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    tensors = {}
    for name, parameter in model.state_dict().items():
        value = parameter.detach().cpu()
        source = sources[name]
        parts[source.name][source.part] = value
        if len(parts[source.name]) == source.parts:
            tensors[family.written_name(source)] = combine(parts[source.name], source)
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, {**fields, "dtype": dtype})
