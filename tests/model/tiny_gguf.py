"""Tiny models and tokenizers of every kind that GGUF can hold."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from hasten.model.config import ModelConfig
from hasten.model.gguf.splits import SPLITS, cutter
from hasten.model.transformer import Decoder, build
from hasten.tokenizer.files import parse
from hasten.tokenizer.tokenizer import Tokenizer

TEXT = (
    "Once upon a time, there was a little girl named Lily who couldn't count to 1234567 — she'd try:\n"
    "def count(n):\n    for i in range(n):\n        print(i, 'IT'S', 3.14)\n\n"
    "  \tnaïve Straße, 今天天气很好 🙂  end "
)
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BASE: dict[str, Any] = {
    "vocab_size": 352, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64,
    "max_positions": 64, "activation": "swiglu", "init_std": 0.2,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "activation": "gelu_tanh", "position": "learned", "norm": "layer", "attention_bias": True,
    "out_bias": True, "ffn_bias": True, "num_kv_heads": 4,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "activation": "geglu_tanh", "norm_offset": True, "embedding_scale": 32**0.5, "tied": True, "head_dim": 16,
}  # fmt: skip
LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_positions": 64}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, one key head": ("llama", {"tied": True, "num_kv_heads": 1}),
    "llama, long": ("llama", {"max_positions": 512}),
    "llama wide heads": ("llama", {"head_dim": 16}),
    "llama other theta and eps": ("llama", {"rope_theta": 500.0, "norm_eps": 1e-3}),
    "llama linear rope": ("llama", {"rope_scaling": {"kind": "linear", "factor": 4.0}}),
    "llama llama3 rope": ("llama", {"rope_scaling": LLAMA3}),
    "llama biased": ("llama", {"attention_bias": True, "out_bias": True, "ffn_bias": True}),
    "qwen2": ("qwen2", {"attention_bias": True}),
    "qwen2 of llama3 rope is a llama": ("llama", {"attention_bias": True, "rope_scaling": LLAMA3}),
    "qwen3": ("qwen3", {"qk_norm": True, "head_dim": 16}),
    "arcee": ("arcee", {"activation": "relu_squared"}),
    "gpt2": ("gpt2", GPT2),
    "gpt2 tied": ("gpt2", {**GPT2, "tied": True}),
    "gemma": ("gemma", GEMMA),
    "gemma2": (
        "gemma2",
        {
            **GEMMA, "norm_place": "both", "attention_soft_cap": 5.0, "logit_soft_cap": 3.0,
            "sliding_window": 8, "window_layers": [0],
        },
    ),
    "gemma3": (
        "gemma3",
        {
            **GEMMA, "norm_place": "both", "qk_norm": True, "sliding_window": 8, "num_layers": 7,
            "window_layers": [0, 1, 2, 3, 4, 6], "rope_theta": 1e6, "local_rope_theta": 100.0,
        },
    ),
}  # fmt: skip
"""Each with the name of the architecture that shall hold it."""


def make_model(name: str) -> Decoder:
    """A model in which no parameter is at its trivial start."""
    config = ModelConfig.model_validate({**BASE, **SHAPES[name][1]})
    model = build(config, seed=0).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


def make_bytewise(pre: str = "gpt-2", size: int = 340) -> Tokenizer:
    """A byte-level vocabulary that is cut as `pre` says."""
    described = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
    described["pre_tokenizer"], described["model"]["ignore_merges"] = cutter(pre), SPLITS[pre].whole_pieces
    inner = parse(json.dumps(described), Path("tokenizer.json"))
    inner.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|pad|>", "<|im_end|>"]
    inner.train_from_iterator(
        [TEXT] * 3,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=specials, initial_alphabet=ALPHABET, show_progress=False
        ),
    )
    return Tokenizer(inner)
