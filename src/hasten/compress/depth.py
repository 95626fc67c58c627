"""Fewer layers: those that change the stream least are taken away (Men et al. 2024, ShortGPT)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from hasten.compress.importance import block_influence
from hasten.compress.smaller import check_plain, num_parameters, rebuilt, tell
from hasten.core.batch import Batch
from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.fewer import all_layers, renumbered, with_layers
from hasten.model.transformer import Transformer


class Depth(Config):
    """Take the least influential blocks away, so that a plain model with fewer layers is left.

    A block's influence is 1 - cos between what enters and what leaves it, over the tokens of the texts.  With
    `contiguous` one run of neighbours goes, that between whose ends the stream turns least (Gromov et al.
    2024).  Give either `share` or numbers of layers.
    """

    kind: Literal["depth"] = "depth"
    share: float | None = Field(None, gt=0, lt=1, description="of the layers to take away, of each side")
    layers: PositiveInt | None = Field(None, description="how many to take away; seq2seq: of the decoder's")
    encoder_layers: PositiveInt | None = Field(None, description="seq2seq: how many of the encoder's")
    contiguous: bool = Field(False, description="one run of neighbours instead of single layers")

    @model_validator(mode="after")
    def check_amount(self) -> "Depth":
        if (self.share is not None) == (self.layers is not None or self.encoder_layers is not None):
            raise ValueError("write either share, such as 0.25, or how many layers are to be taken away")
        return self

    def apply(self, model: Transformer, batches: Sequence[Batch]) -> Transformer:
        """The model with fewer layers, which shares its tensors with `model`.

        DataError where there is no token to read; ConfigError where no layer would go, or all of a side.
        """
        check_plain(model, "depth")
        counts = self.counts(model.config)
        influence = block_influence(model, batches, counts if self.contiguous else dict.fromkeys(counts, 1))
        goes = {side: self.choose(influence[side], count) for side, count in counts.items()}
        stay = {
            side: [layer for layer in layers if layer not in goes.get(side, ())]
            for side, layers in all_layers(model.config).items()
        }
        tensors = renumbered(model.state_dict(), stay)
        smaller = rebuilt(model, with_layers(model.config, stay), tensors)
        gone = ", ".join(f"{side}layers.{layer}" for side, layers in goes.items() for layer in layers)
        tell("depth", f"took {gone} away", num_parameters(model), num_parameters(smaller))
        return smaller

    def counts(self, config: ModelConfig) -> dict[str, int]:
        """How many layers go, of each side where some do."""
        if config.kind != "seq2seq" and self.encoder_layers is not None:
            raise ConfigError(
                f"depth.encoder_layers is for kind: seq2seq, and this is a {config.kind}; write layers"
            )
        depths = {side: len(layers) for side, layers in all_layers(config).items()}
        counts = {side: self.count(side, depth) for side, depth in depths.items()}
        for side, count in counts.items():
            if count >= depths[side]:
                raise ConfigError(
                    f"depth: {count} layers would go of {depths[side]}; take away at most {depths[side] - 1}"
                )
        if not any(counts.values()):
            most = max(depths.values())
            raise ConfigError(
                f"depth.share {self.share:g} of {most} layers is none; write more than {0.5 / most:.2g}"
            )
        return {side: count for side, count in counts.items() if count}

    def count(self, side: str, depth: int) -> int:
        """How many of the `depth` layers of a side are to go."""
        if self.share is not None:
            return round(self.share * depth)
        return (self.encoder_layers if side == "encoder." else self.layers) or 0

    def choose(self, influence: Tensor, count: int) -> list[int]:
        """The layers that go: of `influence` a number for each layer, or for the first of each run."""
        if self.contiguous:
            first = int(influence.argmin())
            return list(range(first, first + count))
        return sorted(influence.argsort(stable=True)[:count].tolist())
