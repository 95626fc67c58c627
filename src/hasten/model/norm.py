"""Normalisation over the last dimension."""

from torch import Tensor, nn

from hasten.model.config import ModelConfig
from hasten.ops.norm import layer_norm, rms_norm


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) times a weight (Zhang & Sennrich 2019), in the precision of x.

    With `offset` the factor is 1 + weight (Gemma), so that decay draws it to one.
    """

    eps: float

    def __init__(self, width: int, eps: float, *, offset: bool = False) -> None:
        super().__init__(width, eps)
        self.offset = offset

    @property
    def scale(self) -> Tensor:
        """What x is multiplied by: [width]."""
        return self.weight + 1 if self.offset else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        return rms_norm(x, self.scale, self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) times a weight plus a bias (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        return layer_norm(x, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The configuration's norm over the model width, or an RMS norm over another `width`, as of heads."""
    if config.norm == "layer" and width is None:
        return LayerNorm(config.dim, eps=config.norm_eps)
    return RMSNorm(width or config.dim, config.norm_eps, offset=config.norm_offset)
