"""Gemma 1, 2 and 3 (text) in GGUF.  After llama.cpp's `src/models/gemma*.cpp`.

llama.cpp multiplies embeddings by sqrt(D) by itself and stores norms as 1 + weight.  From the number of
layers it knows the 27B models, which scale scores in another way.
"""

import math
from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.gguf.keys import Keys
from hasten.model.gguf.rotary import read_rotary, write_rotary

Fields = dict[str, Any]
CAPS = {"attention_soft_cap": "attn_logit_softcapping", "logit_soft_cap": "final_logit_softcapping"}
WINDOW, LOCAL_BASE = "attention.sliding_window", "rope.freq_base_swa"
LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose scores are scaled by 1 / sqrt(dim / num_heads)."""


def read_gemma(keys: Keys) -> Fields:
    """Gemma 1."""
    shape = read_rotary(keys)
    return {
        **shape,
        "activation": "geglu_tanh",
        "norm_offset": True,
        "embedding_scale": shape["dim"] ** 0.5,
    }


def write_gemma(config: ModelConfig) -> Fields:
    """The keys of a Gemma, whose heads need not have the usual width."""
    heads = {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return {**write_rotary(config), **heads}


def read_gemma2(keys: Keys) -> Fields:
    """Gemma 2: every second layer sees a window, scores and logits are capped."""
    shape = {**read_gemma(keys), "norm_place": "both"}
    window, layers = keys.integer(WINDOW, 4096), shape["num_layers"]
    return {
        **shape,
        "attention_soft_cap": keys.number(CAPS["attention_soft_cap"], 50.0),
        "logit_soft_cap": keys.number(CAPS["logit_soft_cap"], 30.0),
        "attention_scale": read_scale(shape, LARGEST["gemma2"]),
        **windows(window, [i for i in range(layers) if i % 2 == 0]),
    }


def read_gemma3(keys: Keys) -> Fields:
    """Gemma 3: five layers with a window, which turn by a base of their own, to one without."""
    shape = {**read_gemma(keys), "norm_place": "both", "qk_norm": True}
    window, cap = keys.integer(WINDOW, None), keys.number(CAPS["logit_soft_cap"], None)
    local = keys.number(LOCAL_BASE, 10_000.0)
    seen = windows(window, [i for i in range(shape["num_layers"]) if i % 6 != 5]) if window else {}
    return {
        **shape,
        "logit_soft_cap": cap,
        "attention_scale": read_scale(shape, LARGEST["gemma3"]),
        "local_rope_theta": local if seen else None,
        **seen,
    }


def write_gemma3(config: ModelConfig) -> Fields:
    """The keys of a Gemma 2 or 3."""
    keys = write_gemma(config)
    named = {name: getattr(config, field) for field, name in CAPS.items()}
    named[WINDOW] = config.sliding_window
    named[LOCAL_BASE] = config.local_rope_theta
    return {**keys, **{name: value for name, value in named.items() if value is not None}}


def windows(window: int, layers: list[int]) -> Fields:
    """The layers that see only the latest positions."""
    return {"sliding_window": window, "window_layers": layers}


def read_scale(shape: Fields, largest: int) -> float | None:
    """What scores are multiplied with, None for 1 / sqrt(head_dim)."""
    if shape["num_layers"] != largest:
        return None
    return float(1 / math.sqrt(shape["dim"] // shape["num_heads"]))
