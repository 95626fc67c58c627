"""OPT (Zhang et al. 2022)."""

from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.families.base import (
    MOST_LAYERS,
    PLAIN,
    Family,
    Fields,
    Source,
    head_source,
    name_of,
    tied_head,
)
from hasten.model.families.classes import read_decoder_head, write_decoder_head

CLASSES = ("OPTForCausalLM", "OPTForSequenceClassification")
MODULES = {
    "attention_norm": "self_attn_layer_norm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "ffn_norm": "final_layer_norm",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
"""Our modules of a block and theirs."""


def read_opt(fields: Fields) -> dict[str, Any]:
    """The shape of an OPT; its table of positions begins with two rows that none uses."""
    head = read_decoder_head(fields, CLASSES)
    dim = fields.count("hidden_size")
    fields.require("word_embed_proj_dim", dim)
    fields.require("layer_norm_elementwise_affine", True)
    before = fields.flag("do_layer_norm_before", True)
    removed = fields.flag("_remove_final_layer_norm", False)
    bias = fields.flag("enable_bias", True)
    return {
        "vocab_size": fields.count("vocab_size"),
        "dim": dim,
        "num_layers": fields.count("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": fields.count("num_attention_heads"),
        "ffn_dim": fields.count("ffn_dim"),
        "max_positions": fields.count("max_position_embeddings"),
        "activation": fields.choose("activation_function", "relu", PLAIN),
        "tied": fields.flag("tie_word_embeddings", True),
        "norm_place": "before" if before else "after",
        "final_norm": before and not removed,
        "attention_bias": bias,
        "out_bias": bias,
        "ffn_bias": bias,
        "position": "learned",
        "position_offset": 2,
        "norm": "layer",
        "norm_eps": 1e-5,
        "init_std": 0.006,
        **head,
    }


def write_opt(config: ModelConfig) -> dict[str, Any]:
    """The fields of an OPT of this shape."""
    return {
        "model_type": "opt",
        **write_decoder_head(config, CLASSES),
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "word_embed_proj_dim": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.ffn_dim,
        "max_position_embeddings": config.max_positions,
        "activation_function": name_of(config.activation, PLAIN),
        "do_layer_norm_before": config.norm_place == "before",
        "_remove_final_layer_norm": config.norm_place == "before" and not config.final_norm,
        "enable_bias": config.attention_bias,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": config.tied,
    }


def opt_sources(config: ModelConfig) -> dict[str, Source]:
    """OPT's tensors are ours under other names, all below `decoder`."""
    names = {"embedding.weight": "embed_tokens.weight", "positions.weight": "embed_positions.weight"}
    if config.final_norm:
        names |= {f"norm.{kind}": f"final_layer_norm.{kind}" for kind in ("weight", "bias")}
    for i in range(config.num_layers):
        for our, their in MODULES.items():
            kinds = ("weight", "bias") if our.endswith("norm") or config.attention_bias else ("weight",)
            names |= {f"layers.{i}.{our}.{kind}": f"layers.{i}.{their}.{kind}" for kind in kinds}
    sources = {our: Source(f"decoder.{their}") for our, their in names.items()}
    return sources | head_source(config)


OPT = Family(
    read_opt,
    write_opt,
    opt_sources,
    prefix="model.",
    leftovers=("decoder.version",),  # of the first files
    copies=lambda config: tied_head(config, "decoder.embed_tokens.weight"),
)
