"""Rounding to nearest, the search for scales, and GPTQ, against what is written out in float64."""

import pytest
import torch
from torch import Tensor

from hasten.compress.gptq import gptq, inverse_factor, order_of
from hasten.compress.rtn import best_scales, nearest, output_error
from hasten.core.errors import ConfigError
from hasten.ops.quantize import RANGE


def correlated(inputs: int, tokens: int = 400, seed: int = 0) -> Tensor:
    """Inputs [N, I] of which some are large and all depend on a few causes."""
    draw = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, max(inputs // 4, 1), generator=draw)
    mix = torch.randn(causes.shape[1], inputs, generator=draw)
    noise = torch.randn(tokens, inputs, generator=draw)
    return (causes @ mix + 0.3 * noise) * torch.logspace(-1, 1, inputs)[
        torch.randperm(inputs, generator=draw)
    ]


def weights(outputs: int, inputs: int, seed: int = 1) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def weighted_error(weight: Tensor, scales: Tensor, bits: int, importance: Tensor) -> Tensor:
    """sum_j h_j (w_j - s q_j)^2 of each group in float64, integers by trying all of them."""
    groups = weight.double().view(*scales.shape, -1)
    lowest, highest = RANGE[bits]
    choices = torch.arange(lowest, highest + 1) * scales.double()[..., None, None]
    off = (groups[..., None] - choices).square().amin(-1)
    return (off * importance.double().view(1, scales.shape[1], -1)).sum(-1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 32, 16])
def test_searched_scales_are_never_worse_than_the_usual_ones_in_any_group(bits, group):
    weight, importance = weights(12, 64), torch.rand(64, generator=torch.Generator().manual_seed(3))
    usual = nearest(weight, bits, group)
    found = best_scales(weight, bits, group, importance)
    better = weighted_error(weight, found, bits, importance)
    before = weighted_error(weight, usual.scales, bits, importance)
    assert (better <= before * 1.001).all()  # scales are rounded to float16 after they were fitted
    assert better.sum() < before.sum()
    assert torch.equal(found, found.half().float())


def test_searched_scales_are_near_the_best_of_all_scales():
    weight, importance = weights(20, 32), torch.ones(32)
    found = weighted_error(weight, best_scales(weight, 4, None), 4, importance)
    largest = weight.abs().amax()
    grid = torch.cat([torch.linspace(0.02, 0.3, 1500), -torch.linspace(0.02, 0.3, 1500)]) * largest
    every = torch.stack([weighted_error(weight, s.expand(20, 1), 4, importance) for s in grid])
    assert found.sum() < 1.06 * every.amin(0).sum()


def test_a_group_of_zeros_stays_one_and_integers_reach_minus_eight():
    weight = torch.zeros(2, 32)
    weight[1] = torch.linspace(-8, 7, 32)
    found = nearest(weight, 4, None, best_scales(weight, 4, None))
    assert not found.weight[0].any()
    assert sorted(found.values[1].unique().tolist()) == list(range(-8, 8))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e9], ids=["nan", "inf", "beyond float16"])
def test_a_weight_without_a_scale_is_refused(wrong):
    weight = weights(3, 32)
    weight[1, 5] = wrong
    with pytest.raises(ConfigError, match="not finite, or so large that its scale is beyond float16"):
        best_scales(weight, 4, None)


def test_the_error_by_the_sums_is_the_error_of_what_comes_out():
    x, change = correlated(48), weights(7, 48)
    expected = (x.double() @ change.double().T).square().sum()
    assert output_error(change, x.T @ x) == pytest.approx(float(expected), rel=1e-5)


def written_out(weight: Tensor, gram: Tensor, scales: Tensor, order: list[int], damping: float) -> Tensor:
    """GPTQ as Frantar et al. 2023 derive it: after each input the inverse is that of the inputs left, (3)."""
    w, h = weight.double().clone(), gram.double().clone()
    h += damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    left, values = list(order), torch.zeros_like(w)
    group = weight.shape[1] // scales.shape[1]
    while left:
        j = left[0]
        inverse = torch.linalg.inv(h[left][:, left])
        step = scales[:, j // group].double()
        values[:, j] = (w[:, j] / step).round().clamp(-8, 7)
        error = (w[:, j] - values[:, j] * step) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return values


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group", [None, 16])
def test_gptq_is_the_papers_equations(group, act_order):
    x, weight = correlated(48), weights(9, 48)
    gram = x.T @ x
    rounded = nearest(weight, 4, group)
    order = order_of(gram, act_order)
    found = gptq(weight, rounded.scales, (4, group), order, inverse_factor(gram, order, 0.01))
    expected = written_out(weight, gram, rounded.scales, order.tolist(), 0.01)
    differ = (found.values.double() != expected).float().mean()
    assert differ < 0.01  # a tie broken in float32 moves what comes after it


def test_gptq_over_several_lazy_blocks_is_the_same_equations():
    x, weight = correlated(300, tokens=900), weights(4, 300)
    gram = x.T @ x
    rounded = nearest(weight, 4, None)
    order = order_of(gram, act_order=False)
    found = gptq(weight, rounded.scales, (4, None), order, inverse_factor(gram, order, 0.1))
    expected = written_out(weight, gram, rounded.scales, order.tolist(), 0.1)
    ours = output_error(found.weight - weight, gram)
    theirs = output_error((expected * rounded.scales).float() - weight, gram)
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_beats_rounding_to_nearest_where_inputs_depend_on_each_other(bits, act_order):
    x, weight = correlated(96), weights(16, 96)
    gram = x.T @ x
    rounded = nearest(weight, bits, 32)
    order = order_of(gram, act_order)
    found = gptq(weight, rounded.scales, (bits, 32), order, inverse_factor(gram, order, 0.01))
    assert output_error(found.weight - weight, gram) < 0.5 * output_error(rounded.weight - weight, gram)


def test_independent_inputs_leave_gptq_nothing_to_make_up_for():
    weight = weights(6, 32)
    gram = torch.diag(torch.rand(32, generator=torch.Generator().manual_seed(5)) + 0.1)
    rounded = nearest(weight, 4, 16)
    order = order_of(gram, act_order=True)
    found = gptq(weight, rounded.scales, (4, 16), order, inverse_factor(gram, order, 0.01))
    assert torch.equal(found.values, rounded.values)


def test_inputs_that_are_never_there_are_rounded_to_nearest():
    x, weight = correlated(32), weights(5, 32)
    x[:, 7] = 0
    gram = x.T @ x
    rounded = nearest(weight, 4, None)
    order = order_of(gram, act_order=True)
    found = gptq(weight, rounded.scales, (4, None), order, inverse_factor(gram, order, 0.01))
    assert torch.equal(found.values[:, 7], rounded.values[:, 7])


def test_fewer_tokens_than_inputs_have_an_inverse_by_damping():
    x = correlated(64, tokens=3)
    order = torch.arange(64)
    factor = inverse_factor(x.T @ x, order, 1e-12)
    assert factor.isfinite().all()


def test_inputs_that_are_no_numbers_are_refused():
    gram = torch.full((8, 8), float("nan"))
    with pytest.raises(ConfigError, match="no finite numbers, so that GPTQ cannot weigh them"):
        inverse_factor(gram, torch.arange(8), 0.01)
