"""A model with some of its layers: its configuration, and its parameters under their new numbers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hasten.model.config import ModelConfig

NAMED = re.compile(r"(?P<side>(?:encoder\.|decoder\.)?)layers\.(?P<number>\d+)\.(?P<rest>.+)")

Stay = Mapping[str, Sequence[int]]
"""{side: its layers that stay, rising}; sides are "encoder." and "decoder." of a seq2seq model, else ""."""


def all_layers(config: ModelConfig) -> dict[str, list[int]]:
    """Every layer of each side."""
    if config.kind != "seq2seq":
        return {"": list(range(config.num_layers))}
    return {
        "encoder.": list(range(config.encoder_layers)),
        "decoder.": list(range(config.decoder_layers)),
    }


def with_layers(config: ModelConfig, stay: Stay) -> ModelConfig:
    """`config` with the layers that `stay`; which of them have a window goes with them."""
    own = stay["decoder." if "decoder." in stay else ""]
    values = config.model_dump() | {"num_layers": len(own), "preset": None}
    if "encoder." in stay:
        values["num_encoder_layers"] = len(stay["encoder."])
    if config.window_layers is not None:
        values |= windows(config, own)
    return ModelConfig.model_validate(values)


def windows(config: ModelConfig, own: Sequence[int]) -> dict[str, Any]:
    """The fields about windows once these layers are all: none where no layer with a window is left."""
    with_window = tuple(n for n, layer in enumerate(own) if config.window_of(layer) is not None)
    if not with_window:
        return dict.fromkeys(("sliding_window", "window_layers", "local_rope_theta"))
    return {"window_layers": None if len(with_window) == len(own) else with_window}


def renumbered(tensors: Mapping[str, Tensor], stay: Stay) -> dict[str, Tensor]:
    """Those of the tensors that are left, by their new names."""
    found = {name_in(name, stay): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name is not None}


def name_in(name: str, stay: Stay) -> str | None:
    """What a parameter is called among the layers that `stay`, None where it is not there."""
    match = NAMED.fullmatch(name)
    if match is None:
        return name
    numbers, number = stay[match["side"]], int(match["number"])
    if number not in numbers:
        return None
    return f"{match['side']}layers.{numbers.index(number)}.{match['rest']}"
