"""RMSNorm and LayerNorm in one pass each way.  Letters in shapes: D width."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.kernels.call import call


class Norm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension of x [..., D].

    Without `centred` the mean counts as zero: that is RMSNorm.  Two numbers a row are kept beside x.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd has no keywords)
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
    ) -> Tensor:
        x, width = x.contiguous(), x.shape[-1]
        rows = x.numel() // max(width, 1)
        mean, rstd = torch.empty(2, rows).unbind()
        out, scale = torch.empty_like(x), single(weight)
        call("norm_forward", x.dtype, x, scale, single(bias), out, mean, rstd, rows, width, centred, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.centred = centred
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        gradient, dx = gradient.contiguous(), torch.empty_like(x)
        dweight, dbias = (
            torch.empty(p.shape) if p is not None and needed else None
            for p, needed in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        saved = (gradient, x, single(weight), mean, rstd)
        call("norm_backward", x.dtype, *saved, dx, dweight, dbias, len(rstd), x.shape[-1], ctx.centred)
        return dx, as_type(dweight, weight), as_type(dbias, bias), None, None


def single(parameter: Tensor | None) -> Tensor | None:
    """A parameter as the kernels read it, in contiguous float32."""
    return None if parameter is None else parameter.float().contiguous()


def as_type(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """A gradient in its parameter's precision."""
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)
