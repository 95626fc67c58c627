"""Where a token stands, as the configuration tells it.  Letters in shapes as in `transformer.py`."""

import math

import torch
from torch import Tensor, nn

from hasten.model.config import LinearRope, Llama3Rope, ModelConfig
from hasten.ops.rope import frequencies, interpolate_linear, interpolate_llama3

WAVELENGTH = 10_000.0
"""Of the slowest sinusoidal position, in turns of 2 pi (Vaswani et al. 2017, 3.5)."""


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians per position of each pair of a head, stretched for long contexts where asked: [pairs]."""
    frequency = frequencies(config.rotary_dim, config.rope_theta, device)
    match config.rope_scaling:
        case None:
            return frequency
        case LinearRope(factor=factor):
            return interpolate_linear(frequency, factor)
        case Llama3Rope() as s:
            return interpolate_llama3(
                frequency, s.factor, s.low_frequency, s.high_frequency, s.original_positions
            )


def counted(positions: Tensor | None, row: Tensor) -> Tensor:
    """Positions as given, or from 0, [T], where rows [B, T, ...] come without."""
    return torch.arange(row.shape[1], device=row.device) if positions is None else positions


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of D / 2 frequencies (Vaswani et al. 2017, 3.5): positions [...] -> [..., D].

    The paper takes turns between the two, which is the same up to the order of the D numbers.  In float32 the
    angles of late positions would be off by 1e-4.
    """
    pairs = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None] * WAVELENGTH ** (-pairs / dim)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()


class RelativeBias:
    """What T5 adds to the scores (Raffel et al. 2020, 2.1): a number for each head and bucket of distance.

    One forward pass makes one, which all layers share.
    """

    def __init__(self, table: nn.Embedding, distance: int, *, causal: bool) -> None:
        self.table, self.distance, self.causal = table, distance, causal
        self.made: dict[tuple[int, int], Tensor] = {}

    def __call__(self, num_queries: int, num_keys: int) -> Tensor:
        """For the last T of S positions: float32 [H, T, S]."""
        size = num_queries, num_keys
        if size not in self.made:
            at = torch.arange(num_keys, device=self.table.weight.device)
            ahead = at - at[num_keys - num_queries :, None]  # [T, S]
            buckets = bucket(ahead, self.table.num_embeddings, self.distance, causal=self.causal)
            self.made[size] = self.table(buckets).permute(2, 0, 1).float()
        return self.made[size]


def bucket(ahead: Tensor, num_buckets: int, distance: int, *, causal: bool) -> Tensor:
    """How far a key stands ahead of a query, as one of `num_buckets`: near ones exact, far ones by logarithm.

    Where one may look both ways, half of the buckets are for keys that come later.
    """
    start = torch.zeros_like(ahead)
    if not causal:
        num_buckets //= 2
        start = (ahead > 0) * num_buckets
        far = ahead.abs()
    else:
        far = (-ahead).clamp(min=0)
    exact = num_buckets // 2
    steps = (far.float().clamp(min=1) / exact).log() / math.log(distance / exact) * (num_buckets - exact)
    logarithmic = (exact + steps.long()).clamp(max=num_buckets - 1)
    return start + torch.where(far < exact, far, logarithmic)
