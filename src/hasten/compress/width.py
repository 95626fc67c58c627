"""Narrower layers: heads, inner channels and the stream, by what the texts make of them (Minitron).

Muralidharan et al. 2024.  Letters in shapes: D model width, H query heads, G key/value heads, K head width,
F feed-forward width, U units of heads.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from hasten.compress.axes import Axis, Kept, is_norm_of_stream, narrowed
from hasten.compress.importance import channel_importance, stacks_of, stream_importance
from hasten.compress.smaller import check_plain, num_parameters, rebuilt, tell
from hasten.compress.widths import check_family, narrower, of_share, units
from hasten.core.batch import Batch
from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer


class Width(Config):
    """Take heads, inner channels or numbers of the stream away, those that matter least to the texts.

    As many of each in every layer, so that a plain model is left, which `transformers` holds if it held the
    original.  Which heads and channels is each layer's own; keys and values go with all of their queries.
    The smaller model does what the original does with those parts set to zero; its LayerNorms, though not its
    RMSNorms, take mean and variance of what is left.  Give either `share` or the widths that are to be left.
    """

    kind: Literal["width"] = "width"
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of the parameters in the blocks to take away: channels, and heads if it is much",
    )
    num_heads: PositiveInt | None = Field(None, description="query heads that are left")
    ffn_dim: PositiveInt | None = Field(None, description="inner channels that are left")
    dim: PositiveInt | None = Field(None, description="numbers of the stream that are left")
    multiple: PositiveInt = Field(
        64, description="share: what ffn_dim is a multiple of, as matrix units like"
    )

    @model_validator(mode="after")
    def check_amount(self) -> "Width":
        widths = any(width is not None for width in (self.num_heads, self.ffn_dim, self.dim))
        if (self.share is not None) == widths:
            raise ValueError("write either share, such as 0.25, or some of num_heads, ffn_dim and dim")
        return self

    def apply(self, model: Transformer, batches: Sequence[Batch]) -> Transformer:
        """A smaller model; `model` stays as it is.

        DataError where there is no token to read; ConfigError for widths that the model cannot have.
        """
        check_plain(model, "width")
        before, after = model.config, self.target(model.config)
        kept = choose(model, batches, after)
        tensors = {name: narrowed(name, tensor, kept) for name, tensor in model.state_dict().items()}
        smaller = rebuilt(model, after, with_same_norms(model, after, tensors))
        changes = [
            f"{name} {getattr(before, name):,} -> {getattr(after, name):,}"
            for name in ("num_heads", "num_kv_heads", "ffn_dim", "dim")
            if getattr(before, name) != getattr(after, name)
        ]
        tell("width", ", ".join(changes), num_parameters(model), num_parameters(smaller))
        return smaller

    def target(self, config: ModelConfig) -> ModelConfig:
        """The shape that is left; ConfigError for widths that the model cannot have, or has."""
        given = {"num_heads": self.num_heads, "ffn_dim": self.ffn_dim, "dim": self.dim}
        widths = {name: width for name, width in given.items() if width is not None}
        after = (
            narrower(config, **widths) if self.share is None else of_share(config, self.share, self.multiple)
        )
        if after.num_parameters == config.num_parameters:
            raise ConfigError("width: the model is as narrow as that already; write smaller widths")
        check_family(config, after)
        return after


def choose(model: Transformer, batches: Sequence[Batch], after: ModelConfig) -> Kept:
    """Which parts of `model` stay in the shape `after`."""
    before, kept = model.config, dict[tuple[str, Axis], Tensor]()
    if after.dim < before.dim:
        kept["", "stream"] = largest(stream_importance(model, batches), after.dim)
    if (after.num_heads, after.ffn_dim) == (before.num_heads, before.ffn_dim):
        return kept
    importance = channel_importance(model, batches)
    for name, channels in importance.items():
        layer, _, kind = name.rpartition(".")
        if kind == "down" and after.ffn_dim < before.ffn_dim:
            kept[layer, "inner"] = largest(channels, after.ffn_dim)
    if after.num_heads < before.num_heads:
        kept |= choose_heads(model, importance, after)
    return kept


def choose_heads(
    model: Transformer, importance: Mapping[str, Tensor], after: ModelConfig
) -> dict[tuple[str, Axis], Tensor]:
    """Which heads stay: each layer's own, or one choice for a side whose heads have biases in one table."""
    config, kept = model.config, dict[tuple[str, Axis], Tensor]()
    most, each = units(config), config.num_heads // units(config)
    ends = {name.removesuffix(".out"): c for name, c in importance.items() if name.endswith(".out")}
    of_units = {name: channels.view(most, -1).sum(1) for name, channels in ends.items()}  # [U]
    for side, stack in stacks_of(model).items():
        if stack.relative is not None:
            own = [name for name in of_units if name.startswith(side) and name.endswith(".attention")]
            together = torch.stack([of_units[name] / of_units[name].sum() for name in own]).sum(0)
            of_units |= dict.fromkeys(own, together)
            stay = largest(together, after.num_heads // each)
            kept[side, "heads"] = spread(stay, each)
    for name, units_of in of_units.items():
        stay = largest(units_of, after.num_heads // each)
        kept[name, "queries"] = spread(stay, each * config.head_dim)
        if config.num_kv_heads > 1:
            kept[name, "keys"] = spread(stay, config.head_dim)
    return kept


def largest(importance: Tensor, count: int) -> Tensor:
    """The numbers of the `count` most important, rising: [count]."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def spread(numbers: Tensor, width: int) -> Tensor:
    """What each of so many things of a `width` is made of: `spread([0, 2], 2)` -> `[0, 1, 4, 5]`."""
    return (numbers[:, None] * width + torch.arange(width, device=numbers.device)).flatten()


def with_same_norms(
    model: Transformer, after: ModelConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors with RMSNorms that give what they gave over the whole stream, the rest of it zero."""
    before, offset = model.config, float(model.config.norm_offset)
    if before.norm != "rms" or after.dim == before.dim:
        return dict(tensors)
    factor = (before.dim / after.dim) ** 0.5
    changed = {
        name: (tensor + offset) * factor - offset
        for name, tensor in tensors.items()
        if is_norm_of_stream(name)
    }
    if before.embedding_norm is True:
        new = tensors["embedding.weight"].new_full((after.dim,), factor - offset)
        changed |= {f"{side}embedding_norm.weight": new.clone() for side in stacks_of(model)}
    return {**tensors, **changed}
