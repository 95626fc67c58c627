"""Norm and rotation of queries and keys in one pass each way.

Letters in shapes: B rows, T tokens, H heads, K head width.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.kernels.call import call, usable

Integers = ctypes.Array[ctypes.c_int64]


def can_rotate(x: Tensor, angles: Tensor, *weights: Tensor) -> bool:
    """Whether `Rotary` can take these: whole heads, and angles for every token or every position."""
    return (
        usable(x, angles, *weights)
        and x.dim() == 4
        and angles.dtype == torch.float32
        and not angles.requires_grad
        and angles.shape[-1] * 2 == x.shape[3]
        and positions(angles) in (x.shape[1], x.shape[0] * x.shape[1])
    )


class Rotary(torch.autograd.Function):
    """rotate(rms_norm(x, weight, eps), angles) of x [B, T, H, K]; without a weight, the rotation alone.

    Heads may lie anywhere as long as the K numbers of each lie together.  x alone is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        x, angles = dense(x), angles.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        single = None if weight is None else weight.float().contiguous()
        call("rotate_forward", x.dtype, x, strides(x), single, angles, out, shape(x, angles), eps)
        # A rotation's gradient does not depend on what was turned: then x need not be kept.
        ctx.save_for_backward(angles, weight, None if weight is None else x)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        angles, weight, x = ctx.saved_tensors
        gradient = dense(gradient)
        x, dx = gradient if x is None else x, torch.empty(gradient.shape, dtype=gradient.dtype)
        single = None if weight is None else weight.float().contiguous()
        dweight = torch.empty(x.shape[3]) if weight is not None and ctx.needs_input_grad[2] else None
        turned = (gradient, strides(gradient), x, strides(x), single, angles)
        call("rotate_backward", x.dtype, *turned, dx, dweight, shape(x, angles), ctx.eps)
        return dx, None, None if dweight is None else dweight.to(weight.dtype), None


def dense(x: Tensor) -> Tensor:
    """x with the numbers of each head beside each other."""
    return x if x.stride(3) == 1 else x.contiguous()


def strides(x: Tensor) -> Integers:
    """Numbers from one row, token and head to the next, as `struct Strides`."""
    return (ctypes.c_int64 * 3)(*x.stride()[:3])


def shape(x: Tensor, angles: Tensor) -> Integers:
    """B, T, H, K and how many tokens have angles of their own, as `struct Shape`."""
    return (ctypes.c_int64 * 5)(*x.shape, positions(angles))


def positions(angles: Tensor) -> int:
    """For how many tokens there are angles [2, (B,) T, 1, K / 2]."""
    return angles.shape[1:-2].numel()
