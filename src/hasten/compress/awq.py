"""AWQ: channels that matter are made larger before they are rounded, and what gives them smaller by as much.

Lin et al. 2024, 3.2: of W diag(s) . diag(s)^-1 x the first product is rounded, with s_j = mean|x_j|^alpha,
and the second goes into the layer or the norm that gives x, so that the model is a plain one.  That is exact
only where a factor of the giver's channel comes through unchanged.  Letters in shapes: I inputs of the
readers, C channels of the giver, O outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hasten.compress.rtn import nearest, output_error
from hasten.compress.statistics import Moments
from hasten.model.block import Block
from hasten.model.norm import LayerNorm, RMSNorm
from hasten.ops import activation

ALPHAS = tuple(i / 10 for i in range(1, 11))
"""What is tried beside 0, which leaves all as it is."""
GATED = (activation.swiglu, activation.geglu, activation.geglu_tanh)
POWERS: dict[Callable[..., Tensor], float] = {activation.relu: 1.0, activation.relu_squared: 0.5}
POWERS |= dict.fromkeys(GATED, 1.0)
"""Activations through which a factor s of what comes out is a factor s^power of `up`."""


@dataclass(frozen=True)
class Fold:
    """A place where channels can be scaled: `readers` read what `giver` gives, by their names in the block.

    Each of the giver's channels is read `repeat` times, in runs of `run` channels (a head), and `power` is
    that of `POWERS`.
    """

    giver: str
    readers: tuple[str, ...]
    repeat: int = 1
    run: int = 1
    power: float = 1.0

    def gathered(self, of_inputs: Tensor) -> Tensor:
        """[I] -> [C]: the mean over the inputs that are one channel."""
        return of_inputs.view(-1, self.repeat, self.run).mean(1).flatten()

    def spread(self, of_channels: Tensor) -> Tensor:
        """[C] -> [I]."""
        return of_channels.view(-1, 1, self.run).expand(-1, self.repeat, -1).flatten()


def folds_of(block: Block) -> Iterator[Fold]:
    """Where channels of a block can be scaled so that it computes the same."""
    if block.before:
        yield Fold("attention_norm", ("attention.query", "attention.key", "attention.value"))
        yield Fold("ffn_norm", ("ffn.up",) if block.ffn.gate is None else ("ffn.gate", "ffn.up"))
    if block.before and block.cross is not None:
        yield Fold("cross_norm", ("cross.query",))
    for name in ("attention", "cross"):
        attention = getattr(block, name)
        if attention is not None:
            repeat = attention.out.in_features // attention.value.out_features
            yield Fold(f"{name}.value", (f"{name}.out",), repeat, attention.head_dim)
    power = POWERS.get(block.ffn.activation)
    if power is not None:
        yield Fold("ffn.up", ("ffn.down",), power=power)


def left_out(block: Block) -> list[str]:
    """Which layers of a block read channels that cannot be scaled exactly, in words; none where all can."""
    words = []
    if not block.before:
        words.append("what reads the stream itself (norms are after the layers)")
    if block.ffn.activation not in POWERS:
        words.append(f"ffn.down ({block.ffn.activation.__name__} lets no factor through)")
    return words


def usable(block: Block, fold: Fold) -> bool:
    """Whether all layers of a fold are plain ones, and not two thin matrices or integers already."""
    giver = block.get_submodule(fold.giver)
    return isinstance(giver, nn.Linear | RMSNorm | LayerNorm) and all(
        isinstance(block.get_submodule(name), nn.Linear) for name in fold.readers
    )


@torch.no_grad()
def best_factors(
    weights: Sequence[Tensor], grids: Sequence[tuple[int, int | None]], moments: Moments, fold: Fold
) -> Tensor | None:
    """The factors [C] under which rounding the readers' `weights` costs least; None where none helps.

    `grids` says for each reader in how many bits and which groups it will be.
    """
    assert moments.gram is not None
    size = fold.gathered(moments.absolute / max(moments.count, 1)).clamp_min(1e-4)
    best, least = None, rounding_error(weights, grids, moments.gram, torch.ones_like(moments.absolute))
    for alpha in ALPHAS:
        factors = size**alpha
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = rounding_error(weights, grids, moments.gram, fold.spread(factors))
        if error < least:
            best, least = factors, error
    return best


def rounding_error(
    weights: Sequence[Tensor], grids: Sequence[tuple[int, int | None]], gram: Tensor, factors: Tensor
) -> float:
    """By how much what comes out moves when the weights are rounded with their inputs times `factors` [I]."""
    changes = (
        nearest(w * factors, *grid).weight / factors - w for w, grid in zip(weights, grids, strict=True)
    )
    return sum(output_error(change, gram) for change in changes)


@torch.no_grad()
def put_factors(block: Block, fold: Fold, factors: Tensor) -> None:
    """Make what `giver` gives smaller by `factors` [C], and the readers' weights larger."""
    spread = fold.spread(factors)
    for name in fold.readers:
        cast(nn.Linear, block.get_submodule(name)).weight.mul_(spread)
    giver, factors = block.get_submodule(fold.giver), factors**fold.power
    if isinstance(giver, RMSNorm):
        giver.weight.copy_(giver.scale / factors - (1 if giver.offset else 0))
        return
    giver = cast("nn.Linear | LayerNorm", giver)
    giver.weight.div_(factors if isinstance(giver, LayerNorm) else factors[:, None])
    if giver.bias is not None:
        giver.bias.div_(factors)


def scaled(moments: Moments, factors: Tensor) -> Moments:
    """The moments of inputs that have become smaller by `factors` [I]."""
    gram = None if moments.gram is None else moments.gram / torch.outer(factors, factors)
    return Moments(moments.square / factors.square(), moments.absolute / factors, moments.count, gram)


def scale_block(
    block: Block, name: str, moments: Mapping[str, Moments], grids: Mapping[str, tuple[int, int | None]]
) -> dict[str, Moments]:
    """Scale a block's channels wherever that helps; the moments of its layers after that.

    `moments` and `grids` are by the names that layers have in the model, where the block is `name`; a layer
    without a grid stays as it is.
    """
    result = dict(moments)
    for fold in folds_of(block):
        readers = [f"{name}.{reader}" for reader in fold.readers]
        wanted = [reader for reader in readers if reader in grids]
        if not usable(block, fold) or not wanted:
            continue
        weights = [cast(nn.Linear, block.get_submodule(r.removeprefix(f"{name}."))).weight for r in wanted]
        factors = best_factors(weights, [grids[r] for r in wanted], result[readers[0]], fold)
        if factors is not None:
            put_factors(block, fold, factors)
            after = scaled(result[readers[0]], fold.spread(factors))  # they read one tensor
            result |= dict.fromkeys(readers, after)
    return result
