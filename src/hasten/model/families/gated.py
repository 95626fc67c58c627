"""What the families of the Llama kind share: RMSNorm, rotary positions, grouped heads, a gated feed-forward.

Names of tensors are alike too, so that a family says only what it does otherwise.
"""

from typing import Any

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.families.base import (
    GATED,
    MOST_LAYERS,
    Fields,
    Source,
    head_source,
    name_of,
    shown,
)
from hasten.model.families.classes import DecoderClasses, write_decoder_head
from hasten.model.families.rope import read_rope, write_rope

SLIDING, FULL = "sliding_attention", "full_attention"
MODULES = {
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
"""Our modules of a block and theirs."""
HEAD_NORMS = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}


def read_gated(fields: Fields, *, tied: bool = False, act: str = "hidden_act") -> dict[str, Any]:
    """The shape that all of these share, but for the rotary positions; `tied` where the file doesn't say."""
    heads = fields.count("num_attention_heads")
    return {
        "vocab_size": fields.count("vocab_size"),
        "dim": fields.count("hidden_size"),
        "num_layers": fields.count("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": fields.count("num_key_value_heads", heads),
        "head_dim": fields.count("head_dim", None),
        "ffn_dim": fields.count("intermediate_size"),
        "max_positions": fields.count("max_position_embeddings"),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tied": fields.flag("tie_word_embeddings", tied),
        "activation": fields.choose(act, "silu", GATED),
        "init_std": 0.02,
    }


def read_turning(fields: Fields) -> dict[str, Any]:
    """The rotary positions of one kind for all layers, every number of a head turned."""
    rope = read_rope(fields)
    if "rotary_share" in rope:
        raise CheckpointError(
            f"{fields.where}: hasten cannot hold partial_rotary_factor {rope['rotary_share']:g} in this"
            " architecture, only 1.0"
        )
    return rope


def read_windows(fields: Fields, window: int | None, ordinary: list[str]) -> dict[str, Any]:
    """`sliding_window` and `window_layers` from `layer_types`; `ordinary` are those of a file without."""
    kinds = fields.take("layer_types", ordinary)
    known = isinstance(kinds, list) and all(kind in (SLIDING, FULL) for kind in kinds)
    if not known or len(kinds) != len(ordinary):
        raise CheckpointError(
            f"{fields.where}: layer_types should say {SLIDING!r} or {FULL!r} for each of the"
            f" {len(ordinary)} layers, got {shown(kinds)}"
        )
    layers = [i for i, kind in enumerate(kinds) if kind == SLIDING]
    if layers and window is None:
        raise CheckpointError(
            f"{fields.where}: layer_types has layers of kind {SLIDING!r}, and there is no sliding_window"
        )
    if not layers:
        return {"sliding_window": None, "window_layers": None}
    return {"sliding_window": window, "window_layers": None if len(layers) == len(kinds) else tuple(layers)}


def layer_types(config: ModelConfig) -> list[str]:
    """Their word for each layer."""
    return [FULL if config.window_of(i) is None else SLIDING for i in range(config.num_layers)]


def write_gated(config: ModelConfig, model_type: str, classes: DecoderClasses) -> dict[str, Any]:
    """The fields that all of these share."""
    return {
        "model_type": model_type,
        **write_decoder_head(config, classes),
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": name_of(config.activation, GATED),
        "tie_word_embeddings": config.tied,
        **write_rope(config),
    }


def gated_sources(config: ModelConfig, modules: dict[str, str] = MODULES) -> dict[str, Source]:
    """Their tensors are ours under other names; `modules` are those of a block."""
    modules = {**modules, **(HEAD_NORMS if config.qk_norm else {})}
    pairs = {"embedding": "embed_tokens", "norm": "norm"}
    for i in range(config.num_layers):
        pairs |= {f"layers.{i}.{our}": f"layers.{i}.{their}" for our, their in modules.items()}
    sources = {f"{our}.weight": Source(f"{their}.weight") for our, their in pairs.items()}
    biased = {f"attention.{name}" for name in ("query", "key", "value") if config.attention_bias}
    biased |= {"attention.out"} if config.out_bias else set()
    biased |= {f"ffn.{name}" for name in ("gate", "up", "down") if config.ffn_bias}
    for our, their in pairs.items():
        if ".".join(our.split(".")[2:]) in biased:
            sources[f"{our}.bias"] = Source(f"{their}.bias")
    return sources | head_source(config)
