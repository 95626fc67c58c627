"""Losses against -log softmax written out in float64."""

import math
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.batch import IGNORE
from hasten.ops.loss import (
    SLICE_NUMBERS,
    Terms,
    cross_entropy_sum,
    linear_cross_entropy,
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
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
) -> Tensor:
    """The loss token by token in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(hidden.double() @ weight.double().T, targets.tolist(), strict=True):
        if target == IGNORE:
            continue
        scores = row if soft_cap is None else soft_cap * (row / soft_cap).tanh()
        log_z = scores.exp().sum().log()
        log_probs = scores - log_z
        hit = (1 - label_smoothing) * log_probs[target] + label_smoothing * log_probs.mean()
        total = total - hit + z_loss * log_z**2
    return total


def assert_the_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """float32 after the head: seven digits of a sum of up to 17 terms."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(
        torch.autograd.grad(found * 3, inputs), torch.autograd.grad(expected * 3, inputs), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float64, torch.float32]),  # float32 may have a kernel
    num_tokens=st.integers(1, 17),
    chunk_tokens=st.one_of(st.none(), st.integers(1, 20)),
    terms=st.builds(
        Terms, st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.2]), st.sampled_from([None, 3.0])
    ),
)
def test_any_chunking_gives_the_loss_and_gradients_of_the_formula(dtype, num_tokens, chunk_tokens, terms):
    hidden, weight, targets = make_case(num_tokens, dtype)
    options = {"chunk_tokens": chunk_tokens, **terms._asdict()}
    found = linear_cross_entropy(hidden, weight, targets, **options)
    assert_the_same(found, written_out(hidden, weight, targets, **terms._asdict()), [hidden, weight])
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets, **options), found)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_slices_of_rows_change_neither_loss_nor_gradients(rows, monkeypatch):
    monkeypatch.setitem(SLICE_NUMBERS, "cpu", rows * VOCABULARY)
    hidden, weight, targets = make_case(8)
    terms = {"z_loss": 0.1, "label_smoothing": 0.2}
    found = linear_cross_entropy(hidden, weight, targets, **terms)
    assert_the_same(found, written_out(hidden, weight, targets, **terms), [hidden, weight])


def test_what_a_compiler_fuses_is_the_same_loss():
    hidden, weight, targets = make_case(12)
    terms = Terms(z_loss=0.1, label_smoothing=0.2, soft_cap=5.0)
    found = cross_entropy_sum(hidden @ weight.T, targets, terms)
    assert_the_same(found, written_out(hidden, weight, targets, **terms._asdict()), [hidden, weight])


def test_a_gradient_of_one_input_alone_and_twice_over_a_kept_graph():
    hidden, weight, targets = make_case(7)
    both = torch.autograd.grad(
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=3), [hidden, weight]
    )
    for index, x in enumerate((hidden, weight)):
        other = (weight, hidden)[index].requires_grad_(False)
        loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=3)
        for _ in range(2):
            (alone,) = torch.autograd.grad(loss, x, retain_graph=True)
            assert torch.equal(alone, both[index])
        other.requires_grad_()


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that `work` holds at a time in tensors that it makes, by PyTorch's own allocator."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    changes = [e.nbytes() for e in events if e.name() == "[memory]"]
    return max(accumulate(changes))


@pytest.mark.parametrize("kernels", [True, False])
def test_memory_does_not_grow_with_tokens_times_vocabulary(kernels, monkeypatch):
    """Four times the tokens need their own hidden states and gradients more, and no more logits."""
    if not kernels:
        monkeypatch.setattr("hasten.ops.kernels.library.library", lambda: None)
    vocabulary, width, chunk = 4096, 32, 128
    weight = torch.randn(vocabulary, width).requires_grad_()
    logits_bytes, peaks = 4 * chunk * vocabulary, []
    for tokens in (512, 2048):
        hidden = torch.randn(tokens, width).requires_grad_()
        targets = torch.randint(vocabulary, (tokens,))

        def step(hidden: Tensor = hidden, targets: Tensor = targets) -> None:
            linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk).backward()

        peaks.append(peak_bytes(step))
    assert peaks[0] > logits_bytes  # or nothing was counted
    assert peaks[1] < 3 * logits_bytes + 4 * 4 * vocabulary * width  # logits, a slice or two, dW thrice
    assert peaks[1] - peaks[0] < 4 * 4 * (2048 - 512) * width


@pytest.mark.parametrize("odd", [VOCABULARY, -1])
def test_a_target_outside_the_vocabulary_is_refused(odd):
    hidden, weight, targets = make_case(5, torch.float32)
    targets[2] = odd
    with pytest.raises((IndexError, RuntimeError), match=r"index|target"):
        linear_cross_entropy(hidden, weight, targets)


def test_targets_may_be_of_four_bytes():
    hidden, weight, targets = make_case(9, torch.float32)
    expected = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(linear_cross_entropy(hidden, weight, targets.int()), expected)


def test_bfloat16_logits_are_summed_in_float32():
    """1,000 equal logits: ln 1,000 a token, which a bfloat16 sum would miss by far more than 1e-3."""
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    weight = torch.zeros(1000, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(512, dtype=torch.long))
    assert loss.item() / 512 == pytest.approx(math.log(1000), abs=1e-5)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    expected = torch.full((1000, 1), 0.512)
    expected[0] = 0.512 - 512
    torch.testing.assert_close(weight.grad.float(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_targets_that_are_all_ignored_give_a_loss_of_zero_and_no_gradient(dtype):
    hidden, weight, targets = make_case(6, dtype)
    targets.fill_(IGNORE)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=4, z_loss=0.1, label_smoothing=0.1)
    assert loss.item() == 0
    loss.backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("chunk_tokens", [None, 5])
def test_the_loss_compiles_into_one_graph(chunk_tokens):
    hidden, weight, targets = make_case(12, torch.float32)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens)

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
