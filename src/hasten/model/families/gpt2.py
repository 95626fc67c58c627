"""GPT-2 (Radford et al. 2019)."""

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

CLASSES = ("GPT2LMHeadModel", "GPT2ForSequenceClassification")
SUMMARY = ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
"""Settings of a head that no language model has."""


def read_gpt2(fields: Fields) -> dict[str, Any]:
    """The shape of a GPT-2."""
    fields.require("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        fields.require(name, False)
    fields.skip("n_ctx", *(f"summary_{name}" for name in SUMMARY))
    if fields.values.get("architectures") == ["GPT2Model"]:
        fields.values["architectures"] = None  # the first files: their head is the embedding
    head = read_decoder_head(fields, CLASSES)
    return {
        "vocab_size": fields.count("vocab_size"),
        "dim": fields.count("n_embd"),
        "num_layers": fields.count("n_layer", most=MOST_LAYERS),
        "num_heads": fields.count("n_head"),
        "ffn_dim": fields.count("n_inner", None),
        "max_positions": fields.count("n_positions"),
        "activation": fields.choose("activation_function", "gelu_new", PLAIN),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "tied": fields.flag("tie_word_embeddings", True),
        "position": "learned",
        "norm": "layer",
        "attention_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "init_std": 0.02,
        **head,
    }


def write_gpt2(config: ModelConfig) -> dict[str, Any]:
    """The fields of a GPT-2 of this shape."""
    return {
        "model_type": "gpt2",
        **write_decoder_head(config, CLASSES),
        "vocab_size": config.vocabulary,
        "n_embd": config.dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_dim,
        "n_positions": config.max_positions,
        "activation_function": name_of(config.activation, {"gelu_new": "gelu_tanh", **PLAIN}),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


def gpt2_sources(config: ModelConfig) -> dict[str, Source]:
    """GPT-2 keeps its matrices as [inputs, outputs], and queries, keys and values in one."""
    sources = {"embedding.weight": Source("wte.weight"), "positions.weight": Source("wpe.weight")}
    modules = {"norm": "ln_f"}
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.", f"h.{i}."
        modules |= {f"{ours}attention_norm": f"{theirs}ln_1", f"{ours}ffn_norm": f"{theirs}ln_2"}
        matrices = {"attention.out": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
        for our, their in matrices.items():
            sources[f"{ours}{our}.weight"] = Source(f"{theirs}{their}.weight", transposed=True)
            sources[f"{ours}{our}.bias"] = Source(f"{theirs}{their}.bias")
        for part, our in enumerate(("query", "key", "value")):
            fused = f"{theirs}attn.c_attn"
            sources[f"{ours}attention.{our}.weight"] = Source(f"{fused}.weight", True, part, 3)
            sources[f"{ours}attention.{our}.bias"] = Source(f"{fused}.bias", False, part, 3)
    for our, their in modules.items():
        sources |= {f"{our}.{kind}": Source(f"{their}.{kind}") for kind in ("weight", "bias")}
    return sources | head_source(config)


GPT2 = Family(
    read_gpt2,
    write_gpt2,
    gpt2_sources,
    prefix="transformer.",
    leftovers=(".attn.bias", ".attn.masked_bias"),
    copies=lambda config: tied_head(config, "wte.weight"),
)
