"""The block formats of GGUF against their formulas written out, and against the package gguf where it is."""

import numpy as np
import pytest

from hasten.model.gguf.quant import (
    BF16,
    BLOCK,
    F16,
    F32,
    FORMATS,
    Q4_0,
    Q4_1,
    Q8_0,
    Format,
    dequantize,
    quantize,
)


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def random_blocks(format: Format, count: int, draw: np.random.Generator) -> np.ndarray:
    """Any bytes, but finite scales: exponents of float16 below 31."""
    blocks = draw.integers(0, 256, (count, format.block_bytes), dtype=np.uint8)
    for high_byte in {Q8_0: [1], Q4_0: [1], Q4_1: [1, 3], F16: [1], BF16: [1], F32: [3]}[format]:
        blocks[:, high_byte] &= 0xBB
    return blocks


def half(low: int, high: int) -> float:
    """A float16 from its two bytes, by its definition."""
    bits = low | high << 8
    sign, exponent, fraction = -1.0 if bits >> 15 else 1.0, bits >> 10 & 31, bits & 1023
    return sign * (fraction * 2.0**-24 if exponent == 0 else (1 + fraction / 1024) * 2.0 ** (exponent - 15))


def written_out(block: list[int], format: Format) -> list[float]:
    """The 32 numbers of a block, one by one, as ggml-common.h describes it."""
    scale = half(block[0], block[1])
    if format is Q8_0:
        return [scale * (byte - 256 if byte > 127 else byte) for byte in block[2:]]
    first = 4 if format is Q4_1 else 2
    quants = [block[first + i] & 15 for i in range(16)] + [block[first + i] >> 4 for i in range(16)]
    if format is Q4_1:
        return [scale * q + half(block[2], block[3]) for q in quants]
    return [scale * (q - 8) for q in quants]


@pytest.mark.parametrize("format", [Q8_0, Q4_0, Q4_1], ids=lambda f: f.name)
def test_blocks_are_read_as_their_formula_says(format, draw):
    blocks = random_blocks(format, 50, draw)
    found = dequantize(blocks.reshape(-1), format).reshape(50, BLOCK)
    expected = np.array([written_out(block.tolist(), format) for block in blocks])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)  # one product, one sum in float32


def test_bfloat16_is_the_upper_half_of_a_float32(draw):
    values = draw.normal(size=64).astype(np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    found = dequantize(upper, BF16)
    assert np.array_equal(found.view(np.uint32) >> 16, values.view(np.uint32) >> 16)
    assert not (found.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("format", [F32, F16], ids=lambda f: f.name)
def test_floats_come_back(format, draw):
    values = draw.normal(size=96).astype(np.float32)
    expected = values if format is F32 else values.astype(np.float16).astype(np.float32)
    assert np.array_equal(dequantize(quantize(values, format), format), expected)


def test_eight_bits_are_never_further_off_than_half_a_step(draw):
    values = (draw.normal(size=(40, BLOCK)) * 10.0 ** draw.integers(-1, 3, (40, 1))).astype(np.float32)
    values[0], values[1, 0] = 0, 0
    again = dequantize(quantize(values.reshape(-1), Q8_0), Q8_0).reshape(40, BLOCK)
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    # Half a step, and the scale's rounding to float16: 2^-11 of values up to 127 steps.
    assert (np.abs(again - values) <= step * (0.5 + 127 * 2.0**-11) + 1e-7).all()
    assert not again[0].any()


def test_halves_are_rounded_away_from_zero():
    values = np.zeros(BLOCK, np.float32)
    values[:4] = 127, 0.5, -0.5, 2.5  # the scale is 1
    packed = quantize(values, Q8_0)
    assert packed[2:6].view(np.int8).tolist() == [127, 1, -1, 3]


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_the_package_gguf_reads_the_same(format, draw):
    quants = pytest.importorskip("gguf.quants", reason="the package gguf is not installed")
    from gguf import GGMLQuantizationType

    blocks = random_blocks(format, 64, draw).reshape(-1)
    theirs = quants.dequantize(blocks, GGMLQuantizationType(format.id))
    assert np.array_equal(dequantize(blocks, format), theirs.reshape(-1))


@pytest.mark.parametrize("format", [F16, Q8_0], ids=lambda f: f.name)
def test_the_package_gguf_writes_the_same(format, draw):
    quants = pytest.importorskip("gguf.quants", reason="the package gguf is not installed")
    from gguf import GGMLQuantizationType

    values = draw.normal(size=640).astype(np.float32)
    theirs = quants.quantize(values, GGMLQuantizationType(format.id))
    assert quantize(values, format).tobytes() == theirs.tobytes()
