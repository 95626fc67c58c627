"""The residual block.  Letters in shapes as in `transformer.py`."""

import torch.nn.functional as F
from torch import Tensor, nn

from hasten.model.attention import Attention
from hasten.model.config import ModelConfig
from hasten.model.feed_forward import FeedForward
from hasten.model.norm import make_norm


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, angles: Tensor | None, segments: Tensor | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        x = x + self.drop(self.attention(self.attention_norm(x), angles, segments))
        return x + self.drop(self.ffn(self.ffn_norm(x)))

    def drop(self, x: Tensor) -> Tensor:
        """Residual dropout, in training only."""
        return F.dropout(x, self.dropout, self.training)
