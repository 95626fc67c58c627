"""Matrices as products of two thin ones, chosen by what the texts make of them (Wang et al. 2024, SVD-LLM).

The outputs W X of a weight W [O, I] on inputs X [I, N] have the squared singular values and left vectors U of
W X X^T W^T.  The best W of rank R for these inputs is U_R U_R^T W, and ||D X|| of what it changes, D, is the
root of the sum of the squares that are cut off.  SVD-LLM comes to the same by the SVD of W L, L L^T = X X^T;
this way nothing is inverted, whatever X is.  Letters in shapes: I inputs, O outputs, M = min(O, I), R rank,
N tokens.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from hasten.compress.smaller import check_plain, chosen, num_parameters, tell
from hasten.compress.statistics import BlockAt, block_by_block
from hasten.core.batch import Batch
from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.model.factored import FactoredLinear, put_factored
from hasten.model.transformer import Transformer


class LowRank(Config):
    """Put two thin matrices in the place of each matrix of the blocks from which that takes parameters away.

    The ranks share one budget over all layers: parameter by parameter, it goes where it saves most of the
    layer's own output on the texts.  A layer whose rank would save no parameter is left whole.  (SmolLM2-135M
    without a fifth of its blocks: a perplexity of 188 so, of 289 with the same share from each layer.)
    """

    kind: Literal["low_rank"] = "low_rank"
    share: float = Field(
        0.2, gt=0, lt=1, description="of the parameters in the blocks' matrices to take away"
    )
    skip: tuple[str, ...] = Field((), description="patterns of names of layers that stay as they are")

    def apply(self, model: Transformer, batches: Sequence[Batch]) -> Transformer:
        """The same model with `FactoredLinear` layers, each fitted to what those before it give.

        DataError where there is no token to read; ConfigError where the share leaves no rank to a layer.
        """
        check_plain(model, "low_rank")
        layers, before = chosen(model, self.skip, "low_rank"), num_parameters(model)
        squares = {
            name: found.squares.cpu()
            for at in block_by_block(model, batches)
            for name, found in spectra_of(at, layers).items()
        }
        ranks = shared_out(squares, {name: layer.weight.shape for name, layer in layers.items()}, self.share)
        lost = whole = 0.0
        for at in block_by_block(model, batches):
            for name, found in spectra_of(at, ranks).items():
                halves = cut(layers[name].weight, found, ranks[name])
                lost, whole = lost + halves.loss**2, whole + float(found.squares.sum())
                put_halves(model, name, halves)
        what = f"{len(ranks)} of {len(layers)} matrices are two thin ones, of ranks {min(ranks.values())} to"
        what += f" {max(ranks.values())}, expected to lose {lost / whole:.2%} of their outputs' squares"
        tell("low_rank", what, before, num_parameters(model))
        return model


class Spectrum(NamedTuple):
    """What the outputs of a layer are made of, in float64: directions, and the sum of squares along each."""

    directions: Tensor  # U [O, M], orthonormal
    squares: Tensor  # [M], falling


class Halves(NamedTuple):
    """A matrix of rank R in two, and the Frobenius norm of what it changes in the outputs."""

    up: Tensor  # [O, R]
    down: Tensor  # [R, I]
    loss: float


def spectrum(weight: Tensor, gram: Tensor) -> Spectrum:
    """That of a weight [O, I] on inputs of which `gram` is X X^T [I, I]."""
    weight, gram = weight.detach().double(), gram.double()
    tall = weight.shape[0] > weight.shape[1]
    basis, core = torch.linalg.qr(weight) if tall else (None, weight)
    squares, vectors = torch.linalg.eigh(core @ gram @ core.t())  # rising
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    return Spectrum(vectors if basis is None else basis @ vectors, squares)


def cut(weight: Tensor, found: Spectrum, rank: int) -> Halves:
    """The best of that rank in halves of equal size, and what it loses."""
    up = found.directions[:, :rank]
    down = up.t() @ weight.detach().double()
    size = down.norm(dim=1).sqrt().clamp(min=1e-30)  # so that both halves bear rounding and rates alike
    return Halves(up * size, down / size[:, None], float(found.squares[rank:].sum().sqrt()))


def spectra_of(at: BlockAt, names: Mapping[str, object]) -> dict[str, Spectrum]:
    """Those of a block's layers that are named, on what they read now."""
    inside = {f"{at.name}.{name}": module for name, module in at.block.named_modules()}
    return {
        name: spectrum(cast(Tensor, inside[name].weight), cast(Tensor, found.gram))
        for name, found in at.moments().items()
        if name in names
    }


def shared_out(
    squares: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], share: float
) -> dict[str, int]:
    """The rank of each layer once a share of all parameters is gone; a layer that stays whole is left out.

    `squares` are those that a layer's outputs lose with each rank, falling.  Ranks are dealt one by one, each
    to the layer that gains most of its own output for a parameter.
    """
    sizes = {name: shapes[name][0] * shapes[name][1] for name in squares}
    each = {name: sum(shapes[name]) for name in squares}  # parameters of a rank
    room = int((1 - share) * sum(sizes.values())) - sum(each.values())
    if room < 0:
        most = 1 - sum(each.values()) / sum(sizes.values())
        raise ConfigError(f"low_rank.share {share:g} leaves no rank to a layer; write at most {most:.2g}")
    gains = {name: (own / own.sum().clamp(min=1e-300)).tolist() for name, own in squares.items()}
    ranks = dict.fromkeys(squares, 1)
    heap = [(-gains[name][1] / each[name], name) for name in squares if len(gains[name]) > 1]
    heapify(heap)
    while heap:
        _, name = heappop(heap)
        taken = ranks[name] * each[name]
        if min(each[name], sizes[name] - taken) > room:
            continue
        if taken + each[name] >= sizes[name]:
            room -= sizes[name] - taken
            del ranks[name]
            continue
        room, ranks[name] = room - each[name], ranks[name] + 1
        heappush(heap, (-gains[name][ranks[name]] / each[name], name))
    return ranks


@torch.no_grad()
def put_halves(model: nn.Module, name: str, halves: Halves) -> None:
    """Put two thin matrices in the place of a layer."""
    put_factored(model, {name: halves.up.shape[1]})
    layer = model.get_submodule(name)
    assert isinstance(layer, FactoredLinear)
    layer.up.weight.copy_(halves.up)
    layer.down.weight.copy_(halves.down)
