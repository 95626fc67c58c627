"""What stands between the matrices of a feed-forward layer."""

import torch.nn.functional as F
from torch import Tensor

from hasten.ops.kernels.activation import Activation, ActivationByOutput, Gated
from hasten.ops.kernels.call import usable


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return ActivationByOutput.apply(x, "relu") if usable(x) else F.relu(x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared (So et al. 2021)."""
    return ActivationByOutput.apply(x, "relu_squared") if usable(x) else F.relu(x).square()


def silu(x: Tensor) -> Tensor:
    """x times its logistic function (Elfwing et al. 2018), also called swish."""
    return Activation.apply(x, "silu") if usable(x) else F.silu(x)


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016)."""
    return Activation.apply(x, "gelu") if usable(x) else F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in GPT-2's tanh approximation (Hendrycks & Gimpel 2016)."""
    return Activation.apply(x, "gelu_tanh") if usable(x) else F.gelu(x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape (Shazeer 2020)."""
    return Gated.apply(gate, up, "swiglu") if can_gate(gate, up) else F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, of one shape (Shazeer 2020)."""
    return Gated.apply(gate, up, "geglu") if can_gate(gate, up) else F.gelu(gate) * up


def geglu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) * up, of one shape: T5 1.1's and Gemma's."""
    return (
        Gated.apply(gate, up, "geglu_tanh") if can_gate(gate, up) else F.gelu(gate, approximate="tanh") * up
    )


def can_gate(gate: Tensor, up: Tensor) -> bool:
    """Whether a kernel can take these two."""
    return usable(gate, up) and gate.dtype == up.dtype
