"""Rotary positions (Su et al. 2021): queries and keys are turned by angles that grow with the position.

Letters in shapes: B rows, T tokens, H heads, K head width.
"""

import math

import torch
from torch import Tensor

from hasten.ops.kernels.rotary import Rotary, can_rotate
from hasten.ops.norm import rms_norm


def frequencies(head_dim: int, theta: float = 10_000.0, device: torch.device | None = None) -> Tensor:
    """Radians per position of each pair of numbers, [K / 2] in float32, from 1 down to about 1 / theta."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponents


def interpolate_linear(frequency: Tensor, factor: float) -> Tensor:
    """Slow every rotation down by `factor` (position interpolation, Chen et al. 2023)."""
    return frequency / factor


def interpolate_llama3(
    frequency: Tensor, factor: float, low: float, high: float, original_positions: int
) -> Tensor:
    """Slow down by `factor` the rotations that turn less than `low` times in the original context.

    Those that turn more than `high` times are kept, and in between the two are blended (Llama 3.1).
    """
    turns = original_positions * frequency / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * kept + frequency / factor * (1 - kept)


def rotary_angles(positions: Tensor, frequency: Tensor) -> Tensor:
    """Cosines and sines for `rotate`: positions [T] or [B, T], frequency [K / 2] -> [2, (B,) T, 1, K / 2].

    In float32 whatever the precision around it: in bfloat16 neighbouring positions fall together.
    """
    angles = positions[..., None, None].float() * frequency
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (i, i + K / 2) of each head by its position's angles: x [B, T, H, K] -> [B, T, H, K]."""
    if can_rotate(x, angles):
        return Rotary.apply(x, angles, None, 0.0)
    cos, sin = angles.unbind()  # each [(B,) T, 1, K / 2]
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def norm_and_rotate(x: Tensor, weight: Tensor, angles: Tensor, eps: float) -> Tensor:
    """rotate(rms_norm(x, weight, eps), angles): x [B, T, H, K], weight [K] -> [B, T, H, K]."""
    if can_rotate(x, angles, weight):
        return Rotary.apply(x, angles, weight, eps)
    return rotate(rms_norm(x, weight, eps), angles)
