"""What the architectures of llama.cpp have in common, and rotary positions."""

from typing import Any

import numpy as np

from hasten.core.errors import CheckpointError
from hasten.model.config import LinearRope, Llama3Rope, ModelConfig
from hasten.model.gguf.keys import Keys
from hasten.model.gguf.names import ROPE_FACTORS
from hasten.model.gguf.quant import Floats
from hasten.ops.rope import frequencies, interpolate_llama3

Fields = dict[str, Any]


def read_common(keys: Keys) -> Fields:
    """What every architecture has."""
    vocab_size, dim = keys.shape("token_embd.weight")
    keys.expect("vocab_size", vocab_size)
    keys.expect("embedding_length", dim)
    layers, heads = keys.integer("block_count"), keys.size("attention.head_count")
    if layers > len(keys.shapes):
        keys.fail("block_count", f"is {layers:,}, and the file has {len(keys.shapes)} tensors")
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": keys.size("attention.head_count_kv", heads),
        "ffn_dim": keys.size("feed_forward_length"),
        "max_positions": keys.integer("context_length"),
        "tied": not keys.has("output.weight"),
        "init_std": 0.02,
    }


def write_common(config: ModelConfig) -> Fields:
    """The keys of every architecture."""
    return {
        "vocab_size": config.vocabulary,
        "context_length": config.max_positions,
        "embedding_length": config.dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
    }


def read_rotary(keys: Keys, factors: bool = False) -> Fields:
    """A model with rotary positions and RMS norms; `factors`: it may have a factor for each rotation."""
    shape = read_common(keys)
    usual = max(shape["dim"] // shape["num_heads"], 1)
    head_dim = keys.size("attention.key_length", usual)
    keys.expect("attention.value_length", head_dim)
    keys.expect("rope.dimension_count", head_dim)
    theta = keys.number("rope.freq_base", 10_000.0)
    return {
        **shape,
        "head_dim": head_dim,
        "rope_theta": theta,
        "rope_scaling": read_scaling(keys, head_dim, theta, factors),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "activation": "swiglu",
    }


def write_rotary(config: ModelConfig) -> Fields:
    """The keys of a model with rotary positions and RMS norms."""
    keys = {
        **write_common(config),
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
    }
    if config.head_dim * config.num_heads != config.dim:
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    match config.rope_scaling:
        case LinearRope(factor=factor):
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case Llama3Rope(original_positions=positions):
            keys |= {"rope.scaling.original_context_length": positions}
    return keys


def read_scaling(keys: Keys, head_dim: int, theta: float, factors: bool) -> Fields | None:
    """How rotations are stretched for longer contexts."""
    kind = keys.choose("rope.scaling.type", {"none": None, "linear": "linear"}, "none")
    factor = keys.number("rope.scaling.factor", None) if kind else None
    if factors and keys.has(ROPE_FACTORS):
        if kind:
            keys.fail("rope.scaling.type", f"stands beside the tensor '{ROPE_FACTORS}'; hasten can hold one")
        return read_factors(keys, head_dim, theta)
    return {"kind": "linear", "factor": factor} if factor not in (None, 1.0) else None


def read_factors(keys: Keys, head_dim: int, theta: float) -> Fields:
    """Llama 3.1's scaling, recognised by its factors: the file has nothing else of it."""
    if keys.shape(ROPE_FACTORS, 1) != (head_dim // 2,):
        raise CheckpointError(
            f"{keys.where}: the tensor '{ROPE_FACTORS}' should have {head_dim // 2} numbers"
        )
    found = keys.floats(ROPE_FACTORS)
    positions = keys.integer("rope.scaling.original_context_length", 8192)
    scaling = {"factor": float(found.max()), "original_positions": positions}
    expected = rope_factors(head_dim, theta, Llama3Rope.model_validate(scaling)) if found.max() > 0 else found
    if not np.allclose(found, expected, rtol=1e-4) or found.max() <= 0:
        raise CheckpointError(
            f"{keys.where}: the tensor '{ROPE_FACTORS}' has other factors than Llama 3.1's scaling by"
            f" {found.max():g} from {positions:,} positions, and hasten knows no other; take another model"
        )
    return {"kind": "llama3", **scaling}


def rope_factors(head_dim: int, theta: float, scaling: Llama3Rope) -> Floats:
    """By what llama.cpp shall divide each rotation, [head_dim / 2]."""
    plain = frequencies(head_dim, theta)
    slowed = interpolate_llama3(
        plain, scaling.factor, scaling.low_frequency, scaling.high_frequency, scaling.original_positions
    )
    return (plain / slowed).numpy()
