"""The two-layer perceptron of a block, plain or gated.  Letters in shapes as in `transformer.py`."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from hasten.model.config import ModelConfig


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in GPT-2's tanh approximation (Hendrycks & Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared (So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu_squared": relu_squared,
    "swiglu": F.silu,
}


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(silu(gate(x)) * up(x)) where it is gated (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        gated, bias = config.gated, config.ffn_bias
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=bias) if gated else None
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))
