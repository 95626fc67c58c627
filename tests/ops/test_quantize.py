"""Small integers with scales: rounding and packing by their definitions, kernels against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.ops import quantized_linear as ways
from hasten.ops.kernels import matrix as kernel
from hasten.ops.kernels.library import library
from hasten.ops.quantize import (
    RANGE,
    dequantize,
    integer_product,
    num_bytes,
    pack4,
    quantize,
    quantize_tokens,
    round_to,
    scales_of,
    unpack4,
)
from hasten.ops.quantized_linear import Integers, dense, quantized_linear

compiled = pytest.mark.skipif(library() is None, reason="the kernels cannot be compiled or run here")
shapes = pytest.mark.parametrize(
    ("outputs", "inputs", "group"),
    [
        (8, 64, 32),
        (9, 128, 64),
        (37, 384, 128),
        (5, 37, None),
        (16, 2048, None),
        (3, 225, 75),
        (70, 84, 12),
    ],
)
both = pytest.mark.parametrize("bits", [8, 4])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(outputs: int, inputs: int, bits: int, group: int | None) -> Integers:
    values, scales = quantize(normal(outputs, inputs) * 0.05, bits, group)
    return Integers(values if bits == 8 else pack4(values), scales.half(), bits, inputs)


def exact(weight: Integers) -> Tensor:
    """The matrix in float64, written out."""
    rows = weight.unpacked().double().view(*weight.scales.shape, -1)
    return (rows * weight.scales.double()[..., None]).flatten(1)


@both
@pytest.mark.parametrize("group", [None, 4, 12])
def test_the_nearest_integer_is_chosen_and_the_largest_weight_is_held(bits, group):
    weight = normal(7, 24)
    values, scales = quantize(weight, bits, group)
    smallest, largest = RANGE[bits]
    steps = weight.double() / scales.double().repeat_interleave(24 // scales.shape[1], dim=1)
    assert torch.equal(values.double(), steps.round().clamp(smallest, largest))
    assert (steps.abs() <= largest).all()
    assert torch.equal(scales, scales.half().float())
    error = (dequantize(values, scales) - weight).abs()
    assert (error <= 0.50001 * scales.repeat_interleave(24 // scales.shape[1], dim=1)).all()


@both
def test_numbers_far_below_float16_become_small_steps_and_zeros_stay(bits):
    weight = torch.tensor([[1e-6, -5e-7, 0.0, 2e-7], [0.0, 0.0, 0.0, 0.0]])
    values, scales = quantize(weight, bits, 4)
    assert (scales[1] == 0).all()
    assert (values[1] == 0).all()
    assert (dequantize(values, scales) - weight).abs().max() <= 0.51 * scales[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_numbers_without_a_scale_are_refused(value):
    weight = normal(2, 4)
    weight[1, 2] = value
    with pytest.raises(ConfigError, match="float16"):
        quantize(weight, 8, None)


def test_a_group_that_does_not_divide_a_row_is_refused_with_one_that_does():
    with pytest.raises(ConfigError, match="576 numbers has no whole groups of 128; write group_size: 64"):
        scales_of(torch.zeros(2, 576), 4, 128)


@pytest.mark.parametrize("inputs", [1, 2, 7, 64])
def test_four_bits_are_packed_in_pairs_and_come_back(inputs):
    values = torch.randint(-8, 8, (5, inputs), dtype=torch.int8)
    packed = pack4(values)
    assert packed.shape == (5, -(-inputs // 2))
    assert torch.equal(unpack4(packed, inputs), values)
    assert int(packed[0, 0]) & 15 == int(values[0, 0]) + 8


@both
@pytest.mark.parametrize("group", [None, 32])
def test_the_size_is_what_is_held(bits, group):
    weight = made(6, 96, bits, group)
    assert num_bytes(6, 96, bits, group) == weight.values.nbytes + weight.scales.nbytes


def test_tokens_are_rounded_by_their_largest_number():
    x = normal(3, 10)
    x[1] = 0
    values, scales = quantize_tokens(x)
    assert values.abs().amax(dim=1).tolist() == [127, 0, 127]
    assert (values * scales - x).abs().max() <= 0.5001 * scales.max()


@shapes
@both
def test_the_matrix_is_made_whole_to_the_bit(outputs, inputs, group, bits):
    weight = made(outputs, inputs, bits, group)
    assert torch.equal(dense(weight, torch.float32).double(), exact(weight))
    assert torch.equal(dense(weight, torch.bfloat16), exact(weight).bfloat16())
    rows = torch.tensor([0, outputs - 1])
    assert torch.equal(dense(weight.chosen(rows), torch.float32).double(), exact(weight)[rows])


@compiled
@shapes
@both
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16, 33])
def test_products_of_float32_are_those_of_float64(outputs, inputs, group, bits, rows):
    weight, x, bias = (
        made(outputs, inputs, bits, group),
        normal(rows, inputs, seed=1),
        normal(outputs, seed=2),
    )
    found = kernel.product(x, kernel.integer_matrix(*weight), bias)
    expected = x.double() @ exact(weight).t() + bias.double()
    bound = x.double().norm(dim=1)[:, None] * exact(weight).norm(dim=1) + bias.abs()
    assert ((found.double() - expected).abs() <= 1e-6 * bound).all()


@compiled
@shapes
@both
@pytest.mark.parametrize("rows", [1, 4, 6, 130])
def test_products_of_bfloat16_are_finer_than_its_rounding(outputs, inputs, group, bits, rows):
    weight, x = made(outputs, inputs, bits, group), normal(rows, inputs, seed=1).bfloat16()
    found = quantized_linear(x, weight, None, integers=False)
    expected = x.double() @ exact(weight).t()
    bound = x.double().norm(dim=1)[:, None] * exact(weight).norm(dim=1)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 2**-15 * bound).all()


@compiled
@shapes
@both
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 70])
def test_products_of_integers_are_the_same_in_cpp_and_in_pytorch(outputs, inputs, group, bits, rows):
    weight, x, bias = (
        made(outputs, inputs, bits, group),
        normal(rows, inputs, seed=1),
        normal(outputs, seed=2),
    )
    found = quantized_linear(x, weight, bias, integers=True)
    plain = integer_product(x, weight.unpacked(), weight.scales) + bias
    tokens, steps = quantize_tokens(x)
    expected = steps.double() * (tokens.double() @ exact(weight).t()) + bias.double()
    bound = 2e-6 * (steps * tokens).double().norm(dim=1)[:, None] * exact(weight).norm(dim=1) + 1e-6
    assert ((found.double() - expected).abs() <= bound).all()
    assert ((plain.double() - expected).abs() <= bound).all()


@compiled
@both
@pytest.mark.parametrize("integers", [False, True])
def test_a_row_is_the_same_to_the_bit_alone_and_in_company(bits, integers):
    weight, x = made(21, 256, bits, 64), normal(9, 256)
    matrix, planes = kernel.integer_matrix(*weight), 1 if integers else 3
    alone = torch.cat([kernel.product(row[None].contiguous(), matrix, planes=planes) for row in x])
    assert torch.equal(kernel.product(x, matrix, planes=planes), alone)


@compiled
@both
@pytest.mark.parametrize("integers", [False, True])
def test_what_is_not_a_number_stays_in_its_row(bits, integers):
    weight, x = made(8, 128, bits, 32), normal(5, 128)
    x[2, 77] = torch.nan
    found = quantized_linear(x, weight, None, integers=integers)
    assert found[2].isnan().all()
    assert found[[0, 1, 3, 4]].isfinite().all()


@both
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("tokens", [1, 40])
def test_without_kernels_the_numbers_are_the_same(monkeypatch, bits, integers, tokens):
    weight, x, bias = made(24, 128, bits, 32), normal(2, tokens, 128), normal(24)
    here = quantized_linear(x, weight, bias, integers=integers)
    monkeypatch.setattr(ways, "on_cpu", lambda *tensors: False)
    there = quantized_linear(x, weight, bias, integers=integers)
    assert here.shape == (2, tokens, 24)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


@given(outputs=st.integers(1, 20), inputs=st.integers(1, 70), rows=st.integers(1, 20), four=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_shape_is_computed(outputs, inputs, rows, four):
    bits = 4 if four else 8
    weight, x = made(outputs, inputs, bits, None), normal(rows, inputs)
    expected = x.double() @ exact(weight).t()
    found = quantized_linear(x, weight, None, integers=False)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_what_is_read():
    weight, x = made(6, 64, 4, 32), normal(3, 64).requires_grad_()
    quantized_linear(x, weight, None, integers=False).sum().backward()
    expected = exact(weight).sum(0).expand(3, -1).float()
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-6)


@both
def test_rounding_to_scales_that_are_given_stays_within_the_integers(bits):
    weight = normal(3, 8)
    values = round_to(weight, torch.full((3, 2), 1e-3), bits)
    smallest, largest = RANGE[bits]
    assert values.min() == smallest
    assert values.max() == largest
