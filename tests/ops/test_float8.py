"""Eight-bit numbers and products against float64, code by code."""

import pytest
import torch
from torch import Tensor

from hasten.ops.float8 import BACKWARD, FORWARD, float8_linear, quantise, scaled_product, turned

FORMATS = pytest.mark.parametrize(("dtype", "exponent_bits", "bias"), [(FORWARD, 4, 7), (BACKWARD, 5, 15)])


def table(exponent_bits: int, bias: int) -> Tensor:
    """What each of the 256 codes means, by the definition: (-1)^s 2^(e - bias) (1 + m), in float64."""
    mantissa_bits = 7 - exponent_bits
    values = []
    for code in range(256):
        sign = -1.0 if code >> 7 else 1.0
        exponent, mantissa = code >> mantissa_bits & (2**exponent_bits - 1), code & (2**mantissa_bits - 1)
        fraction = mantissa / 2**mantissa_bits
        value = fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias)
        if exponent == 2**exponent_bits - 1:  # E5M2 has infinities as IEEE does, E4M3 one NaN
            if exponent_bits == 5:
                value = float("nan") if mantissa else float("inf")
            elif mantissa == 7:
                value = float("nan")
        values.append(sign * value)
    return torch.tensor(values, dtype=torch.float64)


def nearest(x: Tensor, values: Tensor) -> Tensor:
    """The nearest finite value, of two equally near the one with an even code."""
    codes = values.isfinite().nonzero()[:, 0]
    codes = codes[(values[codes] != 0) | (codes == 0)]  # one zero is enough
    distance = (x[:, None] - values[codes]).abs()
    tied = distance == distance.amin(dim=1, keepdim=True)
    return values[codes[(tied * (2 - codes % 2)).argmax(dim=1)]]


@FORMATS
def test_all_256_codes_mean_what_the_definition_says(dtype, exponent_bits, bias):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    torch.testing.assert_close(codes.double(), table(exponent_bits, bias), rtol=0, atol=0, equal_nan=True)


@FORMATS
def test_quantising_takes_the_nearest_code(dtype, exponent_bits, bias):
    torch.manual_seed(0)
    values = table(exponent_bits, bias)
    finite = values[values.isfinite()].sort().values
    between = (finite[1:] + finite[:-1]) / 2
    # Codes, the middles between them, and numbers of every size; the largest sets a scale of one.
    x = torch.cat([finite, between, torch.randn(1000).double() * 10 ** torch.empty(1000).uniform_(-6, 2)])
    rounded, scale = quantise(x.float(), dtype)
    assert scale == 1
    torch.testing.assert_close(rounded.double(), nearest(x.float().double(), values), rtol=0, atol=0)


@FORMATS
def test_the_scale_brings_the_largest_number_to_the_largest_code(dtype, exponent_bits, bias):
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 1e-5
    rounded, scale = quantise(x, dtype)
    assert rounded.float().abs().max() == torch.finfo(dtype).max
    step = 2.0 ** -(7 - exponent_bits)
    torch.testing.assert_close(rounded.float() * scale, x, rtol=step / 2, atol=float(x.abs().max()) * 2**-9)
    zeros, _ = quantise(torch.zeros(3), dtype)
    assert torch.equal(zeros.float(), torch.zeros(3))


def test_products_equal_those_of_the_rounded_numbers():
    torch.manual_seed(0)
    a, b = torch.randn(48, 64), torch.randn(32, 64)
    for left, right in ((FORWARD, FORWARD), (BACKWARD, FORWARD)):
        (x, x_scale), (y, y_scale) = quantise(a, left), quantise(b, right)
        found = scaled_product(x, x_scale, y, y_scale)
        expected = (x.double() * x_scale.double()) @ (y.double() * y_scale.double()).t()
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("biased", [False, True])
def test_outputs_and_gradients_are_those_of_rounded_operands(biased):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 64, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(48, 64, requires_grad=True)
    bias = torch.randn(48, requires_grad=True) if biased else None
    direction = torch.randn(2, 16, 48, dtype=torch.bfloat16)
    out = float8_linear(x, weight, bias)
    out.backward(direction)

    def exact(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        rounded, scale = quantise(tensor.detach(), dtype)
        return rounded.double() * scale.double()

    rounded_x, rounded_weight = exact(x, FORWARD).flatten(0, 1), exact(weight, FORWARD)
    slope = exact(direction, BACKWARD).flatten(0, 1)
    expected = rounded_x @ rounded_weight.t() + (0 if bias is None else bias.detach().double())
    near = {"rtol": 2**-7, "atol": 2**-4}  # two roundings to bfloat16 of numbers around 8
    torch.testing.assert_close(out.detach().flatten(0, 1).double(), expected, **near)
    assert x.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad.flatten(0, 1).double(), slope @ rounded_weight, **near)
    torch.testing.assert_close(weight.grad.double(), slope.t() @ rounded_x, **near)
    if bias is not None:
        torch.testing.assert_close(bias.grad, direction.float().sum((0, 1)), rtol=2**-6, atol=2**-4)


def test_it_is_one_graph_to_a_compiler():
    """Traced and differentiated as on a GPU, without generated code behind it: not a bit differs."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = torch.randn(2, 16, 32, requires_grad=True), torch.randn(48, 32, requires_grad=True)
    direction = torch.randn(2, 16, 48, dtype=torch.bfloat16)
    compiled = torch.compile(float8_linear, backend="aot_eager", fullgraph=True, dynamic=False)
    expected, found = float8_linear(*inputs), compiled(*inputs)
    assert torch.equal(found, expected)
    theirs = torch.autograd.grad(expected, inputs, direction)
    for mine, reference in zip(torch.autograd.grad(found, inputs, direction), theirs, strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_seen(bad):
    x, weight = torch.randn(16, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    out = float8_linear(x, weight)
    direction = torch.ones_like(out)
    direction[3, 5] = bad
    out.backward(direction)
    assert not x.grad.isfinite().all() and not weight.grad.isfinite().all()
    poisoned = torch.ones(16, 16)
    poisoned[0, 0] = bad
    assert not float8_linear(poisoned, weight).isfinite().all()


def test_the_transpose_is_one_in_memory():
    assert turned(torch.zeros(16, 32, dtype=torch.uint8).view(FORWARD)).stride() == (16, 1)
