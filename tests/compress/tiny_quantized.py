"""Tiny models of the three kinds, and texts for them."""

from typing import Any

import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"activation": "swiglu", "num_kv_heads": 2, "tied": True},
    "gemma2": {"activation": "geglu_tanh", "norm_place": "both", "norm_offset": True, "qk_norm": True},
    "gpt2": {
        "activation": "gelu_tanh", "norm": "layer", "position": "learned", "attention_bias": True,
        "out_bias": True, "ffn_bias": True,
    },
    "squared": {"activation": "relu_squared", "ffn_bias": True, "sliding_window": 5, "window_layers": [0]},
    "parallel": {"activation": "relu", "parallel_block": True, "norm": "layer"},
    "bert": {
        "kind": "encoder", "norm_place": "after", "norm": "layer", "position": "learned", "head": "none",
        "attention_bias": True, "out_bias": True, "ffn_bias": True, "num_token_types": 2,
    },
    "t5": {
        "kind": "seq2seq", "position": "relative", "activation": "geglu_tanh", "num_kv_heads": 2,
        "tied": True,
    },
}  # fmt: skip


def make(name: str, **more: Any) -> Transformer:
    """A model whose every layer matters."""
    shape = {"vocab_size": 50, "dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 64, "max_positions": 32}
    config = ModelConfig.model_validate({**shape, "init_std": 0.2, **SHAPES[name], **more})
    model = build(config, seed=0).eval()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases as training leaves them
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return model


def texts(model: Transformer, count: int = 3, length: int = 12, seed: int = 0, rows: int = 2) -> list[Batch]:
    """Batches of some rows, of which the last ends with padding."""
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(count):
        tokens = torch.randint(0, 50, (rows, length), generator=draw)
        segments = torch.ones_like(tokens)
        if number == count - 1:
            segments[1, length // 2 :] = 0
        batches.append(Batch(tokens, tokens, segments, extra=extras(model, rows, length, draw)))
    return batches


def extras(model: Transformer, rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
    """What an encoder wants besides, or a decoder that reads one; sources have another length."""
    if model.config.kind == "encoder":
        return {"token_types": torch.randint(0, 2, (rows, length), generator=draw)}
    if model.config.kind == "decoder":
        return {}
    source = torch.randint(0, 50, (rows, length + 3), generator=draw)
    segments = torch.ones_like(source)
    segments[0, length:] = 0
    positions = torch.arange(length + 3).expand(rows, -1)
    return {"source": source, "source_positions": positions, "source_segments": segments}
