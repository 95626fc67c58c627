"""Mistral (Jiang et al. 2023): a Llama whose queries see a sliding window."""

from typing import Any

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields, shown, tied_head
from hasten.model.families.classes import read_decoder_head
from hasten.model.families.gated import gated_sources, read_gated, read_turning, write_gated

CLASSES = ("MistralForCausalLM", "MistralForSequenceClassification")


def read_mistral(fields: Fields) -> dict[str, Any]:
    """The shape of a Mistral; without `num_key_value_heads` it has 8, without `sliding_window` 4,096."""
    head = read_decoder_head(fields, CLASSES)
    fields.values.setdefault("num_key_value_heads", 8)
    return {
        **read_gated(fields),
        **read_turning(fields),
        "sliding_window": read_window(fields, 4096),
        **head,
    }


def read_window(fields: Fields, default: int | None) -> int | None:
    """`sliding_window`, in which null means that there is none."""
    window = fields.nullable("sliding_window", default)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise CheckpointError(
            f"{fields.where}: sliding_window should be null or a whole number at least 1, got {shown(window)}"
        )
    return window


def write_mistral(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Mistral of this shape."""
    return {
        **write_gated(config, "mistral", CLASSES),
        "sliding_window": config.sliding_window,
    }


MISTRAL = Family(
    read_mistral,
    write_mistral,
    gated_sources,
    prefix="model.",
    leftovers=(".rotary_emb.inv_freq",),
    copies=lambda config: tied_head(config, "embed_tokens.weight"),
)
