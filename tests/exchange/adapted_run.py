"""A base in Hugging Face's layout, and what a run that adapts it leaves behind."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hasten.adapt.config import LoraConfig
from hasten.adapt.lora import adapt
from hasten.core.config import dump
from hasten.core.files import publish, write_text
from hasten.model.config import ModelConfig
from hasten.model.initial import first_value
from hasten.model.interop import load_hugging_face, save_hugging_face
from hasten.model.transformer import build
from hasten.train.held import WEIGHTS, weights_of
from hasten.train.load import AdapterNote, digest_of
from hasten.train.snapshot import ADAPTER, MODEL

SHAPE = {
    "vocab_size": 61, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48,
    "max_positions": 32, "activation": "swiglu",
}  # fmt: skip


def base_in(folder: Path) -> Path:
    """A tiny Llama."""
    save_hugging_face(build(ModelConfig.model_validate(SHAPE), seed=0), folder)
    return folder


def checkpoint_beside(base: Path, folder: Path, /, **options: Any) -> Path:
    """A checkpoint of an adapter that was moved."""
    model, config = load_hugging_face(base), LoraConfig.model_validate(options)
    digest = digest_of(dict(model.named_parameters()))
    adapt(model, config, rank=4)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                moved = 0.05 * torch.randn(parameter.shape, generator=random)
                parameter.copy_(first_value(name, parameter.shape, model.config, seed=0) + moved)
    with publish(folder, {"step": 1, "metric": None, "parent": None}) as temporary:
        write_text(temporary / MODEL, dump(model.config))
        note = AdapterNote(base=base.resolve(), digest=digest, adaptation=config, rank=4)
        write_text(temporary / ADAPTER, dump(note))
        (temporary / WEIGHTS).parent.mkdir()
        save_file(weights_of(model), temporary / f"{WEIGHTS}.safetensors")
    return folder
