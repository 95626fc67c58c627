"""Weights rounded to the nearest integer over a scale, and scales under which that costs least.

The usual scale puts a group's largest magnitude on the largest integer.  One that lets the largest weight be
cut off a little, or puts it on -8 where four bits have no 8, often makes a smaller error in all.  Letters in
shapes: O outputs, I inputs, G groups of a row, n numbers of a group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.ops.quantize import RANGE, dequantize, num_groups, quantize, round_to

TRIED = {
    4: (-9.5, -8.75, -8.0, -7.25, -6.5, -5.75, 5.25, 6.0, 6.75, 7.0, 7.5),
    8: (-129.0, -125.0, 121.0, 125.0, 127.0, 129.0),
}
"""What the largest weight of a group is put on in turn; four times as many make 2% less error."""
AT_ONCE = 1 << 16
"""Weights for which scales are searched at a time, so that they stay in a processor's cache."""


class Rounded(NamedTuple):
    """A matrix as integers of `bits`, and a scale for each `group` of a row (None: for each row)."""

    values: Tensor  # int8 [O, I]
    scales: Tensor  # float32 [O, G], which float16 holds
    bits: int
    group: int | None

    @property
    def weight(self) -> Tensor:
        """The matrix float32 [O, I] that they stand for."""
        return dequantize(self.values, self.scales)


def nearest(weight: Tensor, bits: int, group: int | None, scales: Tensor | None = None) -> Rounded:
    """A matrix [O, I] rounded to nearest over `scales` [O, G], by default the usual ones."""
    if scales is None:
        return Rounded(*quantize(weight, bits, group), bits, group)
    return Rounded(round_to(weight, scales, bits), scales, bits, group)


@torch.no_grad()
def output_error(change: Tensor, gram: Tensor) -> float:
    """tr(D X X^T D^T): how far a change D [O, I] of a weight moves what comes out, squared and summed."""
    return float(((change @ gram) * change).sum())


@torch.no_grad()
def best_scales(weight: Tensor, bits: int, group: int | None, importance: Tensor | None = None) -> Tensor:
    """Scales [O, G] that make sum_j h_j (w_j - s q_j)^2 small, of either sign, for a matrix [O, I].

    `importance` h [I] is by default 1; with the sum of squares of each input it is the error of what comes
    out, as if the inputs were independent.  Each candidate's integers are rounded to nearest and its scale is
    then the one that fits them best, by least squares.  ConfigError for weights that float16 cannot scale.
    """
    count = num_groups(weight.shape[1], group)
    groups = weight.detach().float().unflatten(1, (count, -1))  # [O, G, n]
    heights = groups.new_ones(weight.shape[1]) if importance is None else importance
    rows = groups.split(max(AT_ONCE // weight.shape[1], 1))
    return torch.cat([searched(some, heights.view(1, count, -1), bits) for some in rows])


def searched(groups: Tensor, heights: Tensor, bits: int) -> Tensor:
    """The best of the scales that are tried [O, G] for groups [O, G, n] with importance [1, G, n]."""
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]  # [O, G]
    best, least = torch.zeros_like(peak), torch.full_like(peak, float("inf"))
    for step in TRIED[bits]:
        scales = fitted(groups, heights, peak / step, bits)
        error = (heights * (groups - scales[..., None] * rounded(groups, scales, bits)).square()).sum(-1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    if not bool(least.isfinite().all()):
        raise ConfigError(
            "a weight is not finite, or so large that its scale is beyond float16; leave this layer out by"
            " skip"
        )
    return best


def rounded(groups: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest integers, as floats [O, G, n], to groups over scales [O, G]."""
    whole = groups / scales.masked_fill(scales == 0, float("inf"))[..., None]
    return whole.round_().clamp_(*RANGE[bits])


def fitted(groups: Tensor, heights: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The scales [O, G] of least squares for the integers that `scales` give, as float16 holds them."""
    whole = rounded(groups, scales, bits)
    weighed = heights * whole
    below = (weighed * whole).sum(-1)
    fit = torch.where(below > 0, (weighed * groups).sum(-1) / below.clamp_min(1e-38), scales)
    return fit.to(torch.float16).float()
