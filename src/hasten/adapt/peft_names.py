"""Pairs of thin matrices under the names of a Hugging Face model, in which several layers of ours may be one.

Three layers in one matrix have one pair of three times the rank, [A_q; A_k; A_v] beside a block-diagonal B,
which is exactly the same.  One pair beside such a matrix becomes three: each has the columns of B that its
own rows use, and with them the rows of A.  Letters in shapes: I inputs, O outputs, R rank.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hasten.adapt.linear import LoraLinear
from hasten.adapt.lora import block_linears
from hasten.model.families.base import Family, Source, combine
from hasten.model.transformer import Transformer


@dataclass(frozen=True)
class Matrix:
    """A linear layer of theirs, and the layers of ours that lie in it, in order."""

    path: str  # as it is in a whole model of theirs
    plain: str  # without the family's prefix
    layers: dict[str, nn.Module]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Pair:
    """What is beside one matrix: a [R, I], b [O, R], and for DoRA the lengths [O] of rows; all float32."""

    a: Tensor
    b: Tensor
    scale: float
    lengths: Tensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return len(self.a)


def matrices(model: Transformer, family: Family) -> list[Matrix]:
    """All linear layers of the blocks under their names."""
    sources, found = family.sources(model.config), defaultdict[str, list[str]](list)
    for name in block_linears(model):
        found[sources[f"{name}.weight"].name].append(name)
    return [matrix_of(model, family, names) for names in found.values()]


def matrix_of(model: Transformer, family: Family, names: Iterable[str]) -> Matrix:
    """The matrix that these layers of ours lie in."""
    sources = family.sources(model.config)
    ordered = sorted(names, key=lambda name: sources[f"{name}.weight"].part)
    own = [sources[f"{name}.weight"] for name in ordered]
    path = family.written_name(own[0], headless=model.config.head == "none")
    # Pairs of theirs are [R, inputs] and [outputs, R] even beside a matrix that is the other way round.
    upright = tuple(replace(source, transposed=False) for source in own)
    layers = {name: model.get_submodule(name) for name in ordered}
    return Matrix(path.removesuffix(".weight"), own[0].name.removesuffix(".weight"), layers, upright)


@torch.no_grad()
def joined(matrix: Matrix) -> Pair:
    """The pairs of our layers as one beside their matrix; a layer without a pair has zeros in b."""
    pairs = [layer for layer in matrix.layers.values() if isinstance(layer, LoraLinear)]
    first, ranks = pairs[0], [layer.low_rank.rank for layer in pairs]
    columns = iter(torch.arange(sum(ranks)).split(ranks))
    blocks = []
    for layer in matrix.layers.values():
        assert isinstance(layer, nn.Linear)
        block = torch.zeros(layer.out_features, sum(ranks))
        if isinstance(layer, LoraLinear):
            block[:, next(columns)] = held(layer.lora_b) * (layer.scale / first.scale)
        blocks.append(block)
    lengths = None
    if first.low_rank.dora:
        lengths = together([row_lengths(layer) for layer in matrix.layers.values()], matrix)
    a = torch.cat([held(layer.lora_a) for layer in pairs])
    return Pair(a, together(blocks, matrix), first.scale, lengths)


def held(tensor: Tensor) -> Tensor:
    """A parameter's numbers in float32 on the CPU."""
    return tensor.detach().cpu().float()


def row_lengths(layer: nn.Module) -> Tensor:
    """The magnitudes [O] that DoRA trains; of a layer without them the lengths that its rows have."""
    if isinstance(layer, LoraLinear):
        return held(layer.base_weight().norm(dim=1) if layer.lora_magnitude is None else layer.lora_magnitude)
    assert isinstance(layer, nn.Linear)
    return held(layer.weight.norm(dim=1))


def together(parts: list[Tensor], matrix: Matrix) -> Tensor:
    """The rows of all layers as they lie in the matrix."""
    return combine(dict(enumerate(parts)), matrix.sources[0])


def apart(pair: Pair, matrix: Matrix) -> dict[str, Pair]:
    """The pair beside their matrix as pairs of our layers, by name; a layer that it leaves alone has none."""
    blocks = [source.extract(pair.b) for source in matrix.sources]
    used = torch.stack([(block != 0).any(dim=0) for block in blocks])  # [layers, R]
    found = dict[str, Pair]()
    for name, source, block, own in zip(matrix.layers, matrix.sources, blocks, used, strict=True):
        kept = own | ~used.any(dim=0)  # what no layer uses may be about to be trained
        lengths = None if pair.lengths is None else source.extract(pair.lengths)
        if lengths is not None and not kept.any():
            kept = torch.ones_like(kept)
        if kept.any():
            found[name] = Pair(pair.a[kept], block[:, kept], pair.scale, lengths)
    return found


def outermost(names: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """The largest modules that hold tensors of `chosen` and no other of `names`."""
    wanted, found = set(chosen), set[str]()
    others = set(names) - wanted
    for name in wanted:
        words = name.split(".")
        above = (".".join(words[:depth]) for depth in range(1, len(words)))
        found.add(next(module for module in above if not any(n.startswith(f"{module}.") for n in others)))
    return sorted(found)
