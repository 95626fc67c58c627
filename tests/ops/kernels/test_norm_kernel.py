"""RMSNorm and LayerNorm kernels against PyTorch's functions in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from against import DTYPES, assert_as_good, assert_threads_do_not_matter, needs_kernels, results
from torch import Tensor

from hasten.ops.norm import layer_norm, rms_norm

pytestmark = needs_kernels
EPS = 1e-6


def plain_rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), EPS)


def plain_layer(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return rms_norm(x, weight, EPS)


def layer(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return layer_norm(x, weight, bias, EPS)


def inputs(kind: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Rows away from zero, of unequal sizes, with float32 parameters."""
    x = (torch.randn(shape) + 0.5) * torch.rand(shape[:-1])[..., None].add(0.1)
    parameters = torch.randn(1 if kind is rms else 2, shape[-1])
    return [x.to(dtype), *parameters]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 384), (3, 7, 33), (1, 5), (2, 16), (1000, 40), (200, 513)])
@pytest.mark.parametrize(("kernel", "plain"), [(rms, plain_rms), (layer, plain_layer)])
def test_values_and_gradients(kernel, plain, shape, dtype):
    torch.manual_seed(0)
    given, gradient = inputs(kernel, shape, dtype), torch.randn(shape)
    assert_as_good(kernel, plain, given, gradient.to(dtype))
    assert_as_good(kernel, plain, given[:1], gradient.to(dtype))  # without parameters


@pytest.mark.parametrize("kernel", [rms, layer])
def test_threads_do_not_matter(kernel):
    torch.manual_seed(0)
    assert_threads_do_not_matter(kernel, inputs(kernel, (1001, 384), torch.bfloat16), torch.randn(1001, 384))


@pytest.mark.parametrize("kernel", [rms, layer])
def test_strided_inputs_and_gradients(kernel):
    wide = torch.randn(6, 5, 80)
    weight, gradient = torch.randn(40), torch.randn(5, 6, 40).transpose(0, 1)
    copied = results(kernel, [wide[..., 40:].contiguous(), weight], gradient.contiguous())
    for one, two in zip(copied, results(kernel, [wide[..., 40:], weight], gradient), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kernel", [rms, layer])
def test_gradients_of_some_inputs_and_of_none(kernel):
    x, weight = torch.randn(70, 24), torch.randn(24)
    both = results(kernel, [x, weight], torch.ones(70, 24))
    x.requires_grad_()
    (alone,) = torch.autograd.grad(kernel(x, weight), x, torch.ones(70, 24))
    assert torch.equal(alone, both[1])
    x.requires_grad_(False)
    weight.requires_grad_()
    (alone,) = torch.autograd.grad(kernel(x, weight), weight, torch.ones(70, 24))
    assert torch.equal(alone, both[2])
    with torch.inference_mode():
        assert torch.equal(kernel(x, weight), both[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kernel", [rms, layer])
def test_what_is_not_finite_stays_so(kernel, bad):
    x = torch.ones(3, 20)
    x[1, 7] = bad
    out = kernel(x, torch.ones(20))
    assert out[1].isnan().any()
    assert out[[0, 2]].isfinite().all()


def test_no_rows_at_all():
    found = results(rms, [torch.empty(0, 8), torch.ones(8)], torch.empty(0, 8))
    assert found[0].shape == (0, 8)
    assert not found[2].any()
