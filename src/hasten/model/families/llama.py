"""Llama (Touvron et al. 2023), SmolLM2 among them."""

from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields, tied_head
from hasten.model.families.classes import read_decoder_head
from hasten.model.families.gated import gated_sources, read_gated, read_turning, write_gated

CLASSES = ("LlamaForCausalLM", "LlamaForSequenceClassification")


def read_llama(fields: Fields) -> dict[str, Any]:
    """The shape of a Llama."""
    head = read_decoder_head(fields, CLASSES)
    bias = fields.flag("attention_bias", False)
    return {
        **read_gated(fields),
        **read_turning(fields),
        "attention_bias": bias,
        "out_bias": bias,
        "ffn_bias": fields.flag("mlp_bias", False),
        **head,
    }


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Llama of this shape, with both spellings of the rotary positions."""
    return {
        **write_gated(config, "llama", CLASSES),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ffn_bias,
    }


LLAMA = Family(
    read_llama,
    write_llama,
    gated_sources,
    prefix="model.",
    leftovers=(".rotary_emb.inv_freq",),
    copies=lambda config: tied_head(config, "embed_tokens.weight"),
)
