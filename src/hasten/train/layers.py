"""Which layers of its teacher a student begins with (Sanh et al. 2019); `model/fewer.py` takes them out."""

from typing import Literal

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.objective.inner import spread

Layers = Literal["spread", "first", "last"] | tuple[int, ...]
COUNTS = ("num_layers", "num_encoder_layers")
"""Of a model's configuration: how many layers a student has of each side, where a rule chooses them."""


def chosen(layers: Layers, depth: int, count: int) -> list[int]:
    """Which of `depth` layers a student of `count` begins with; those that are listed, if they are there."""
    if isinstance(layers, tuple):
        return listed(layers, depth)
    if count > depth:
        raise ConfigError(
            f"layers: {layers} would take {count} layers of a base that has {depth}; write model.num_layers"
            f" as at most {depth}"
        )
    if layers == "spread":
        return spread(depth, count)
    return list(range(count)) if layers == "first" else list(range(depth - count, depth))


def listed(layers: tuple[int, ...], depth: int) -> list[int]:
    """The layers of a list, refused where one is missing or comes twice."""
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or not layers or sorted(set(layers)) != list(layers):
        raise ConfigError(
            f"layers is {list(layers)}, and the base has {depth} layers; write numbers from 0 to {depth - 1}"
            " in rising order, each once"
        )
    return list(layers)


def sides(layers: Layers, base: ModelConfig, asked: ModelConfig) -> dict[str, list[int]]:
    """{side of the model: the layers of `base` that stay}, by a rule as many as are `asked` for there."""
    if base.kind != "seq2seq":
        return {"": chosen(layers, base.num_layers, asked.num_layers)}
    return {
        "encoder.": chosen(layers, base.encoder_layers, asked.num_encoder_layers or asked.num_layers),
        "decoder.": chosen(layers, base.decoder_layers, asked.num_layers),
    }
