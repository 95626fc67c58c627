"""All families, and which of them a file or a model belongs to.

A new architecture is a file beside this one and a line in `FAMILIES`.
"""

from typing import Any

from hasten.core.errors import CheckpointError, did_you_mean
from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields
from hasten.model.families.gpt2 import GPT2
from hasten.model.families.llama import LLAMA

FAMILIES = {
    "gpt2": GPT2,
    "llama": LLAMA,
}
"""By `model_type`; a model is written as the first that holds it."""


def family_named(name: Any, where: str) -> Family:
    """The family that a `model_type` names."""
    if name not in FAMILIES:
        near = did_you_mean(str(name), FAMILIES)
        raise CheckpointError(
            f"{where}: hasten cannot hold model_type {name!r}.{near} It can hold {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def family_of(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family whose fields say everything about `config`, and those fields."""
    for family in FAMILIES.values():
        fields = family.write(config)
        try:
            shape = family.read(Fields(fields, "config.json"))
        except CheckpointError:
            continue
        again = ModelConfig.model_validate(shape)
        trained = {"dropout", "init_std", "zero_init_outputs", "preset"}  # what no longer matters to logits
        if again.model_dump(exclude=trained) == config.model_dump(exclude=trained):
            return family, fields
    raise CheckpointError(
        f"no Hugging Face architecture that hasten knows ({', '.join(FAMILIES)}) can hold this model: it has"
        f" activation {config.activation}, norm {config.norm}, position {config.position},"
        f" qk_norm {config.qk_norm}; keep it as a hasten checkpoint"
    )
