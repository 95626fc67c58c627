"""The cross-entropy kernel against the formula in float64, by way of `linear_cross_entropy`."""

import pytest
import torch
from against import DTYPES, assert_as_good, assert_threads_do_not_matter, needs_kernels, results
from torch import Tensor

from hasten.core.batch import IGNORE
from hasten.ops.loss import Terms, cross_entropy_sum, linear_cross_entropy

pytestmark = needs_kernels
WIDTH = 24
TERMS = [Terms(), Terms(z_loss=1e-2), Terms(label_smoothing=0.1), Terms(1e-3, 0.2, 4.0)]


def inputs(tokens: int, vocabulary: int, dtype: torch.dtype) -> list[Tensor]:
    """Hidden states, weight with logits up to about ten, and targets of which some don't count."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, WIDTH), torch.randn(vocabulary, WIDTH) / 2
    targets = torch.randint(vocabulary, (tokens,))
    targets[2::5] = IGNORE
    return [hidden.to(dtype), weight.to(dtype), targets]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(7, 5), (64, 32), (32, 50257), (200, 1003)])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("chunk", [None, 16])
def test_values_and_gradients(chunk, terms, tokens, vocabulary, dtype):
    def kernel(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk, **terms._asdict())

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = hidden @ weight.T
        if logits.dtype != torch.float64:
            return cross_entropy_sum(logits, targets, terms)
        log_z = (scores := capped(logits, terms.soft_cap)).logsumexp(-1)
        hit = scores.gather(1, targets.clamp_min(0)[:, None])[:, 0]
        s = terms.label_smoothing
        loss = log_z - (1 - s) * hit - s * scores.mean(-1) + terms.z_loss * log_z**2
        return (loss * (targets != IGNORE)).sum()

    assert_as_good(kernel, plain, inputs(tokens, vocabulary, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("chunk", [None, 16])
def test_a_bias_and_its_gradient(chunk, terms, dtype):
    """With N as in a batch: the bias's gradient is a sum over all of them."""
    hidden, weight, targets = inputs(300, 1003, dtype)
    bias = torch.randn(len(weight)) * 2

    def kernel(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, bias, chunk_tokens=chunk, **terms._asdict())

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor) -> Tensor:
        return cross_entropy_sum(hidden @ weight.T + bias.to(hidden.dtype), targets, terms)

    exact = results(plain, [hidden.double(), weight.double(), targets, bias.double()])
    found, other = (results(f, [hidden, weight, targets, bias]) for f in (kernel, plain))
    for mine, theirs, truth in zip(found, other, exact, strict=True):
        error, allowed = ((x.double() - truth).abs().max() for x in (mine, theirs))
        rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
        assert error <= 1.5 * allowed + rounding * truth.abs().max(), (error, allowed)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * (logits / cap).tanh()


def test_threads_do_not_matter():
    assert_threads_do_not_matter(linear_cross_entropy, inputs(300, 1003, torch.bfloat16))


@pytest.mark.parametrize("size", [100.0, 3e4])
def test_logits_far_apart_neither_overflow_nor_vanish(size):
    """The loss of a certain right answer is 0, that of a certain wrong one the distance."""
    hidden, weight = torch.ones(2, 1), torch.tensor([[size], [0.0], [-size]])
    targets = torch.tensor([0, 2])
    loss, slope, _ = results(linear_cross_entropy, [hidden, weight, targets])
    assert loss.item() == pytest.approx(2 * size)
    torch.testing.assert_close(slope, torch.tensor([[0.0], [2 * size]]))


def test_the_soft_cap_is_exact_for_every_size_of_logit():
    """The gradient of -log softmax((c, 0))[0] with c = tanh(x), row by row: (1 - c^2) / (1 + e^c)."""
    x = torch.cat([torch.linspace(-12, 12, 20_001), torch.logspace(-20, 2, 500)])[:, None]
    weight, targets = torch.tensor([[1.0], [0.0]]), torch.zeros(len(x), dtype=torch.long)
    slope = results(lambda x: linear_cross_entropy(x, weight, targets, soft_cap=1.0), [x])[1]
    capped = x.double().tanh()
    error = slope.double() + (1 - capped**2) / (1 + capped.exp())
    assert error.abs().max() < 3e-7


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("terms", [Terms(), Terms(soft_cap=10.0, z_loss=1e-3)])
@pytest.mark.parametrize("column", [1, 36])  # within a whole vector, and in the rest
def test_a_logit_that_is_not_a_number_shows_in_loss_and_gradient(column, terms, bad):
    hidden, weight, targets = inputs(20, 37, torch.float32)
    weight[column, 0] = bad
    loss, slope, _ = results(
        lambda h, w, t: linear_cross_entropy(h, w, t, **terms._asdict()), [hidden, weight, targets]
    )
    finite_cap = terms.soft_cap is not None and bad == float("inf")
    assert loss.isfinite() == finite_cap
    assert not slope.isfinite().all()
