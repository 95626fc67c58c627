"""A frozen product with a thin one beside it, against the formula in float64."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hasten.ops.low_rank import low_rank_linear, row_norms
from hasten.ops.nf4 import dequantize, quantize


def drawn(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("apart", [False, True], ids=["same", "dropped"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biased"])
def test_value_and_gradients_are_those_of_the_formula(bias: bool, apart: bool) -> None:
    torch.manual_seed(0)
    x, a, b = drawn(2, 3, 5, grad=True), drawn(2, 5, grad=True), drawn(4, 2, grad=True)
    weight, offset = drawn(4, 5), drawn(4) if bias else None
    seen = drawn(2, 3, 5, grad=True) if apart else None

    def run(x: Tensor, a: Tensor, b: Tensor, seen: Tensor | None = None) -> Tensor:
        return low_rank_linear(x, (weight,), offset, a, b, scale=1.5, seen=seen)

    given = (x, a, b) if seen is None else (x, a, b, seen)
    expected = x @ weight.T + 1.5 * (x if seen is None else seen) @ a.T @ b.T + (offset if bias else 0)
    torch.testing.assert_close(run(*given), expected)
    assert torch.autograd.gradcheck(run, given)


def backward_flops(x: Tensor) -> int:
    """Of a layer of 5 inputs, 4 outputs and rank 2, over 3 tokens."""
    a, b = drawn(2, 5, grad=True), drawn(4, 2, grad=True)
    loss = low_rank_linear(x, (drawn(4, 5),), None, a, b, scale=1.0).sum()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


def test_the_frozen_weight_costs_no_product_and_an_input_without_gradient_none_either() -> None:
    inner, of_a, of_b = 3 * 4 * 2, 3 * 2 * 5, 3 * 4 * 2
    assert backward_flops(drawn(3, 5)) == 2 * (inner + of_a + of_b)
    through = 3 * 4 * 5  # what goes beside is added into it in place, which is not counted
    assert backward_flops(drawn(3, 5, grad=True)) == 2 * (inner + of_a + of_b + through)


def test_a_packed_weight_is_the_one_it_unpacks_to() -> None:
    torch.manual_seed(0)
    x, a, b = torch.randn(3, 70, requires_grad=True), torch.randn(2, 70), torch.randn(9, 2)
    packed = quantize(torch.randn(9, 70))
    given = [(each, None, a, b) for each in (packed, (dequantize(packed, (9, 70)),))]
    one, other = (low_rank_linear(x, *each, scale=0.5) for each in given)
    assert torch.equal(one, other)
    slopes = [torch.autograd.grad(out.square().sum(), x)[0] for out in (one, other)]
    assert torch.equal(*slopes)


def test_row_norms_are_those_of_the_full_sum() -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(6, 40), torch.randn(3, 40), torch.randn(6, 3)
    full = (weight.double() + 0.7 * b.double() @ a.double()).norm(dim=1)
    torch.testing.assert_close(row_norms(weight, a, b, 0.7).double(), full, rtol=1e-6, atol=0)
    # Rows that the pair takes away are not below nothing.
    assert row_norms(torch.ones(1, 4), torch.ones(1, 4), -torch.ones(1, 1), 1.0).item() == 0
