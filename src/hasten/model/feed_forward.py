"""The two-layer perceptron of a block, plain or gated.  Letters in shapes as in `transformer.py`."""

from collections.abc import Callable

from torch import Tensor, nn

from hasten.model.config import ModelConfig
from hasten.ops import activation as functions

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "gelu": functions.gelu,
    "gelu_tanh": functions.gelu_tanh,
    "relu": functions.relu,
    "relu_squared": functions.relu_squared,
    "silu": functions.silu,
    "swiglu": functions.swiglu,
    "geglu": functions.geglu,
    "geglu_tanh": functions.geglu_tanh,
}


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(act(gate(x)) * up(x)) where it is gated (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        gated, bias = config.gated, config.ffn_bias
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=bias) if gated else None
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        inner = (self.up(x),) if self.gate is None else (self.gate(x), self.up(x))
        return self.down(self.activation(*inner))
