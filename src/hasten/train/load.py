"""A model taken out of a folder: a run, a checkpoint, a Hugging Face folder, or an adapter beside its base.

A compressed model says in `compression.yaml` which of its layers are of another kind than those of a plain
model.  A training of thin pairs beside a frozen model keeps what it trained and says in `adapter.yaml` which
model it belongs to; that model is read from where it was, and must be the same.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
import xxhash
from torch import Tensor

from hasten.adapt.config import LoraConfig
from hasten.adapt.lora import adapt, adapted_layers
from hasten.adapt.merge import merged
from hasten.adapt.nf4 import packed_weights
from hasten.adapt.peft import adapter_base, is_adapter, load_adapter
from hasten.core.config import Config, load
from hasten.core.errors import CheckpointError, HastenError
from hasten.model.compressed import COMPRESSION, CompressionNote, shape_as, tensors_of
from hasten.model.config import ModelConfig
from hasten.model.interop import load_hugging_face, shape_in
from hasten.model.quantized import check_scales, quantized_weights
from hasten.model.transformer import Transformer, assemble
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.held import WEIGHTS, weights_of
from hasten.train.pieces import Layout, Pieces
from hasten.train.restore import check, checkpoint_in, compare, is_checkpoint
from hasten.train.snapshot import ADAPTER, MODEL, TOKENIZER, layout


class AdapterNote(Config):
    """What a checkpoint of an adapted model says of the model that it belongs to."""

    kind: Literal["adapter"] = "adapter"
    base: Path
    digest: str  # of the base's weights
    adaptation: LoraConfig
    rank: int


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer | None]:
    """The model in `folder`, in evaluation mode, and its tokenizer where there is one.

    `folder` is a run (its best checkpoint, or the latest where none has a metric), a checkpoint, a model as
    Hugging Face lays it out (config.json and safetensors), or an adapter as PEFT does.  Thin pairs are added
    to the matrices that they stand beside: what comes out is a plain model.
    """
    model, tokenizer = load_adapted(folder, device)
    return (merged(model).eval() if adapted_layers(model) else model), tokenizer


def load_adapted(folder: Path, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer | None]:
    """`load_model` with thin pairs where there are any, beside the matrices of their base."""
    folder = checkpoint_in(folder)
    if is_checkpoint(folder):
        check(folder)
        model = load_beside_base(folder) if (folder / ADAPTER).is_file() else load_assembled(folder)
    elif is_adapter(folder):
        model = load_foreign_adapter(folder)
    else:
        model = load_hugging_face(folder)
    return model.to(device).eval(), tokenizer_in(folder)


def load_config(folder: Path) -> ModelConfig:
    """The configuration of the model in `folder`, without its weights."""
    folder = checkpoint_in(folder)
    if is_checkpoint(folder):
        check(folder, {MODEL})
        return load(ModelConfig, folder / MODEL)
    return load_config(base_in(folder)) if is_adapter(folder) else shape_in(folder)


def tokenizer_in(folder: Path) -> Tokenizer | None:
    """The tokenizer beside a model; of an adapter that brings none, its base's."""
    if (folder / TOKENIZER).is_file():
        return Tokenizer.load(folder)
    return tokenizer_in(base_in(folder)) if is_adapter(folder) else None


@torch.no_grad()
def load_assembled(folder: Path) -> Transformer:
    """The model of a checkpoint, built without drawing weights that would be overwritten.

    Its numbers are float32 whatever their type in the file: an imported model keeps the type it came in.
    Integers and their scales stay what they are.
    """
    with torch.device("meta"):
        model: Transformer = assemble(load(ModelConfig, folder / MODEL))
        if (folder / COMPRESSION).is_file():
            shape_by_note(model, folder / COMPRESSION)
    weights = Pieces(folder, WEIGHTS)
    packed = {f"{name}.scales" for name, _ in quantized_weights(model)}
    compare(folder, "weight", widened(weights.layout(), packed), layout(tensors_of(model)))
    model.to_empty(device="cpu")
    for name, tensor in tensors_of(model).items():
        tensor.copy_(weights[name])
    for name, layer in quantized_weights(model):
        check_scales(layer.scales, f"{folder}: {name}")
    return model


def shape_by_note(model: Transformer, path: Path) -> None:
    """Give a plain model the layers that a file speaks of; CheckpointError where it cannot have them."""
    note = load(CompressionNote, path)
    try:
        shape_as(model, note)
    except HastenError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_trainable(folder: Path) -> Transformer:
    """`load_model` for a training to begin with; CheckpointError for a quantised model."""
    model = load_model(folder)[0]
    if next(quantized_weights(model), None) is not None:
        raise CheckpointError(
            f"{folder}: is quantised, and integers cannot be trained; begin with the model that it was made"
            " from, and quantise the result"
        )
    return model


@torch.no_grad()
def load_beside_base(folder: Path) -> Transformer:
    """An adapted model: what its checkpoint has, and for the rest the base's weights."""
    note, config = load(AdapterNote, folder / ADAPTER), load(ModelConfig, folder / MODEL)
    frozen = base_weights(note, folder)
    with torch.device("meta"):
        model: Transformer = assemble(config)
        adapt(model, note.adaptation, note.rank)
    trained = Pieces(folder, WEIGHTS)
    compare(folder, "weight", trained.layout(), layout(weights_of(model)))
    model.to_empty(device="cpu")
    for name, layer in packed_weights(model):
        layer.take(frozen[name])
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.copy_(trained[name])
        elif name in frozen:
            parameter.copy_(frozen[name])
    return model


def base_weights(note: AdapterNote, folder: Path) -> dict[str, Tensor]:
    """The weights of an adapter's base, refused where they are not those that it was trained beside."""
    try:
        base = load_trainable(note.base)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: was trained beside the model in {note.base}, which cannot be read ({error}); put that"
            " model back where it was"
        ) from None
    weights = dict(base.named_parameters())
    if digest_of(weights) != note.digest:
        raise CheckpointError(
            f"{folder}: was trained beside other weights than {note.base} has now; put those back"
        )
    return {name: weight.detach() for name, weight in weights.items()}


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """128 bits of all weights in float32, in hexadecimal, whatever file they came from."""
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def load_foreign_adapter(folder: Path) -> Transformer:
    """An adapter in PEFT's format beside the model that it names."""
    model, _ = load_model(base_in(folder))
    load_adapter(folder, model)
    return model


def base_in(folder: Path) -> Path:
    """Where the model lies that an adapter of PEFT's belongs to."""
    base = Path(adapter_base(folder))
    place = next((path for path in (base, folder / base) if path.is_dir()), None)
    if place is None:
        raise CheckpointError(
            f"{folder}: belongs to the model {str(base)!r}, and there is no such folder; fetch that model and"
            " write its path as base_model_name_or_path into adapter_config.json"
        )
    return place


def widened(layout: Layout, but: Collection[str] = ()) -> Layout:
    """The same once numbers of 16 bits are float32, `but` for some."""
    short = (torch.float16, torch.bfloat16)
    return {
        name: (shape, torch.float32 if kind in short and name not in but else kind)
        for name, (shape, kind) in layout.items()
    }
