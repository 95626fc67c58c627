"""Qwen 2 (Yang et al. 2024) and Qwen 3 (Yang et al. 2025)."""

from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields, tied_head
from hasten.model.families.classes import read_decoder_head
from hasten.model.families.gated import (
    FULL,
    SLIDING,
    gated_sources,
    layer_types,
    read_gated,
    read_turning,
    read_windows,
    write_gated,
)
from hasten.model.families.mistral import read_window

QWEN2_CLASSES = ("Qwen2ForCausalLM", "Qwen2ForSequenceClassification")
QWEN3_CLASSES = ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification")


def read_qwen2(fields: Fields) -> dict[str, Any]:
    """The shape of a Qwen 2: biases on queries, keys and values alone."""
    head = read_decoder_head(fields, QWEN2_CLASSES)
    fields.values.setdefault("num_key_value_heads", 32)
    shape = read_gated(fields)
    windows = read_qwen_windows(fields, shape["num_layers"])
    return {**shape, **read_turning(fields), **windows, "attention_bias": True, **head}


def read_qwen3(fields: Fields) -> dict[str, Any]:
    """The shape of a Qwen 3: queries and keys normalised, heads of 128 where the file doesn't say."""
    head = read_decoder_head(fields, QWEN3_CLASSES)
    fields.values.setdefault("num_key_value_heads", 32)
    fields.values.setdefault("head_dim", 128)
    shape = read_gated(fields)
    windows = read_qwen_windows(fields, shape["num_layers"])
    bias = fields.flag("attention_bias", False)
    biases = {"attention_bias": bias, "out_bias": bias}
    return {**shape, **read_turning(fields), **windows, **biases, "qk_norm": True, **head}


def read_qwen_windows(fields: Fields, num_layers: int) -> dict[str, Any]:
    """The window of the layers from `max_window_layers` on, or of those that `layer_types` names."""
    window = read_window(fields, 4096)
    first = fields.nullable("max_window_layers", 28)
    if not fields.flag("use_sliding_window", False):
        window = None
    elif "layer_types" not in fields.values:
        fields.values["max_window_layers"] = first
        first = 0 if first == 0 else fields.count("max_window_layers")
    ordinary = [SLIDING if window is not None and i >= first else FULL for i in range(num_layers)]
    return read_windows(fields, window, ordinary)


def write_qwen2(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Qwen 2 of this shape."""
    return {**write_gated(config, "qwen2", QWEN2_CLASSES), **write_qwen_windows(config)}


def write_qwen3(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Qwen 3 of this shape."""
    return {
        **write_gated(config, "qwen3", QWEN3_CLASSES),
        **write_qwen_windows(config),
        "attention_bias": config.attention_bias,
    }


def write_qwen_windows(config: ModelConfig) -> dict[str, Any]:
    """The fields about windows; where the last layers have them, in the older spelling too."""
    kinds = layer_types(config)
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": kinds.index(SLIDING) if SLIDING in kinds else config.num_layers,
        "layer_types": kinds,
    }


QWEN2 = Family(
    read_qwen2,
    write_qwen2,
    gated_sources,
    prefix="model.",
    leftovers=(".rotary_emb.inv_freq",),
    copies=lambda config: tied_head(config, "embed_tokens.weight"),
)
QWEN3 = Family(
    read_qwen3,
    write_qwen3,
    gated_sources,
    prefix="model.",
    copies=lambda config: tied_head(config, "embed_tokens.weight"),
)
