"""What is kept of a teacher's distribution over many tokens: some of them, with weights.

Letters in shapes: N places, V vocabulary, K tokens kept of a place at most.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """Of each place `sizes` [N] tokens [N, K] with weights [N, K], 0 beyond, and the entropy [N] of all."""

    tokens: Tensor
    weights: Tensor
    sizes: Tensor
    entropy: Tensor


def entropy_of(log_p: Tensor) -> Tensor:
    """Of each place, in nats: log_p [N, V] -> [N]."""
    return -(log_p.exp() * log_p).sum(dim=-1)


def drawn(log_p: Tensor, chance: Tensor, samples: int) -> Kept:
    """Tokens drawn `samples` times from log_p [N, V]; a token's weight is its share of the draws.

    One number in [0, 1) decides all draws of a place, `chance` [N]: they are taken at equal distances along
    the cumulated distribution (systematic sampling, Kitagawa 1996).  A token of probability p then comes
    p x samples times in the mean, as with independent draws, and never a whole time more or less than that.
    """
    sums = log_p.double().exp().cumsum(dim=-1)
    steps = torch.arange(samples, device=log_p.device) + chance.to(log_p.device).double()[:, None]
    found = torch.searchsorted(sums, steps / samples * sums[:, -1:], right=True).clamp(max=log_p.shape[1] - 1)
    new = torch.ones_like(found, dtype=torch.bool)
    new[:, 1:] = found[:, 1:] != found[:, :-1]
    place = new.cumsum(dim=-1) - 1  # draws rise: equal ones are neighbours
    weights = torch.zeros_like(log_p[:, :1]).repeat(1, samples)
    weights.scatter_add_(1, place, torch.full_like(weights, 1 / samples))
    tokens = torch.zeros_like(found).scatter_(1, place, found)
    return Kept(tokens, weights, new.sum(dim=-1), entropy_of(log_p))


def likeliest(log_p: Tensor, count: int) -> Kept:
    """The `count` likeliest tokens of log_p [N, V], their probabilities made to sum to 1.

    Biased where count < V: the mass of what is left out goes to what is kept.
    """
    best, tokens = log_p.topk(min(count, log_p.shape[1]), dim=-1)
    sizes = torch.full_like(tokens[:, 0], tokens.shape[1])
    return Kept(tokens, best.softmax(dim=-1), sizes, entropy_of(log_p))
