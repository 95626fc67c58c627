"""Weights as small integers with a scale for each group of them: w = scale * q, symmetric about zero.

A group is so many neighbours of a row, and must divide the row; None is one group a row.

    bits    q               the usual scale     two a byte
    8       -127 ... 127    max |w| / 127       no
    4       -8 ... 7        max |w| / 7         the even one below, each plus 8

That is ggml's Q8_0 and Q4_0, and symmetric int8 and int4 in compressed-tensors.  Scales are numbers that
float16 holds, rounded up so that no weight is beyond the largest integer; what is far below its smallest
becomes zero.  Activations may be integers too, one scale a token (Dettmers et al. 2022, LLM.int8(), 2).

Letters in shapes: M tokens, O outputs, I inputs, G groups of a row.
"""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.core.errors import ConfigError

RANGE = {8: (-127, 127), 4: (-8, 7)}
"""The smallest and the largest integer of so many bits."""
MOST = 127
"""The largest integer of an activation."""
TINY = 1e-28
"""A token whose numbers are all smaller is zero: their inverse would be infinite."""


def quantize(weight: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """A matrix [O, I] rounded to nearest: int8 [O, I] and scales float32 [O, G].

    ConfigError for a group that does not divide I, and for numbers that have no scale in float16.
    """
    scales = scales_of(weight, bits, group)
    return round_to(weight, scales, bits), scales


def scales_of(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """The usual scales [O, G] of a matrix [O, I]: its largest magnitudes over the largest integer."""
    grouped = weight.detach().float().view(weight.shape[0], num_groups(weight.shape[1], group), -1)
    return held(grouped.abs().amax(dim=-1) / RANGE[bits][1])


def num_groups(inputs: int, group: int | None) -> int:
    """Scales of a row of `inputs` numbers; ConfigError for a group that does not divide them."""
    if group is None:
        return 1
    if inputs % group:
        raise ConfigError(
            f"a row of {inputs} numbers has no whole groups of {group}; write group_size:"
            f" {gcd(inputs, group)}, or null for one scale a row"
        )
    return inputs // group


def num_bytes(outputs: int, inputs: int, bits: int, group: int | None) -> int:
    """Bytes of a matrix [outputs, inputs] with its scales."""
    return outputs * (-(-inputs * bits // 8) + 2 * num_groups(inputs, group))


def held(scales: Tensor) -> Tensor:
    """The next larger numbers, in float32, that float16 holds; ConfigError where there is none."""
    short = scales.to(torch.float16)
    above = torch.nextafter(short, torch.full_like(short, float("inf")))
    scales = torch.where(short.float() < scales, above, short).float()
    if not bool(scales.isfinite().all()):
        raise ConfigError(
            "a weight is not finite, or so large that its scale is beyond float16; name the layer in skip"
        )
    return scales


def round_to(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest integers int8 [O, I] to a matrix [O, I] over its scales [O, G]; 0 where a scale is 0."""
    smallest, largest = RANGE[bits]
    steps = weight.detach().float().view(*scales.shape, -1)
    steps = steps / scales.masked_fill(scales == 0, float("inf"))[..., None]
    return steps.round_().clamp_(smallest, largest).to(torch.int8).flatten(1)


def dequantize(values: Tensor, scales: Tensor) -> Tensor:
    """The matrix float32 [O, I] that integers [O, I] and scales [O, G] stand for."""
    return (values.view(*scales.shape, -1) * scales.float()[..., None]).flatten(1)


def pack4(values: Tensor) -> Tensor:
    """Integers of four bits [O, I] as bytes uint8 [O, ceil(I / 2)]; an odd row ends with a zero."""
    codes = F.pad(values.to(torch.int16) + 8, (0, values.shape[1] % 2), value=8).to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def unpack4(packed: Tensor, inputs: int) -> Tensor:
    """What `pack4` made of int8 [O, inputs]."""
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :inputs]
    return codes.to(torch.int8) - 8


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [M, I] as int8 [M, I] and a scale float32 [M, 1] for each token."""
    x = x.float()
    most = x.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(most < TINY, 0.0, MOST / most)
    return (x * inverse).round_().to(torch.int8), most / MOST


def integer_product(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """x [M, I], values [O, I], scales [O, G] -> float32 [M, O], both sides as integers.

    Sums of products are exact within a group; those of the groups are added up in float32.
    """
    tokens, steps = quantize_tokens(x)
    rows, columns = (side.view(len(side), scales.shape[1], -1).unbind(1) for side in (tokens, values))
    total = x.new_zeros(len(x), len(values), dtype=torch.float32)
    for row, column, scale in zip(rows, columns, scales.float().unbind(1), strict=True):
        # In float64 every integer up to 2^53 is exact, and the product has a fast library behind it.
        total += (row.double() @ column.double().t()).float() * scale
    return total * steps
