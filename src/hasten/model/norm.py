"""Normalisation over the last dimension."""

from torch import Tensor, nn

from hasten.model.config import ModelConfig
from hasten.ops.norm import layer_norm, rms_norm


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) times a weight (Zhang & Sennrich 2019), in the precision of x."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) times a weight plus a bias (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        return layer_norm(x, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """The configuration's norm over the model width."""
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.dim, eps=config.norm_eps)
