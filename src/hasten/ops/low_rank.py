"""A frozen linear layer with a product of two thin matrices beside it: x W^T + s (x A^T) B^T.

The full matrix s B A (Hu et al. 2022, arXiv:2106.09685) is never made.  What belongs to the frozen part takes
no gradient, and the two parts are added up within the products, forward and backward, so that no pass over
memory is spent on it.  W may be stored in another form than the products want, in a longer type or packed
(`nf4.py`): it is made ready for a product and forgotten, and made again for the backward pass.

Letters in shapes: M tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.nf4 import dequantize


def low_rank_linear(
    x: Tensor,
    stored: Sequence[Tensor],
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scale: float,
    seen: Tensor | None = None,
) -> Tensor:
    """x [..., I], a [R, I], b [O, R] -> [..., O] in the type of x.

    `stored` is the frozen weight [O, I], or what `nf4.quantize` made of it.  `seen` [..., I] is what the thin
    matrices read in place of x: x after dropout.  Gradients go to x, `seen`, a and b.
    """
    bias = None if bias is None else bias.to(x.dtype)
    return LowRank.apply(x, seen, bias, a.to(x.dtype), b.to(x.dtype), scale, *stored)


def dense(stored: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight [O, I] as products want it."""
    return (stored[0] if len(stored) == 1 else dequantize(stored, shape)).to(dtype)


def rows(x: Tensor) -> Tensor:
    """[..., I] -> [M, I]."""
    return x.flatten(0, -2)


class LowRank(torch.autograd.Function):
    """`low_rank_linear` in one type.

    What is between the thin matrices lies as [R, M]: with the few rows in front, a CPU's library computes
    these products up to six times as fast.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd hands on positions)
        ctx: Any,
        x: Tensor,
        seen: Tensor | None,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        *stored: Tensor,
    ) -> Tensor:
        out = F.linear(x, dense(stored, (b.shape[0], a.shape[1]), x.dtype), bias)
        read = rows(x if seen is None else seen)
        inner = (a @ read.t()).mul_(scale)  # [R, M]
        out.view(-1, out.shape[-1]).addmm_(inner.t(), b.t())
        ctx.save_for_backward(read, inner, a, b, *stored)
        ctx.scale, ctx.apart, ctx.shape = scale, seen is not None, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        read, inner, a, b, *stored = ctx.saved_tensors
        slope = rows(gradient)
        of_inner = (b.t() @ slope.t()).mul_(ctx.scale)  # [R, M]
        of_a, of_b = of_inner @ read, (inner @ slope).t()
        of_x = of_seen = None
        if ctx.needs_input_grad[0]:
            of_x = slope @ dense(stored, (b.shape[0], a.shape[1]), slope.dtype)
            if not ctx.apart:
                of_x.addmm_(of_inner.t(), a)
            of_x = of_x.view(ctx.shape)
        if ctx.apart and ctx.needs_input_grad[1]:
            of_seen = (of_inner.t() @ a).view(ctx.shape)
        return of_x, of_seen, None, of_a, of_b, None, *(None for _ in stored)


def row_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Lengths [O] in float32 of the rows of W + s B A, which is not made; a [R, I], b [O, R]."""
    weight, a, b = weight.float(), a.float(), b.float()
    square = weight.square().sum(dim=1)
    crossed = ((weight @ a.t()) * b).sum(dim=1)
    thin = ((b @ (a @ a.t())) * b).sum(dim=1)
    return (square + 2 * scale * crossed + scale**2 * thin).clamp_min(0).sqrt()
