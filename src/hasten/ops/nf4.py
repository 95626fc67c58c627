"""Weights in four bits: NF4, the quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, 3).

A matrix is read row after row in blocks of 64 numbers.  Of a block its largest magnitude is kept, the scale,
and of each number which of 16 values it is nearest to once divided by it.  Two such codes make a byte, the
first in its upper half.  The scales themselves, a float32 for 64 numbers, are half a bit a number: with
double quantisation they are kept in eight bits, in groups of 256, as steps from their common mean.

    bits a number       codes   scales              together
    plain               4       32 / 64             4.5
    double              4       8 / 64 + 32 / 16384  4.127

Letters in shapes: N numbers, filled up with zeros to whole blocks, and S blocks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, GROUP = 64, 256
"""Numbers that share a scale, and scales that share a step."""
OFFSET = 0.9677083
"""The outermost quantile, halfway between those of 15 and of 16 equal shares: bitsandbytes' constant."""
LARGEST_STEP = 127
"""Steps from the mean that eight bits with a sign count."""
TINY = 1e-30
"""A block of zeros is divided by it, and stays zeros."""


def code_book() -> Tensor:
    """The 16 values [16] from -1 to 1 in float32: 7 quantiles below zero, zero, 8 above, as bitsandbytes has.

    Zero is exact, so that what is padded or pruned stays zero.
    """
    above = torch.linspace(OFFSET, 0.5, 9, device="cpu")[:-1].double()
    below = torch.linspace(OFFSET, 0.5, 8, device="cpu")[:-1].double()
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    quantiles = torch.cat((torch.special.ndtri(above), zero, -torch.special.ndtri(below))).sort().values
    quantiles = quantiles.float()  # before the division, else some differ from theirs in the last bit
    return quantiles / quantiles[-1]


BOOK = code_book()
MIDDLES = (BOOK[1:] + BOOK[:-1]) / 2
PAIRS = torch.stack((BOOK.repeat_interleave(16), BOOK.repeat(16)), dim=1)
"""What each byte means, [256, 2]."""


def num_blocks(numbers: int) -> int:
    """Blocks that so many numbers make, the last one filled up."""
    return -(-numbers // BLOCK)


def quantize(weight: Tensor, double: bool = True) -> tuple[Tensor, ...]:
    """A matrix packed: codes uint8 [N / 2] and scales, float32 [S], or doubly quantised.

    Then there are int8 [S], a step float32 [S / 256] for each group of them, and their mean float32 [1].
    """
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    shares = blocks / scales.clamp_min(TINY)[:, None]
    codes = torch.bucketize(shares, MIDDLES.to(shares.device), out_int32=True).to(torch.uint8).view(-1, 2)
    packed = codes[:, 0] * 16 + codes[:, 1]
    return (packed, *quantize_scales(scales)) if double else (packed, scales)


def quantize_scales(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales [S] as int8 [S], steps [S / 256] and mean [1]; off by half a step at most."""
    mean = scales.mean(dim=0, keepdim=True)
    groups = F.pad(scales - mean, (0, -len(scales) % GROUP)).view(-1, GROUP)
    steps = groups.abs().amax(dim=1) / LARGEST_STEP
    counts = (groups / steps.clamp_min(TINY)[:, None]).round().clamp(-LARGEST_STEP, LARGEST_STEP)
    return counts.to(torch.int8).flatten()[: len(scales)].contiguous(), steps, mean


def dequantize(packed: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """What `quantize` packed, as a float32 matrix of this shape."""
    codes, scales = packed[0], scales_of(packed[1:])
    pairs = F.embedding(codes.int(), PAIRS.to(codes.device, non_blocking=True))  # [N / 2, 2]
    numbers = pairs.view(-1, BLOCK) * scales[:, None]
    return numbers.flatten()[: shape[0] * shape[1]].view(shape[0], shape[1])


def scales_of(kept: Sequence[Tensor]) -> Tensor:
    """The scales [S] in float32."""
    if len(kept) == 1:
        return kept[0].float()
    counts, steps, mean = kept
    return counts * steps.repeat_interleave(GROUP)[: len(counts)] + mean
