"""Losses against -log softmax written out in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.batch import IGNORE
from hasten.ops.loss import (
    SLICE_NUMBERS,
    chunked_cross_entropy,
    cross_entropy_sum,
    soft_cap,
    token_log_probs,
)

VOCABULARY, WIDTH = 11, 5


def make_case(num_tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and a head's matrix that ask for gradients, and targets of which some are IGNORE."""
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, WIDTH, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (num_tokens,))
    targets[1::3] = IGNORE
    return hidden, weight, targets


def written_out(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """The loss token by token in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(hidden.double() @ weight.double().T, targets.tolist(), strict=True):
        if target == IGNORE:
            continue
        log_z = row.exp().sum().log()
        log_probs = row - log_z
        hit = (1 - label_smoothing) * log_probs[target] + label_smoothing * log_probs.mean()
        total = total - hit + z_loss * log_z**2
    return total


@settings(max_examples=30, deadline=None)
@given(
    num_tokens=st.integers(1, 17),
    chunk_tokens=st.one_of(st.none(), st.integers(1, 20)),
    z_loss=st.sampled_from([0.0, 0.1]),
    label_smoothing=st.sampled_from([0.0, 0.2]),
)
def test_any_chunking_gives_the_loss_and_gradients_of_the_formula(
    num_tokens, chunk_tokens, z_loss, label_smoothing
):
    hidden, weight, targets = make_case(num_tokens)
    options = {"z_loss": z_loss, "label_smoothing": label_smoothing}
    found = chunked_cross_entropy(
        lambda h: h @ weight.T, hidden, targets, chunk_tokens=chunk_tokens, **options
    )
    expected = written_out(hidden, weight, targets, **options)
    assert found.dtype == torch.float32
    # float32 after the head: seven digits of a sum of up to 17 terms.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(
        torch.autograd.grad(found, [hidden, weight]),
        torch.autograd.grad(expected, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_slices_of_rows_change_neither_loss_nor_gradients(rows, monkeypatch):
    monkeypatch.setitem(SLICE_NUMBERS, "cpu", rows * VOCABULARY)
    hidden, weight, targets = make_case(8)
    options = {"z_loss": 0.1, "label_smoothing": 0.2}
    found = cross_entropy_sum(hidden @ weight.T, targets, **options)
    expected = written_out(hidden, weight, targets, **options)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(
        torch.autograd.grad(found * 3, [hidden, weight]),
        torch.autograd.grad(expected * 3, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_eager_and_compiled_formulas_agree_with_both_regularisers(monkeypatch):
    hidden, weight, targets = make_case(12)
    logits = (hidden @ weight.T).detach().requires_grad_()
    eager = cross_entropy_sum(logits, targets, z_loss=0.1, label_smoothing=0.2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = cross_entropy_sum(logits, targets, z_loss=0.1, label_smoothing=0.2)
    torch.testing.assert_close(eager, compiled)
    (mine,), (other,) = (torch.autograd.grad(loss, logits) for loss in (eager, compiled))
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_chunks_never_hold_logits_of_more_tokens_than_asked():
    hidden, weight, targets = make_case(23)
    seen = []

    def head(piece: Tensor) -> Tensor:
        seen.append(len(piece))
        return piece @ weight.T

    chunked_cross_entropy(head, hidden, targets, chunk_tokens=6).backward()
    assert max(seen) == 6
    assert sum(seen) == 2 * 23  # once forward, once again in the backward pass


def test_bfloat16_logits_are_summed_in_float32():
    """1,000 equal logits: ln 1,000 a token, which a bfloat16 sum would miss by far more than 1e-3."""
    logits = torch.zeros(512, 1000, dtype=torch.bfloat16, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.zeros(512, dtype=torch.long))
    assert loss.item() / 512 == pytest.approx(math.log(1000), abs=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad[:, 0].float(), torch.full((512,), -0.999), rtol=2**-8, atol=0)


def test_targets_that_are_all_ignored_give_a_loss_of_zero_and_no_gradient():
    hidden, weight, targets = make_case(6)
    targets.fill_(IGNORE)
    loss = chunked_cross_entropy(
        lambda h: h @ weight.T, hidden, targets, chunk_tokens=4, z_loss=0.1, label_smoothing=0.1
    )
    assert loss.item() == 0
    loss.backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.slow
def test_the_loss_compiles_into_one_graph():
    hidden, weight, targets = make_case(12, torch.float32)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_cross_entropy(lambda h: h @ weight.T, hidden, targets, chunk_tokens=None)

    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(hidden, weight), loss(hidden, weight))
    for mine, eager in zip(
        torch.autograd.grad(compiled(hidden, weight), [hidden, weight]),
        torch.autograd.grad(loss(hidden, weight), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, eager)


def test_log_probs_of_targets_are_those_of_the_formula_and_zero_where_ignored():
    hidden, weight, targets = make_case(12)
    found = token_log_probs(lambda h: h @ weight.T, hidden.view(3, 4, WIDTH), targets.view(3, 4))
    expected = torch.stack([-written_out(hidden[i : i + 1], weight, targets[i : i + 1]) for i in range(12)])
    assert found.shape == (3, 4)
    torch.testing.assert_close(found.double().flatten(), expected, rtol=1e-5, atol=1e-6)
    assert not found.flatten()[1::3].any()
    direction = torch.randn(12, dtype=torch.float64)
    (mine,) = torch.autograd.grad(found.flatten(), hidden, direction.float())
    (reference,) = torch.autograd.grad(expected, hidden, direction)
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_the_soft_cap_is_the_identity_near_zero_and_never_passes_the_cap():
    x = torch.linspace(-100, 100, 201, dtype=torch.float64, requires_grad=True)
    capped = soft_cap(x, 15.0)
    expected = torch.tensor([15 * math.tanh(v / 15) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(capped, expected)
    assert capped.abs().max() <= 15
    (slope,) = torch.autograd.grad(capped.sum(), x)
    torch.testing.assert_close(slope, 1 - (expected / 15) ** 2)
