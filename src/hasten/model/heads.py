"""A model's shape with another head: what fine-tuning makes of a language model."""

from collections.abc import Sequence

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.shape import SPAN_CLASSES

LANGUAGE_ONLY = {
    "tied": False,
    "head_transform": False,
    "logit_scale": 1.0,
    "logit_soft_cap": None,
    "start_id": None,
}
"""What belongs to a head of words."""


def with_classes(config: ModelConfig, names: Sequence[str]) -> ModelConfig:
    """The same trunk with a class for each text, as `transformers` has it.

    An encoder reads the first token through a pooler, and has a bias; a decoder the last one, with neither.
    """
    return changed(
        config,
        head="pooled_classes",
        num_classes=len(names),
        class_names=tuple(names),
        pooler=pooler_of(config),
        head_bias=config.kind == "encoder",
    )


def with_spans(config: ModelConfig) -> ModelConfig:
    """The same encoder with a head that finds where an answer begins and ends; ConfigError for others."""
    if config.kind != "encoder":
        raise ConfigError(
            f"model.kind is {config.kind}, and answers are found in a text by an encoder; take another model"
        )
    return changed(
        config,
        head="token_classes",
        num_classes=len(SPAN_CLASSES),
        class_names=SPAN_CLASSES,
        pooler=None,
        head_bias=True,
    )


def pooler_of(config: ModelConfig) -> str | None:
    """The encoder's own pooler, or that of the family that it is like: DistilBERT's has no token types."""
    if config.kind != "encoder":
        return None
    return config.pooler or ("tanh" if config.num_token_types else "relu")


def changed(config: ModelConfig, **head: object) -> ModelConfig:
    """`config` with another head; ConfigError for a model that reads a source."""
    if config.kind == "seq2seq":
        raise ConfigError(
            "model.kind is seq2seq, which has a head of words alone; take an encoder or a decoder"
        )
    values = {**config.model_dump(), **LANGUAGE_ONLY, **head, "preset": None}
    return ModelConfig.model_validate(values)
