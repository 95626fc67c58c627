"""Norm and rotation in one pass against both in float64."""

import pytest
import torch
import torch.nn.functional as F
from against import DTYPES, assert_as_good, assert_threads_do_not_matter, needs_kernels, results
from torch import Tensor

from hasten.ops.kernels.rotary import can_rotate
from hasten.ops.rope import frequencies, norm_and_rotate, rotary_angles, rotate

pytestmark = needs_kernels
EPS = 1e-6


def angles_of(rows: int, tokens: int, width: int, per_row: bool) -> Tensor:
    positions = torch.randint(1000, (rows, tokens)) if per_row else torch.arange(tokens)
    return rotary_angles(positions, frequencies(width))


def plain_rotate(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin = angles.detach()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Heads, a norm's weight and a gradient."""
    torch.manual_seed(0)
    return (torch.randn(shape) * 3).to(dtype), torch.randn(shape[-1]), torch.randn(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 7, 3, 64), (1, 1, 1, 2), (3, 5, 2, 24), (2, 50, 6, 128), (4, 33, 1, 34)]
)
def test_values_and_gradients(shape, per_row, dtype):
    x, weight, gradient = inputs(shape, dtype)
    angles = angles_of(*shape[:2], shape[3], per_row)
    assert can_rotate(x, angles, weight)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), EPS)

    assert_as_good(lambda x: rotate(x, angles), lambda x: plain_rotate(x, angles), [x], gradient)
    assert_as_good(
        lambda x, w: norm_and_rotate(x, w, angles, EPS),
        lambda x, w: plain_rotate(norm(x, w), angles),
        [x, weight],
        gradient,
    )


@pytest.mark.parametrize("normed", [False, True])
def test_strides_and_threads_do_not_matter(normed):
    """Heads that are a part of a wider product, and gradients that come head by head."""
    x, weight, gradient = inputs((3, 70, 12, 32), torch.bfloat16)
    angles = angles_of(3, 70, 32, per_row=True)

    def op(x: Tensor) -> Tensor:
        return norm_and_rotate(x, weight, angles, EPS) if normed else rotate(x, angles)

    whole = results(op, [x[:, :, 4:8].contiguous()], gradient[:, :, :4].contiguous())
    by_heads = gradient[:, :, :4].transpose(1, 2).contiguous().transpose(1, 2)
    for one, two in zip(whole, results(op, [x[:, :, 4:8]], by_heads), strict=True):
        assert torch.equal(one, two)
    assert_threads_do_not_matter(op, [x], gradient)


def test_gradients_of_some_inputs_and_of_none():
    x, weight, gradient = inputs((2, 9, 2, 16), torch.float32)
    angles = angles_of(2, 9, 16, per_row=False)
    both = results(lambda x, w: norm_and_rotate(x, w, angles, EPS), [x, weight], gradient)
    for index, chosen in enumerate((x, weight)):
        out = norm_and_rotate(*(y.requires_grad_(y is chosen) for y in (x, weight)), angles, EPS)
        assert torch.equal(torch.autograd.grad(out, chosen, gradient)[0], both[1 + index])
    with torch.inference_mode():
        assert torch.equal(norm_and_rotate(x, weight, angles, EPS), both[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    x, weight, _ = inputs((1, 4, 2, 16), torch.float32)
    x[0, 1, 0, 3] = bad
    angles = angles_of(1, 4, 16, per_row=False)
    for op in (lambda x: rotate(x, angles), lambda x: norm_and_rotate(x, weight, angles, EPS)):
        out = op(x)
        assert not out[0, 1, 0].isfinite().all()
        assert out[0, [0, 2, 3]].isfinite().all()


def test_other_shapes_are_left_to_pytorch():
    x, weight, _ = inputs((2, 5, 2, 16), torch.float32)
    assert not can_rotate(x, angles_of(2, 4, 16, per_row=False))  # of other positions
    assert not can_rotate(x.double(), angles_of(2, 5, 16, per_row=False), weight)
    assert not can_rotate(x[0], angles_of(2, 5, 16, per_row=False))
