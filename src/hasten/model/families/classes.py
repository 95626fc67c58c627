"""Heads of classes: how many there are, what they are called, and where their matrix lies."""

from typing import Any

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.families.base import Fields, shown
from hasten.model.shape import SPAN_CLASSES

DecoderClasses = tuple[str, str]
"""Their classes of one decoder: for words, and for classes of texts."""
SPANS = "spans"
"""What families call a head of token classes that finds where an answer begins and ends."""


def read_classes(fields: Fields) -> dict[str, Any]:
    """`num_classes`, and `class_names` where they are more than numbers."""
    names = fields.take("id2label", unnamed(2))
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{fields.where}: id2label should be a mapping of classes to their names")
    fields.require("num_labels", len(names))
    ordered = [names.get(str(number), names.get(number)) for number in range(len(names))]
    if not all(isinstance(name, str) and name for name in ordered) or len({*ordered}) < len(ordered):
        raise CheckpointError(
            f"{fields.where}: id2label should give each class from 0 to {len(names) - 1} a name of its own,"
            f" got {shown(names)}"
        )
    named = ordered != [*unnamed(len(names)).values()]
    return {"num_classes": len(names), "class_names": tuple(ordered) if named else None}


def read_spans(fields: Fields) -> dict[str, Any]:
    """The two classes of a head that finds answers, whatever a file calls them."""
    count = read_classes(fields)["num_classes"]
    if count != len(SPAN_CLASSES):
        raise CheckpointError(
            f"{fields.where}: a head that finds answers has two classes, where they begin and end, and"
            f" id2label names {count}; take the file that came with the weights"
        )
    return {"num_classes": count, "class_names": SPAN_CLASSES}


def unnamed(count: int) -> dict[int, str]:
    """What transformers calls classes that have no names."""
    return {number: f"LABEL_{number}" for number in range(count)}


def write_classes(config: ModelConfig) -> dict[str, Any]:
    """The names of the classes both ways; nothing without classes, or for a head that finds answers."""
    if config.num_classes is None or finds_spans(config):
        return {}
    names = dict(enumerate(config.class_names)) if config.class_names else unnamed(config.num_classes)
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


def finds_spans(config: ModelConfig) -> bool:
    """Whether the head says where an answer begins and ends."""
    return config.head == "token_classes" and config.class_names == SPAN_CLASSES


def head_word(config: ModelConfig) -> str:
    """What families call the head."""
    return SPANS if finds_spans(config) else config.head


def read_decoder_head(fields: Fields, classes: DecoderClasses) -> dict[str, Any]:
    """What differs from a language model where the file names the second of `classes`."""
    head = fields.architecture(dict(zip(classes, ("vocabulary", "pooled_classes"), strict=True)))
    if head == "vocabulary":
        return {}
    return {"head": head, "tied": False, "logit_soft_cap": None, **read_classes(fields)}


def write_decoder_head(config: ModelConfig, classes: DecoderClasses) -> dict[str, Any]:
    """The fields of a decoder's head, with which of `classes` it is."""
    return {"architectures": [classes[config.head == "pooled_classes"]], **write_classes(config)}
