"""GPT-NeoX (Black et al. 2022), Pythia among them."""

from typing import Any

from hasten.core.errors import CheckpointError
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
from hasten.model.families.rope import read_rope, write_rope

CLASSES = ("GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification")
MODULES = {
    "attention_norm": "input_layernorm",
    "attention.out": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn.up": "mlp.dense_h_to_4h",
    "ffn.down": "mlp.dense_4h_to_h",
}
"""Our modules of a block and theirs."""

HEAD = "embed_out.weight"
"""What files call it; transformers 5 itself says lm_head, and writes the older name."""


def read_gpt_neox(fields: Fields) -> dict[str, Any]:
    """The shape of a GPT-NeoX: a quarter of each head turns, both halves of a block read the same."""
    head = read_decoder_head(fields, CLASSES)
    fields.skip("is_decoder", "classifier_dropout")
    dim, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if dim % heads:
        raise CheckpointError(
            f"{fields.where}: hidden_size ({dim}) should be a multiple of num_attention_heads ({heads})"
        )
    bias = fields.flag("attention_bias", True)
    return {
        "vocab_size": fields.count("vocab_size"),
        "dim": dim,
        "num_layers": fields.count("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": heads,
        "ffn_dim": fields.count("intermediate_size"),
        "max_positions": fields.count("max_position_embeddings"),
        "activation": fields.choose("hidden_act", "gelu", PLAIN),
        "norm": "layer",
        "norm_eps": fields.number("layer_norm_eps", 1e-5),
        "tied": fields.flag("tie_word_embeddings", False),
        "parallel_block": fields.flag("use_parallel_residual", True),
        **read_quarter(fields, dim // heads),
        "attention_bias": bias,
        "out_bias": bias,
        "ffn_bias": True,
        "init_std": 0.02,
        **head,
    }


def read_quarter(fields: Fields, head_dim: int) -> dict[str, Any]:
    """The rotary positions, under the names that this family alone has too."""
    theta, share = fields.number("rotary_emb_base", 10_000.0), fields.number("rotary_pct", 0.25)
    fields.values.setdefault("partial_rotary_factor", share)
    rope = {"rotary_share": 1.0, **read_rope(fields, theta)}
    turned = int(head_dim * rope["rotary_share"])
    if not 2 <= turned <= head_dim or turned % 2:
        raise CheckpointError(
            f"{fields.where}: {rope['rotary_share']:g} of a head of {head_dim} gives {turned} numbers"
            " to turn, which should be an even number of at least 2"
        )
    return rope


def write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    """The fields of a GPT-NeoX of this shape, with both spellings of the rotary positions."""
    rope = write_rope(config)
    return {
        "model_type": "gpt_neox",
        **write_decoder_head(config, CLASSES),
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_positions,
        "hidden_act": name_of(config.activation, PLAIN),
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "use_parallel_residual": config.parallel_block,
        "attention_bias": config.attention_bias,
        "rotary_pct": config.rotary_share,
        "rotary_emb_base": config.rope_theta,
        "rope_parameters": {**rope["rope_parameters"], "partial_rotary_factor": config.rotary_share},
    }


def gpt_neox_sources(config: ModelConfig) -> dict[str, Source]:
    """Queries, keys and values lie in one matrix, head by head."""
    sources = {"embedding.weight": Source("embed_in.weight")}
    sources |= {f"norm.{kind}": Source(f"final_layer_norm.{kind}") for kind in ("weight", "bias")}
    for i in range(config.num_layers):
        for our, their in MODULES.items():
            biased = our != "attention.out" or config.out_bias
            for kind in ("weight", "bias") if biased else ("weight",):
                sources[f"layers.{i}.{our}.{kind}"] = Source(f"layers.{i}.{their}.{kind}")
        for part, our in enumerate(("query", "key", "value")):
            for kind in ("weight", "bias") if config.attention_bias else ("weight",):
                fused = f"layers.{i}.attention.query_key_value.{kind}"
                sources[f"layers.{i}.attention.{our}.{kind}"] = Source(
                    fused, part=part, parts=3, groups=config.num_heads
                )
    return sources | head_source(config, HEAD)


GPT_NEOX = Family(
    read_gpt_neox,
    write_gpt_neox,
    gpt_neox_sources,
    prefix="gpt_neox.",
    leftovers=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    aliases=(("lm_head.weight", HEAD),),
    copies=lambda config: tied_head(config, "embed_in.weight", HEAD),
)
