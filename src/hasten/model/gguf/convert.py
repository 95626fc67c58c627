"""GGUF to a model and its tokenizer, and back."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hasten.core.config import shorten
from hasten.core.console import say
from hasten.core.errors import CheckpointError
from hasten.model.config import Llama3Rope, ModelConfig
from hasten.model.gguf.architectures import (
    Architecture,
    architecture_named,
    architecture_of,
    shape_of,
)
from hasten.model.gguf.container import Container, read
from hasten.model.gguf.integers import format_of_integers, repack
from hasten.model.gguf.keys import Keys
from hasten.model.gguf.names import ROPE_FACTORS, Place
from hasten.model.gguf.quant import F16, F32, Q4_0, Q8_0, Bytes, Floats, Format, dequantize, quantize
from hasten.model.gguf.rotary import rope_factors
from hasten.model.gguf.vocabulary import write_vocabulary
from hasten.model.gguf.vocabulary_reader import read_vocabulary
from hasten.model.gguf.writer import Block, write
from hasten.model.plain import Weight, numbers, plain_weights
from hasten.model.quantized import QuantizedWeight
from hasten.model.transformer import Decoder
from hasten.tokenizer.tokenizer import Tokenizer

DType = Literal["F32", "F16", "Q8_0", "Q4_0"]
FILE_TYPES: dict[str, tuple[Format, int]] = {
    "F32": (F32, 0), "F16": (F16, 1), "Q8_0": (Q8_0, 7), "Q4_0": (Q4_0, 2)
}  # fmt: skip
TEMPLATE = "tokenizer.chat_template"
ALWAYS_F32 = ("position_embd.weight",)
FINER = ("token_embd.weight", "output.weight")
"""What has eight bits in a file of four: a word read or scored wrongly cannot be made up for."""


def load_gguf(path: Path | str) -> tuple[Decoder, Tokenizer, str | None]:
    """The model of a GGUF file in float32 on the CPU, its tokenizer, and its chat template.

    4 bytes a parameter are allocated.  Whatever the file says about the model that hasten cannot hold, or a
    tensor that is missing, has another shape or is left over, is a `CheckpointError`.
    """
    file = read(Path(path))
    check_general(file)
    architecture = architecture_named(file.metadata.get("general.architecture"), path)
    shapes = {name: entry.shape for name, entry in file.tensors.items()}
    keys = Keys(path, architecture.name, file.metadata, shapes, file.floats)
    config = shape_of(architecture, keys)
    check_sizes(config, shapes, file.path)
    tokenizer = read_vocabulary(file.metadata, config.vocabulary, file.path)
    with torch.device("meta"):
        model = Decoder(config)
    model.load_state_dict(translate(file, model, architecture), assign=True)
    return model, tokenizer, chat_template(file)


def check_general(file: Container) -> None:
    """Refuse what is no whole model."""
    kind, parts = file.metadata.get("general.type", "model"), file.metadata.get("split.count", 1)
    if not isinstance(kind, str) or kind != "model":
        raise CheckpointError(
            f"{file.path}: the key 'general.type' is {shorten(kind)}, and hasten reads models only"
        )
    if not isinstance(parts, int) or parts > 1:
        raise CheckpointError(
            f"{file.path}: is one of {shorten(parts)} parts; join them first with llama-gguf-split --merge"
        )
    if not file.tensors:
        raise CheckpointError(
            f"{file.path}: has no tensors, only a vocabulary; take the file with the weights"
        )


def check_sizes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Refuse widths that no tensor of the file has, before a module is made for them."""
    largest = max(max(shape) for shape in shapes.values())
    for count in (config.num_heads, config.num_kv_heads):
        if count * config.head_dim > largest:
            raise CheckpointError(
                f"{where}: has {count:,} heads of {config.head_dim:,}, more than any tensor has room for"
            )


def chat_template(file: Container) -> str | None:
    """The template, told if there are more of them."""
    template = file.metadata.get(TEMPLATE)
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file.path}: the key '{TEMPLATE}' should be a text")
    more = sorted(key for key in file.metadata if key.startswith(f"{TEMPLATE}."))
    if more:
        say(f"{file.path}: of its chat templates the default is taken, not {shorten(more)}")
    return template


def translate(file: Container, model: Decoder, architecture: Architecture) -> dict[str, Tensor]:
    """The tensors as a state of `model`, every shape checked and none left over."""
    state, used = dict[str, Tensor](), {ROPE_FACTORS} if model.config.rope_scaling else set()
    for name, parameter in model.named_parameters():
        place = architecture.naming.place(model.config, name)
        rows = parameter.shape[0] * place.parts
        expected = (rows, *parameter.shape[1:])
        check_tensor(file, place.name, expected)
        state[name] = place.ours(torch.from_numpy(file.floats(place.name))).contiguous()
        used.add(place.name)
        if not torch.stack(state[name].aminmax()).isfinite().all():  # in one reading; NaN stays NaN
            raise CheckpointError(
                f"{file.path}: the tensor '{place.name}' has numbers that are not finite; fetch it again"
            )
    for name in file.tensors:
        if name not in used:
            raise CheckpointError(
                f"{file.path}: the tensor '{name}' has no place in a {architecture.name} of this shape"
            )
    return state


def check_tensor(file: Container, name: str, expected: tuple[int, ...]) -> None:
    """A tensor is there and has the shape."""
    if name not in file.tensors:
        raise CheckpointError(f"{file.path}: has no tensor '{name}', which its keys ask for")
    found = file.tensors[name].shape
    if found != expected:
        raise CheckpointError(
            f"{file.path}: the tensor '{name}' is {list(found)} where its keys ask for {list(expected)}"
        )


def save_gguf(
    model: Decoder,
    tokenizer: Tokenizer,
    path: Path | str,
    dtype: DType = "F16",
    chat_template: str | None = None,
    *,
    name: str | None = None,
    nearest_split: bool = False,
) -> None:
    """Write `model` so that llama.cpp continues texts as hasten does.

    Vectors stay in float32, and so do rows of learned positions; a matrix whose rows are no multiple of 32 is
    F16 in a Q8_0 or Q4_0 file, and the table of tokens is Q8_0 in a Q4_0 file.  What is integers already is
    written as these, whichever of the two is asked for.  `nearest_split` accepts that llama.cpp cuts text in
    another way than the tokenizer, where it has none for it.  `CheckpointError` where llama.cpp cannot hold
    the model or the tokenizer.
    """
    if dtype not in FILE_TYPES:
        raise CheckpointError(f"dtype cannot be {dtype!r}; choose from {', '.join(FILE_TYPES)}")
    path, config = Path(path), model.config
    parameters = plain_weights(model)
    architecture, shape = architecture_of(config, parameters)
    metadata: dict[str, Any] = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": name or path.stem,
        "general.file_type": FILE_TYPES[dtype][1],
        "general.quantization_version": 2,
        **shape,
        **write_vocabulary(
            tokenizer, config.vocabulary, chat=chat_template is not None, nearest_split=nearest_split
        ),
    }
    if chat_template is not None:
        metadata[TEMPLATE] = chat_template
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, metadata, blocks(parameters, config, architecture, FILE_TYPES[dtype][0], path))


def blocks(
    parameters: Mapping[str, Weight],
    config: ModelConfig,
    architecture: Architecture,
    format: Format,
    path: Path,
) -> Iterable[Block]:
    """The tensors to write, each made when it is its turn."""
    grouped: dict[str, list[tuple[Place, Weight]]] = defaultdict(list)
    for name, parameter in parameters.items():
        try:
            place = architecture.naming.place(config, name)
        except KeyError:
            raise CheckpointError(
                f"the parameter {name} has no place in a {architecture.name}; merge adapters into the model"
                " first"
            ) from None
        grouped[place.name].append((place, parameter))
    if isinstance(config.rope_scaling, Llama3Rope):
        factors = rope_factors(config.head_dim, config.rope_theta, config.rope_scaling)
        yield Block(ROPE_FACTORS, factors.shape, F32, partial(quantize, factors, F32))
    for name, parts in grouped.items():
        shape = (sum(p.shape[0] for _, p in parts), *parts[0][1].shape[1:])
        layers = [(place, weight) for place, weight in parts if isinstance(weight, QuantizedWeight)]
        if layers and format in (Q8_0, Q4_0):
            stored = format_of_integers(name, layers, len(parts))
            yield Block(name, shape, stored, partial(repack, layers))
            continue
        stored = format_of(name, shape, format)
        yield Block(name, shape, stored, partial(pack, name, parts, stored, path))


def format_of(name: str, shape: tuple[int, ...], format: Format) -> Format:
    """What a tensor is stored as where `format` is asked for."""
    if len(shape) < 2 or name in ALWAYS_F32:
        return F32
    if shape[-1] % format.block:
        return F16
    return Q8_0 if format is Q4_0 and name in FINER else format


def pack(name: str, parts: list[tuple[Place, Weight]], format: Format, path: Path) -> Bytes:
    """A tensor's bytes; raises CheckpointError where the format cannot hold a number of it."""
    ordered = sorted(parts, key=lambda part: part[0].part)
    values: Floats = torch.cat([place.theirs(numbers(ours)) for place, ours in ordered]).contiguous().numpy()
    packed = quantize(values, format)
    if not np.isfinite(values).all() or not np.isfinite(dequantize(packed, format)).all():
        raise CheckpointError(
            f"{path}: '{name}' has numbers up to {np.abs(values).max():g}, which {format.name} cannot hold;"
            " write dtype F32, unless the training itself went astray"
        )
    return packed
