"""Four bits a number: bitsandbytes' code book, the nearest code, and bounds of what is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.ops.nf4 import BLOCK, BOOK, GROUP, dequantize, num_blocks, quantize, scales_of

PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
]  # fmt: skip
"""QLoRA, appendix E; bitsandbytes' functional.py."""


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_code_book_has_the_16_published_values() -> None:
    assert torch.equal(BOOK, torch.tensor(PUBLISHED))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 150), seed=st.integers(0, 99))
def test_each_number_becomes_the_nearest_value_of_its_block(rows: int, columns: int, seed: int) -> None:
    weight = gaussian(rows, columns, seed=seed)
    found = dequantize(quantize(weight, double=False), weight.shape)
    for start in range(0, weight.numel(), BLOCK):
        block = weight.flatten()[start : start + BLOCK]
        choices = BOOK.double() * block.abs().max()
        nearest = (block.double()[:, None] - choices).abs().min(dim=1).values
        lost = (block.double() - found.flatten()[start : start + BLOCK]).abs()
        torch.testing.assert_close(lost, nearest, rtol=0, atol=1e-6)


def test_two_codes_make_a_byte_the_first_in_its_upper_half() -> None:
    weight = torch.zeros(1, BLOCK)
    weight[0, :3] = torch.tensor([1.0, -1.0, 0.5626170039176941])
    codes, scales = quantize(weight, double=False)
    assert codes[:2].tolist() == [15 * 16 + 0, 13 * 16 + 7] and scales.tolist() == [1.0]
    assert codes.shape == (BLOCK // 2,) and codes.dtype == torch.uint8


def test_zeros_and_the_largest_of_a_block_stay_what_they_are() -> None:
    weight = gaussian(4, 96)
    weight[1] = 0
    found = dequantize(quantize(weight, double=False), weight.shape)
    assert not found[1].any()
    largest = weight.flatten().view(-1, BLOCK).abs().argmax(dim=1) + BLOCK * torch.arange(6)
    assert torch.equal(found.flatten()[largest], weight.flatten()[largest])
    assert not dequantize(quantize(torch.zeros(3, 50)), (3, 50)).any()


def int4_absmax(weight: Tensor) -> Tensor:
    """Sixteen equal steps a block, the largest magnitude at the end: what NF4 is better than."""
    blocks = weight.flatten().view(-1, BLOCK)
    steps = blocks.abs().amax(dim=1, keepdim=True) / 7
    return ((blocks / steps).round().clamp(-8, 7) * steps).view(weight.shape)


@pytest.mark.parametrize("double", [False, True])
def test_gaussian_weights_lose_less_than_by_equal_steps(double: bool) -> None:
    weight = gaussian(512, 512)
    error = (dequantize(quantize(weight, double), weight.shape) - weight).square().mean()
    assert error < 0.9 * (int4_absmax(weight) - weight).square().mean()


@settings(max_examples=20, deadline=None)
@given(blocks=st.integers(1, 700), seed=st.integers(0, 99), spread=st.floats(0, 3))
def test_scales_in_eight_bits_are_off_by_half_a_step_at_most(blocks: int, seed: int, spread: float) -> None:
    # Blocks of very different size, as in a matrix with outliers.
    weight = gaussian(blocks, BLOCK, seed=seed) * (spread * gaussian(blocks, 1, seed=seed + 1)).exp()
    packed, exact = quantize(weight), weight.abs().amax(dim=1)
    off = (scales_of(packed[1:]) - exact).abs()
    for start in range(0, blocks, GROUP):
        part = slice(start, start + GROUP)
        bound = (exact[part] - exact.mean()).abs().max() / 254
        assert off[part].max() <= bound * 1.001 + 1e-6 * exact.max()


def test_a_number_takes_4_and_an_eighth_bits() -> None:
    weight = gaussian(256, 1024)
    bits = 8 * sum(part.nbytes for part in quantize(weight)) / weight.numel()
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), rel=1e-3)
    assert num_blocks(weight.numel()) == len(quantize(weight)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_type_are_packed(dtype: torch.dtype) -> None:
    weight = gaussian(7, 33).to(dtype)
    found = dequantize(quantize(weight), weight.shape)
    assert found.dtype == torch.float32 and (found - weight.float()).abs().max() < 0.6
