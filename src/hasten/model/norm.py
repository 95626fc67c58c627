"""Normalisation over the last dimension."""

import torch.nn.functional as F
from torch import Tensor, nn

from hasten.model.config import ModelConfig


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) times a weight (Zhang & Sennrich 2019), in the precision of x."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        # With a weight of another precision PyTorch warns and leaves its fused kernels.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """The configuration's norm over the model width."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.dim, eps=config.norm_eps)
