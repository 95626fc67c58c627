"""What stands between the matrices of a feed-forward layer."""

import torch.nn.functional as F
from torch import Tensor

from hasten.ops.kernels.activation import Activation, ReluSquared, SwiGLU
from hasten.ops.kernels.call import usable


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared (So et al. 2021)."""
    return ReluSquared.apply(x) if usable(x) else F.relu(x).square()


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016)."""
    return Activation.apply(x, "gelu") if usable(x) else F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in GPT-2's tanh approximation (Hendrycks & Gimpel 2016)."""
    return Activation.apply(x, "gelu_tanh") if usable(x) else F.gelu(x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape (Shazeer 2020)."""
    if usable(gate, up) and gate.dtype == up.dtype:
        return SwiGLU.apply(gate, up)
    return F.silu(gate) * up


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


def silu(x: Tensor) -> Tensor:
    """x times its logistic function (Elfwing et al. 2018), also called swish."""
    return F.silu(x)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, of one shape (Shazeer 2020)."""
    return gelu(gate) * up


def geglu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) * up, of one shape: Gemma's, and T5 1.1's."""
    return gelu_tanh(gate) * up
