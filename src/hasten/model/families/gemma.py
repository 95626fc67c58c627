"""Gemma 1, 2 and 3's text model (Gemma team 2024, 2024, 2025).

All multiply their embeddings by sqrt(hidden_size) and norms by 1 + weight.
"""

from typing import Any

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.families.base import GATED, Family, Fields, name_of, shown, tied_head
from hasten.model.families.classes import DecoderClasses, read_decoder_head
from hasten.model.families.gated import (
    FULL,
    MODULES,
    SLIDING,
    gated_sources,
    layer_types,
    read_gated,
    read_turning,
    read_windows,
    write_gated,
)
from hasten.model.families.mistral import read_window
from hasten.model.families.rope import mapping, merged, read_rope_parameters, write_scaling

GEMMA_CLASSES = ("GemmaForCausalLM", "GemmaForSequenceClassification")
GEMMA2_CLASSES = ("Gemma2ForCausalLM", "Gemma2ForSequenceClassification")
GEMMA3_CLASSES = ("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification")
GEMMA_ACTIVATIONS = {**GATED, "gelu": "geglu_tanh"}
"""The first Gemma's files say "gelu" where they mean its tanh approximation."""
SANDWICH = {
    **MODULES,
    "attention_out_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_out_norm": "post_feedforward_layernorm",
}
"""A norm before and after each half of a block."""


def read_shared(fields: Fields, act: str, kv_heads: int) -> dict[str, Any]:
    """What the three have in common."""
    fields.require("use_bidirectional_attention", False)
    for name, value in {"num_key_value_heads": kv_heads, "head_dim": 256, act: "gelu_pytorch_tanh"}.items():
        fields.values.setdefault(name, value)
    bias = fields.flag("attention_bias", False)
    if act == "hidden_activation":  # newer files may have both, of which the older name is not asked
        fields.require("hidden_act", fields.values[act])
    shape = read_gated(fields, tied=True, act=act)
    scale = shape["dim"] ** 0.5
    return {
        **shape,
        "attention_bias": bias,
        "out_bias": bias,
        "norm_offset": True,
        "embedding_scale": scale,
    }


def read_gemma(fields: Fields) -> dict[str, Any]:
    """The shape of a first Gemma."""
    head = read_decoder_head(fields, GEMMA_CLASSES)
    fields.require("hidden_activation", "gelu_pytorch_tanh")
    if fields.values.get("hidden_act") in (None, "gelu"):
        fields.values["hidden_act"] = "gelu_pytorch_tanh"
    return {**read_shared(fields, "hidden_act", 16), **read_turning(fields), **head}


def read_gemma2(fields: Fields) -> dict[str, Any]:
    """The shape of a Gemma 2: every second layer sees a window, scores and logits are capped."""
    head = read_decoder_head(fields, GEMMA2_CLASSES)
    shape = read_shared(fields, "hidden_activation", 4)
    window = read_window(fields, 4096)
    kinds = [FULL if i % 2 else SLIDING for i in range(shape["num_layers"])]
    return {
        **shape,
        **read_turning(fields),
        **read_scale(fields, shape["head_dim"]),
        **read_windows(fields, window, kinds),
        "norm_place": "both",
        "logit_soft_cap": read_cap(fields, "final_logit_softcapping", 30.0),
        "attention_soft_cap": read_cap(fields, "attn_logit_softcapping", 50.0),
        **head,
    }


def read_gemma3(fields: Fields) -> dict[str, Any]:
    """The shape of a Gemma 3: five layers with a window to one without, each kind with its own turning."""
    head = read_decoder_head(fields, GEMMA3_CLASSES)
    shape = read_shared(fields, "hidden_activation", 4)
    fields.require("attn_logit_softcapping", None)
    window = read_window(fields, 4096)
    pattern = fields.count("_sliding_window_pattern", fields.count("sliding_window_pattern", 6))
    kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(shape["num_layers"])]
    windows = read_windows(fields, window, kinds)
    return {
        **shape,
        **read_two_ropes(fields, windows["sliding_window"] is not None),
        **read_scale(fields, shape["head_dim"]),
        **windows,
        "norm_place": "both",
        "qk_norm": True,
        "logit_soft_cap": read_cap(fields, "final_logit_softcapping", None),
        **head,
    }


def read_scale(fields: Fields, head_dim: int) -> dict[str, Any]:
    """`attention_scale` where it isn't that of the width of a head."""
    scalar = fields.number("query_pre_attn_scalar", 256)
    return {"attention_scale": None if scalar == head_dim else scalar**-0.5}


def read_cap(fields: Fields, name: str, default: float | None) -> float | None:
    """A soft cap, in which null means that there is none."""
    if fields.values.get(name, default) is None:
        fields.skip(name)
        return None
    return fields.number(name, default)


def read_two_ropes(fields: Fields, windowed: bool) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `local_rope_theta`, from two nested mappings or from older fields."""
    parameters = mapping(fields, "rope_parameters")
    scaling = mapping(fields, "rope_scaling")
    bases = fields.number("rope_theta", 1e6), fields.number("rope_local_base_freq", 1e4)
    odd = [name for name in parameters if name not in (FULL, SLIDING)]
    if odd or not all(isinstance(part or {}, dict) for part in parameters.values()):
        raise CheckpointError(
            f"{fields.where}: rope_parameters should hold a mapping for {FULL!r} and one for {SLIDING!r},"
            f" got {shown(parameters)}"
        )
    full = merged(scaling, parameters.get(FULL) or {}, fields.where)
    everywhere = read_rope_parameters(full, fields.where, bases[0])
    sliding = merged({}, parameters.get(SLIDING) or {}, fields.where)
    local = read_rope_parameters(sliding, fields.where, bases[1])
    if local["rope_scaling"] is not None or "rotary_share" in {**everywhere, **local}:
        raise CheckpointError(
            f"{fields.where}: hasten cannot hold these rope_parameters: layers with a window have no scaling,"
            " and every number of a head is turned"
        )
    return {**everywhere, "local_rope_theta": local["rope_theta"] if windowed else None}


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    """The fields of a first Gemma of this shape."""
    return {
        **write_gated(config, "gemma", GEMMA_CLASSES),
        "hidden_act": name_of(config.activation, GEMMA_ACTIVATIONS),
        "attention_bias": config.attention_bias,
    }


def write_sandwich(config: ModelConfig, model_type: str, classes: DecoderClasses) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    fields = write_gated(config, model_type, classes)
    activation, scale = fields.pop("hidden_act"), config.attention_scale
    return {
        **fields,
        "hidden_activation": activation,
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": config.head_dim if scale is None else whole(scale**-2),
        "sliding_window": config.sliding_window or config.max_positions,  # null they don't take
        "layer_types": layer_types(config),
        "final_logit_softcapping": config.logit_soft_cap,
        "attn_logit_softcapping": config.attention_soft_cap,
    }


def whole(number: float) -> int | float:
    """A number that rounding has moved off a whole one, as that one."""
    return round(number) if abs(number - round(number)) < 1e-6 * number else number


def write_gemma2(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Gemma 2 of this shape."""
    return write_sandwich(config, "gemma2", GEMMA2_CLASSES)


def write_gemma3(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Gemma 3 of this shape."""
    fields = write_sandwich(config, "gemma3_text", GEMMA3_CLASSES)
    local = config.local_rope_theta or config.rope_theta
    for name in ("rope_theta", "rope_scaling"):
        del fields[name]
    return {
        **fields,
        "rope_parameters": {
            FULL: {**write_scaling(config), "rope_theta": config.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }


def sandwich_sources(config: ModelConfig) -> Any:
    """Gemma 2's and 3's tensors."""
    return gated_sources(config, SANDWICH)


def tied_embedding(config: ModelConfig) -> dict[str, str]:
    """A head beside the embedding that it repeats."""
    return tied_head(config, "embed_tokens.weight")


INVERSE = (".rotary_emb.inv_freq",)
GEMMA = Family(read_gemma, write_gemma, gated_sources, "model.", INVERSE, copies=tied_embedding)
GEMMA2 = Family(read_gemma2, write_gemma2, sandwich_sources, "model.", INVERSE, copies=tied_embedding)
GEMMA3 = Family(read_gemma3, write_gemma3, sandwich_sources, "model.", INVERSE, copies=tied_embedding)
