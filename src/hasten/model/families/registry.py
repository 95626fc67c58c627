"""All families, and which of them a file or a model belongs to.

A new architecture is a file beside this one and a line in `FAMILIES`.
"""

from typing import Any

from pydantic import ValidationError

from hasten.core.errors import CheckpointError, did_you_mean
from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields
from hasten.model.families.bert import BERT
from hasten.model.families.distilbert import DISTILBERT
from hasten.model.families.gemma import GEMMA, GEMMA2, GEMMA3
from hasten.model.families.gpt2 import GPT2
from hasten.model.families.gpt_neox import GPT_NEOX
from hasten.model.families.llama import LLAMA
from hasten.model.families.marian import MARIAN
from hasten.model.families.mistral import MISTRAL
from hasten.model.families.opt import OPT
from hasten.model.families.qwen import QWEN2, QWEN3
from hasten.model.families.roberta import ROBERTA
from hasten.model.families.t5 import T5

FAMILIES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "opt": OPT,
    "gpt_neox": GPT_NEOX,
    "bert": BERT,
    "roberta": ROBERTA,
    "distilbert": DISTILBERT,
    "t5": T5,
    "marian": MARIAN,
}
"""By `model_type`; a model is written as the first that holds it."""


def family_named(name: Any, where: str) -> Family:
    """The family that a `model_type` names."""
    if not isinstance(name, str) or name not in FAMILIES:
        near = did_you_mean(str(name), FAMILIES)
        raise CheckpointError(
            f"{where}: hasten cannot hold model_type {name!r}.{near} It can hold {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def family_of(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family whose fields say everything about `config`, and those fields."""
    for family in FAMILIES.values():
        try:
            fields, sources = family.write(config), family.sources(config)
            tensors = {source.name: None for source in sources.values()}
            again = ModelConfig.model_validate(family.read(Fields(fields, "config.json", tensors)))
        except (CheckpointError, ValidationError):
            continue
        if settled(again) == settled(config):
            return family, fields
    raise CheckpointError(
        f"no Hugging Face architecture that hasten knows ({', '.join(FAMILIES)}) can hold this model: it has"
        f" activation {config.activation}, norm {config.norm}, position {config.position},"
        f" qk_norm {config.qk_norm}; keep it as a hasten checkpoint"
    )


def settled(config: ModelConfig) -> dict[str, Any]:
    """What matters to logits, in one spelling."""
    trained = {"dropout", "attention_dropout", "init_std", "zero_init_outputs", "preset", "start_id"}
    values = config.model_dump(exclude=trained)
    return values | {
        "num_encoder_layers": config.encoder_layers,
        "source_vocab_size": config.source_vocab_size or config.vocab_size,
        "attention_scale": config.attention_scale or config.head_dim**-0.5,
    }
