"""Activations of the feed-forward layer in one pass each way."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.kernels.call import call


class Activation(torch.autograd.Function):
    """`gelu` or `gelu_tanh` of every number of x."""

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


class ReluSquared(torch.autograd.Function):
    """max(x, 0)^2, which keeps its output for the backward pass: the next product keeps that one anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        call("relu_squared_forward", x.dtype, x, out, x.numel())
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return slope_times("relu_squared", gradient, out)


def slope_times(name: str, gradient: Tensor, saved: Tensor) -> Tensor:
    """The gradient with respect to the input, from what the forward pass saved."""
    gradient, dx = gradient.contiguous(), torch.empty_like(saved)
    call(f"{name}_backward", saved.dtype, gradient, saved, dx, saved.numel())
    return dx


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, number by number."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        call("swiglu_forward", gate.dtype, gate, up, out, gate.numel())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gradient, dgate, dup = gradient.contiguous(), torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_backward", gate.dtype, gradient, gate, up, dgate, dup, gate.numel())
        return dgate, dup
