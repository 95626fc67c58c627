"""Matrix products in eight bits (Micikevicius et al. 2022, arXiv:2209.05433), twice the rate of bf16.

Weights and activations are rounded to E4M3 (4 bits of exponent, 3 of mantissa, up to 448), gradients to E5M2
(up to 57,344), each tensor divided by one scale that brings its largest number to the largest of the format,
taken anew every time.  Products are summed in float32 and come out in bfloat16.

Letters in shapes: M tokens, K inputs, N outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""The tensor cores take sizes that are multiples of it."""
TINY = 1e-12
"""A tensor of zeros has this for its largest number, and stays zeros."""


def fits_float8(*sizes: int) -> bool:
    """Whether products with these sizes can be computed in eight bits."""
    return all(size % MULTIPLE == 0 for size in sizes)


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias in eight bits: x [..., K], weight [N, K] -> [..., N] in bfloat16.

    The number of tokens, K and N must be multiples of 16.  A number that is not finite makes the result not
    finite, and so does one in the gradient.
    """
    out = Float8Product.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return out if bias is None else out + bias.to(out.dtype)


class Float8Product(torch.autograd.Function):
    """x weight^T: x [M, K], weight [N, K] -> [M, N]; what is kept for the gradient has eight bits too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (rounded_x, x_scale), (rounded_weight, weight_scale) = quantise(x, FORWARD), quantise(weight, FORWARD)
        ctx.save_for_backward(rounded_x, x_scale, rounded_weight, weight_scale)
        ctx.types = x.dtype, weight.dtype
        # Sums of a forward product may stay in the tensor cores' own registers, which is faster.
        return scaled_product(rounded_x, x_scale, rounded_weight, weight_scale, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        slope, slope_scale = quantise(gradient, BACKWARD)
        of_x = scaled_product(slope, slope_scale, turned(weight), weight_scale)
        of_weight = scaled_product(turned(slope), slope_scale, turned(x), x_scale)
        return of_x.to(ctx.types[0]), of_weight.to(ctx.types[1])


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x rounded to `dtype` after a division by a scale, and the scale, [] in float32."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp_min(TINY) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def turned(x: Tensor) -> Tensor:
    """The transpose, in memory too: both sides of a product in eight bits are read along their rows."""
    return x.t().contiguous()


def scaled_product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, *, fast: bool = False) -> Tensor:
    """a b^T times both scales: a [M, K], b [N, K] -> [M, N] in bfloat16."""
    return torch._scaled_mm(
        a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=fast
    )
