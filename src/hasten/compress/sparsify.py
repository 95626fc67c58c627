"""Zeros in the place of the weights that matter least: by magnitude, or as Wanda (Sun et al. 2024).

Letters in shapes: I inputs, O outputs, M neighbours in a row.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hasten.compress.smaller import check_plain, chosen
from hasten.compress.sparsegpt import sparsegpt
from hasten.compress.statistics import block_by_block
from hasten.core.batch import Batch
from hasten.core.config import Config
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.model.transformer import Transformer

PATTERN = re.compile(r"([1-9]\d?):([1-9]\d?)")


class Sparsify(Config):
    """Set a share of every row of the blocks' matrices to zero: those of its weights that matter least.

    A weight matters by |w| alone (magnitude), by |w| times the L2 norm of what it is multiplied with (wanda),
    or by what the others cannot make up for, and then do (sparsegpt); block after block, each with what the
    pruned ones before it give.  The model keeps its shape, and its size until what stores or multiplies it
    knows of zeros.  Trained on with `train.keep_zeros`, it keeps them.
    """

    kind: Literal["sparsify"] = "sparsify"
    method: Literal["wanda", "sparsegpt", "magnitude"] = "wanda"
    sparsity: float = Field(0.5, gt=0, lt=1, description="of each row that becomes zero")
    pattern: str | None = Field(
        None, description="2:4 keeps 2 of each 4 neighbours, as GPUs' sparse cores want; sets the share too"
    )
    skip: tuple[str, ...] = Field((), description="patterns of names of layers that stay as they are")

    @model_validator(mode="after")
    def check_pattern(self) -> "Sparsify":
        if self.pattern is None:
            return self
        match = PATTERN.fullmatch(self.pattern)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"pattern {self.pattern!r} does not say how many of how many stay; write 2:4")
        given, follows = self.sparsity, 1 - int(match[1]) / int(match[2])
        if "sparsity" in self.model_fields_set and given != follows:
            raise ValueError(
                f"pattern {self.pattern} is a sparsity of {follows:g}, not {given:g}; leave it out"
            )
        return self

    def apply(self, model: Transformer, batches: Sequence[Batch]) -> Transformer:
        """The same model with zeros; magnitude looks at no batch.

        ConfigError where a row has no whole groups of the pattern; DataError where there is no token to read.
        """
        check_plain(model, "sparsify", factored=True)
        layers = chosen(model, self.skip, "sparsify")
        self.check_groups(layers)
        for name, weight in self.pruned(model, batches, layers):
            layers[name].weight.detach().copy_(weight)
        zeros = sum(int((layer.weight == 0).sum()) for layer in layers.values())
        numbers = sum(parameter.numel() for parameter in model.parameters())
        say(
            f"sparsify: {zeros:,} of {numbers:,} parameters are zero now, in {len(layers)} matrices; none is"
            " gone, so that the model is as large and as fast as before wherever zeros count as numbers"
        )
        return model

    def check_groups(self, layers: dict[str, nn.Linear]) -> None:
        """Refuse a layer whose rows the pattern does not divide."""
        for name, layer in layers.items():
            if layer.in_features % self.group(layer.in_features)[1]:
                raise ConfigError(
                    f"sparsify.pattern: a row of {name} has {layer.in_features} numbers, no whole groups of"
                    f" {self.pattern}; name it in skip"
                )

    def group(self, inputs: int) -> tuple[int, int]:
        """How many of how many neighbours in a row become zero."""
        if self.pattern is None:
            return round(self.sparsity * inputs), inputs
        stay, size = map(int, self.pattern.split(":"))
        return size - stay, size

    def pruned(
        self, model: Transformer, batches: Sequence[Batch], layers: dict[str, nn.Linear]
    ) -> Iterator[tuple[str, Tensor]]:
        """The weight [O, I] of each layer with its zeros, once the blocks before have theirs."""
        if self.method == "magnitude":
            for name, layer in layers.items():
                yield name, self.without(layer.weight, layer.weight.detach().abs())
            return
        for at in block_by_block(model, batches):
            for name, found in at.moments(gram=self.method == "sparsegpt").items():
                if name not in layers:
                    continue
                weight = layers[name].weight.detach()
                if found.gram is None:
                    yield name, self.without(weight, weight.float().abs() * found.square.sqrt())
                else:
                    yield name, sparsegpt(weight, found.gram, *self.group(weight.shape[1]))

    def without(self, weight: Tensor, scores: Tensor) -> Tensor:
        """A weight [O, I] with zeros where the scores [O, I] are the lowest of their row or their group."""
        count, size = self.group(weight.shape[1])
        groups = scores.unflatten(1, (-1, size))  # [O, I / M, M]
        where = groups.topk(count, dim=-1, largest=False, sorted=False).indices
        goes = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, where, True).flatten(1)
        return weight.detach().masked_fill(goes, 0)
