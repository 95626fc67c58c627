"""Rotary positions in a `config.json`: today's `rope_parameters`, and the fields that it replaced."""

from typing import Any

from hasten.core.errors import CheckpointError
from hasten.model.config import LinearRope, Llama3Rope, ModelConfig
from hasten.model.families.base import Fields, shown

KINDS = {kind: kind for kind in ("default", "linear", "llama3")}
ABSENT: dict[str, Any] = {}


def read_rope(fields: Fields, theta: float = 10_000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`; `theta` is the base where the file names none."""
    old = fields.number("rope_theta", theta)
    share = fields.number("partial_rotary_factor", 1.0)
    parameters = mapping(fields, "rope_parameters")
    values = merged(mapping(fields, "rope_scaling"), parameters, fields.where)
    return read_rope_parameters(values, fields.where, old, share)


def mapping(fields: Fields, name: str) -> dict[str, Any]:
    """A field that holds fields."""
    values = fields.take(name, ABSENT)
    if not isinstance(values, dict):
        raise CheckpointError(f"{fields.where}: {name} should hold a mapping, got {shown(values)}")
    return values


def merged(scaling: dict[str, Any], parameters: dict[str, Any], where: str) -> dict[str, Any]:
    """`rope_scaling` and `rope_parameters` as one, the older name of the kind by its new one."""
    one: dict[str, Any] = {}
    for values in (scaling, parameters):
        for given, value in values.items():
            name = "rope_type" if given == "type" else given
            if one.setdefault(name, value) != value:
                raise CheckpointError(
                    f"{where}: rope_scaling and rope_parameters disagree about {name} ({shown(one[name])} and"
                    f" {shown(value)}); remove one of them"
                )
    return one


def read_rope_parameters(
    values: dict[str, Any], where: str, theta: float, share: float = 1.0
) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, where it is not 1, `rotary_share` of one set of parameters."""
    rope = Fields(values, f"{where}: rope")
    kind = rope.choose("rope_type", "default", KINDS)
    share = rope.number("partial_rotary_factor", share)
    read: dict[str, Any] = {"rope_theta": rope.number("rope_theta", theta), "rope_scaling": None}
    if share != 1.0:
        read["rotary_share"] = share
    if kind == "linear":
        read["rope_scaling"] = {"kind": "linear", "factor": rope.number("factor")}
    elif kind == "llama3":
        read["rope_scaling"] = {
            "kind": "llama3",
            "factor": rope.number("factor"),
            "low_frequency": rope.number("low_freq_factor"),
            "high_frequency": rope.number("high_freq_factor"),
            "original_positions": rope.count("original_max_position_embeddings"),
        }
    rope.finish()
    return read


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Base and scaling in both spellings."""
    rope = write_scaling(config)
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
    }


def write_scaling(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters` without the base."""
    match config.rope_scaling:
        case LinearRope(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Rope() as s:
            return {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_frequency,
                "high_freq_factor": s.high_frequency,
                "original_max_position_embeddings": s.original_positions,
            }
    return {"rope_type": "default"}
