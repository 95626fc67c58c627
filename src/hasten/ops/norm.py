"""Normalisation over the last dimension.  Letters in shapes: D width."""

import torch.nn.functional as F
from torch import Tensor

from hasten.ops.kernels.call import usable
from hasten.ops.kernels.norm import Norm


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), in the precision of x [..., D]."""
    if usable(x, *given(weight)):
        return Norm.apply(x, weight, None, eps, False)
    # With a weight of another precision PyTorch warns and leaves its fused kernels.
    return F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016), in the precision of x [..., D]."""
    if usable(x, *given(weight), *given(bias)):
        return Norm.apply(x, weight, bias, eps, True)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def given(*tensors: Tensor | None) -> list[Tensor]:
    """Those that are not None."""
    return [tensor for tensor in tensors if tensor is not None]
