"""Llama (Touvron et al. 2023), SmolLM2 among them."""

from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields, Source, head_source, tied_head
from hasten.model.families.rope import read_rope, write_rope


def read_llama(fields: Fields) -> dict[str, Any]:
    """The shape of a Llama."""
    fields.architecture({"LlamaForCausalLM": None})
    fields.choose("hidden_act", "silu", {"silu": "swiglu"})
    bias = fields.take("attention_bias", False)
    heads = fields.take("num_attention_heads")
    theta, scaling = read_rope(fields)
    return {
        "vocab_size": fields.take("vocab_size"),
        "dim": fields.take("hidden_size"),
        "num_layers": fields.take("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.take("num_key_value_heads", heads),
        "head_dim": fields.take("head_dim", None),
        "ffn_dim": fields.take("intermediate_size"),
        "max_positions": fields.take("max_position_embeddings"),
        "norm_eps": fields.take("rms_norm_eps", 1e-6),
        "tied": fields.take("tie_word_embeddings", False),
        "rope_theta": float(theta),
        "rope_scaling": scaling,
        "attention_bias": bias,
        "out_bias": bias,
        "ffn_bias": fields.take("mlp_bias", False),
        "activation": "swiglu",
        "init_std": 0.02,
    }


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Llama of this shape, with both spellings of the rotary positions."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ffn_bias,
        **write_rope(config),
    }


LLAMA_MODULES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def llama_sources(config: ModelConfig) -> dict[str, Source]:
    """Llama's tensors are ours under other names."""
    modules = {"embedding": "embed_tokens", "norm": "norm"}
    for i in range(config.num_layers):
        modules |= {f"layers.{i}.{our}": f"layers.{i}.{their}" for our, their in LLAMA_MODULES.items()}
    sources = {f"{our}.weight": Source(f"{their}.weight") for our, their in modules.items()}
    for our, their in modules.items():
        part = our.split(".")[-2:]
        if (part[0] == "attention" and config.attention_bias) or (part[0] == "ffn" and config.ffn_bias):
            sources[f"{our}.bias"] = Source(f"{their}.bias")
    return sources | head_source(config)


LLAMA = Family(
    read_llama,
    write_llama,
    llama_sources,
    prefix="model.",
    leftovers=(".rotary_emb.inv_freq",),
    copies=lambda config: tied_head(config, "embed_tokens.weight"),
)
