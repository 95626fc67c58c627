"""Activation kernels against PyTorch's functions in float64."""

import pytest
import torch
import torch.nn.functional as F
from against import DTYPES, assert_as_good, assert_threads_do_not_matter, needs_kernels, results
from torch import Tensor

from hasten.ops.activation import (
    geglu,
    geglu_tanh,
    gelu,
    gelu_tanh,
    relu,
    relu_squared,
    silu,
    swiglu,
)

pytestmark = needs_kernels


def plain_relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def plain_gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def plain_geglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate) * up


def plain_geglu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


PLAIN = {
    relu: F.relu,
    relu_squared: plain_relu_squared,
    silu: F.silu,
    gelu: F.gelu,
    gelu_tanh: plain_gelu_tanh,
    swiglu: plain_swiglu,
    geglu: plain_geglu,
    geglu_tanh: plain_geglu_tanh,
}
GATED = (swiglu, geglu, geglu_tanh)


def inputs(kernel: object, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [(torch.randn(shape) * 2).to(dtype) for _ in range(2 if kernel in GATED else 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (17,), (3, 5, 33), (40, 1536), (9, 4096)])
@pytest.mark.parametrize("kernel", PLAIN, ids=lambda f: f.__name__)
def test_values_and_gradients(kernel, shape, dtype):
    torch.manual_seed(0)
    gradient = torch.randn(shape).to(dtype)
    assert_as_good(kernel, PLAIN[kernel], inputs(kernel, shape, dtype), gradient)


@pytest.mark.parametrize("kernel", PLAIN, ids=lambda f: f.__name__)
def test_every_number_of_float32_within_a_few_roundings(kernel):
    """Also far from zero, where the exponential under- and overflows; relative to at least one."""
    x = torch.cat([torch.linspace(-30, 30, 100_001), torch.tensor([-200.0, 200.0, -1e4, 1e4, 0.0, -0.0])])
    given = [x, *[torch.ones_like(x)] * (kernel in GATED)]
    exact = results(PLAIN[kernel], [g.double() for g in given], torch.ones_like(x).double())
    for found, truth in zip(results(kernel, given, torch.ones_like(x)), exact, strict=True):
        error = (found.double() - truth).abs() / truth.abs().clamp_min(1)
        assert error.max() < 1e-6, (kernel, error.max())


@pytest.mark.parametrize("kernel", PLAIN, ids=lambda f: f.__name__)
def test_strides_and_threads_do_not_matter(kernel):
    given = inputs(kernel, (33, 2048), torch.bfloat16)
    gradient = torch.randn(33, 2048)
    assert_threads_do_not_matter(kernel, given, gradient)
    strided = [x.mT.contiguous().mT for x in given]
    for one, two in zip(
        results(kernel, given, gradient), results(kernel, strided, gradient.mT.contiguous().mT), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kernel", PLAIN, ids=lambda f: f.__name__)
def test_what_is_not_finite_stays_so(kernel):
    for position in (3, 18):  # within a whole vector, and in the rest
        given = inputs(kernel, (20,), torch.float32)
        given[0][position] = float("nan")
        out, slope = results(kernel, given, torch.ones(20))[:2]
        assert out[position].isnan() and slope[position].isnan()
        assert out.isnan().sum() == slope.isnan().sum() == 1
    infinite = [torch.full((20,), float("inf")) for _ in given]
    assert not kernel(*infinite).isfinite().any()


def test_one_of_two_inputs_may_want_a_gradient_and_none_in_inference():
    gate, up = inputs(swiglu, (40,), torch.float32)
    both = results(swiglu, [gate, up], torch.ones(40))
    assert torch.equal(torch.autograd.grad(swiglu(gate.requires_grad_(), up).sum(), gate)[0], both[1])
    with torch.inference_mode():
        assert torch.equal(swiglu(gate, up), both[0])
