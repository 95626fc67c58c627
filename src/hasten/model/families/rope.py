"""Rotary positions in a `config.json`."""

from typing import Any

from hasten.model.config import LinearRope, Llama3Rope, ModelConfig
from hasten.model.families.base import Fields


def read_rope(fields: Fields) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of rotary positions, from `rope_parameters` (transformers 5) or two older fields."""
    theta = fields.take("rope_theta", 10_000.0)
    values = fields.take("rope_scaling", {})
    rope = Fields(fields.take("rope_parameters", values), f"{fields.where}: rope")
    theta = rope.take("rope_theta", theta)
    kind = rope.choose("type", "default", {k: k for k in ("default", "linear", "llama3")})
    kind = rope.choose("rope_type", kind, {k: k for k in ("default", "linear", "llama3")})
    scaling = None
    if kind == "linear":
        scaling = {"kind": "linear", "factor": rope.take("factor")}
    elif kind == "llama3":
        scaling = {
            "kind": "llama3",
            "factor": rope.take("factor"),
            "low_frequency": rope.take("low_freq_factor"),
            "high_frequency": rope.take("high_freq_factor"),
            "original_positions": rope.take("original_max_position_embeddings"),
        }
    rope.finish()
    return theta, scaling


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Base and scaling in both spellings."""
    rope: dict[str, Any] = {"rope_type": "default"}
    match config.rope_scaling:
        case LinearRope(factor=factor):
            rope = {"rope_type": "linear", "factor": factor}
        case Llama3Rope() as s:
            rope = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_frequency,
                "high_freq_factor": s.high_frequency,
                "original_max_position_embeddings": s.original_positions,
            }
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
    }
