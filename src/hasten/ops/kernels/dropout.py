"""Dropout whose mask is a hash of a seed and of places: it is made again instead of kept."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.kernels.call import call

SEEDS = 2**63 - 1


def next_seed() -> int:
    """A number of torch's generator for the CPU, which a checkpoint holds."""
    return int(torch.randint(SEEDS, ()))


class Dropout(torch.autograd.Function):
    """Zero for a `share` of the numbers of x, and the others times 1 / (1 - share)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.seed, ctx.share = next_seed(), share
        return dropped(x, ctx.seed, share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return dropped(gradient, ctx.seed, ctx.share), None


def dropped(x: Tensor, seed: int, share: float) -> Tensor:
    """What is left of x, contiguous."""
    x = x.contiguous()
    out = torch.empty_like(x)
    call("dropout", x.dtype, x, out, x.numel(), seed, float(share))
    return out
