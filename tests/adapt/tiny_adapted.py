"""Tiny models with adapters whose second matrices are not zero, as after some training."""

from typing import Any

import torch
from torch import Tensor

from hasten.adapt.config import LoraConfig
from hasten.adapt.linear import LoraLinear
from hasten.adapt.lora import adapt, adapted_layers, settle
from hasten.adapt.nf4 import packed_weights
from hasten.model.config import ModelConfig
from hasten.model.initial import init_weights
from hasten.model.transformer import Transformer, assemble, build

SHAPE = {"vocab_size": 61, "dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "max_positions": 32}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**SHAPE, "activation": "swiglu", "num_kv_heads": 2},
    "gpt2": {**SHAPE, "preset": "gpt2"},
    "bert": {
        **SHAPE, "kind": "encoder", "position": "learned", "norm": "layer", "norm_place": "after",
        "embedding_norm": "learned", "num_token_types": 2, "attention_bias": True, "out_bias": True,
        "ffn_bias": True, "head": "pooled_classes", "num_classes": 3, "head_bias": True, "pooler": "tanh",
    },
    "seq2seq": {**SHAPE, "kind": "seq2seq", "num_encoder_layers": 2, "attention_bias": True},
}  # fmt: skip


def shape_of(kind: str, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**KINDS[kind], **changes})


def plain_model(kind: str, seed: int = 0, **changes: Any) -> Transformer:
    """A model in which no bias is zero and no norm is one."""
    model = build(shape_of(kind, **changes), seed)
    random = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    return model


def fresh_adapted(base: Transformer, /, rank: int = 4, seed: int = 0, **options: Any) -> Transformer:
    """An adapted model with the weights of `base`, made as a run makes it: on the meta device first."""
    with torch.device("meta"):
        model: Transformer = assemble(base.config)
        adapt(model, LoraConfig.model_validate(options), rank)
    model.to_empty(device="cpu")
    init_weights(model, seed)
    weights, own = base.state_dict(), model.state_dict()
    with torch.no_grad():
        for name in weights.keys() & own.keys():
            own[name].copy_(weights[name])
        for name, layer in packed_weights(model):
            layer.take(weights[name])
    settle(model)
    return model


@torch.no_grad()
def disturb(model: Transformer, seed: int = 5) -> Transformer:
    """Move everything that is trained, as training would."""
    random = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model).values():
        move(layer, random)
    return model


def move(layer: LoraLinear, random: torch.Generator) -> None:
    layer.lora_b.copy_(0.05 * torch.randn(layer.lora_b.shape, generator=random))
    if layer.lora_magnitude is not None:
        layer.lora_magnitude.mul_(1 + 0.2 * torch.rand(layer.lora_magnitude.shape, generator=random))


def inputs_of(config: ModelConfig, rows: int = 2, tokens: int = 9) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    inputs = {"tokens": torch.randint(config.vocabulary, (rows, tokens), generator=random)}
    if config.kind == "seq2seq":
        inputs["source"] = torch.randint(config.vocabulary, (rows, 7), generator=random)
    return inputs


def scores(model: Transformer, **inputs: Tensor) -> Tensor:
    return model.logits(model(**(inputs or inputs_of(model.config))))
