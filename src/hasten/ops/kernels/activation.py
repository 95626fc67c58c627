"""Activations of the feed-forward layer in one pass each way."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.kernels.call import call


class Activation(torch.autograd.Function):
    """`silu`, `gelu` or `gelu_tanh` of every number of x, which is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        call(f"{name}_forward", x.dtype, x, out, x.numel())
        ctx.save_for_backward(x)
        ctx.name = name
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (saved,) = ctx.saved_tensors
        return slope_times(ctx.name, gradient, saved), None


class ActivationByOutput(torch.autograd.Function):
    """`relu` or `relu_squared` of every number of x.

    The output tells the slope, and is what is kept: the next product keeps that one anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        call(f"{name}_forward", x.dtype, x, out, x.numel())
        ctx.save_for_backward(out)
        ctx.name = name
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return slope_times(ctx.name, gradient, out), None


def slope_times(name: str, gradient: Tensor, saved: Tensor) -> Tensor:
    """The gradient with respect to the input, from what the forward pass saved."""
    gradient, dx = gradient.contiguous(), torch.empty_like(saved)
    call(f"{name}_backward", saved.dtype, gradient, saved, dx, saved.numel())
    return dx


class Gated(torch.autograd.Function):
    """activation(gate) * up, number by number: `swiglu`, `geglu` or `geglu_tanh`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, name: str) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        call(f"{name}_forward", gate.dtype, gate, up, out, gate.numel())
        ctx.save_for_backward(gate, up)
        ctx.name = name
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        gradient, dgate, dup = gradient.contiguous(), torch.empty_like(gate), torch.empty_like(up)
        call(f"{ctx.name}_backward", gate.dtype, gradient, gate, up, dgate, dup, gate.numel())
        return dgate, dup, None
