"""Where a token stands, as the configuration tells it."""

import torch
from torch import Tensor

from hasten.model.config import LinearRope, Llama3Rope, ModelConfig
from hasten.ops.rope import frequencies, interpolate_linear, interpolate_llama3


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians per position of each pair of a head, [K / 2], stretched for long contexts where asked."""
    frequency = frequencies(config.head_dim, config.rope_theta, device)
    match config.rope_scaling:
        case None:
            return frequency
        case LinearRope(factor=factor):
            return interpolate_linear(frequency, factor)
        case Llama3Rope() as s:
            return interpolate_llama3(
                frequency, s.factor, s.low_frequency, s.high_frequency, s.original_positions
            )
