"""Samples of a teacher are right in the mean, distribution, entropy and gradient; the likeliest are not."""

import pytest
import torch
from torch import Tensor

from hasten.core.batch import IGNORE
from hasten.objective.divergence import Heard, Logits, Mix, OverChunks
from hasten.objective.drawn import Kept, drawn, likeliest
from hasten.ops.loss import linear_cross_entropy

V, N, D = 17, 4, 5


def log_p(seed: int = 0, size: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(N, V, generator=generator)).log_softmax(-1)


def spread_out(kept: Kept, width: int = V) -> Tensor:
    """Weights by token, [N, V]."""
    return torch.zeros(len(kept.tokens), width).scatter_add_(1, kept.tokens, kept.weights)


@pytest.mark.parametrize("samples", [1, 3, 12, 200])
def test_draws_at_all_chances_together_are_the_distribution(samples):
    """Averaged over a fine grid of chances, the only randomness there is: no test of luck."""
    p, grid = log_p(), 4000
    total = torch.zeros(N, V, dtype=torch.float64)
    for step in range(grid):
        total += spread_out(drawn(p, torch.full((N,), (step + 0.5) / grid), samples))
    torch.testing.assert_close(total / grid, p.double().exp(), rtol=0, atol=2 / grid)


@pytest.mark.parametrize("samples", [1, 12])
def test_a_token_comes_as_often_as_it_should_to_within_one(samples):
    p = log_p()
    for chance in torch.rand(50, N, generator=torch.Generator().manual_seed(1)):
        kept = drawn(p, chance, samples)
        counts = spread_out(kept) * samples
        assert ((counts - samples * p.exp()).abs() < 1 + 1e-4).all()
        torch.testing.assert_close(kept.weights.sum(-1), torch.ones(N))
        for row, size in zip(kept.weights, kept.sizes.tolist(), strict=True):
            assert (row[:size] > 0).all() and (row[size:] == 0).all()


def test_a_token_that_is_never_said_is_never_drawn():
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log()
    for chance in torch.linspace(0, 1 - 1e-7, 101):
        kept = drawn(p, chance[None], 7)
        assert set(kept.tokens[0, : kept.sizes[0]].tolist()) <= {1, 3}


def test_the_entropy_is_that_of_the_whole_distribution():
    expected = torch.distributions.Categorical(logits=log_p()).entropy()
    torch.testing.assert_close(drawn(log_p(), torch.rand(N), 2).entropy, expected)
    torch.testing.assert_close(likeliest(log_p(), 2).entropy, expected)


def loss_and_slopes(told: Heard | Logits, mix: Mix) -> Tensor:
    """Loss, gradient by states and by head of a small student, as one row of numbers."""
    generator = torch.Generator().manual_seed(7)
    hidden, weight = (torch.randn(n, D, generator=generator, requires_grad=True) for n in (N, V))
    targets = torch.tensor([1, 2, IGNORE, 4])
    loss = linear_cross_entropy(hidden, weight, targets, over=OverChunks(told, mix))
    return torch.cat(
        [loss.detach()[None], *(x.flatten() for x in torch.autograd.grad(loss, (hidden, weight)))]
    )


def test_the_gradient_of_samples_is_right_in_the_mean_within_three_standard_errors():
    mix, logits, times = Mix("forward_kl", V, temperature=1.5), 3 * log_p(3), 4000
    exact, p = loss_and_slopes(Logits(logits), mix), (logits / 1.5).log_softmax(-1)
    chances = torch.rand(times, N, generator=torch.Generator().manual_seed(2))
    found = torch.stack(
        [loss_and_slopes(Heard(*heard(drawn(p, chance, 12))), mix) for chance in chances]
    ).double()
    error = found.std(0) / times**0.5
    # Of the many numbers about one in 370 may be beyond three; the worst of them, beyond four and a half.
    far = (found.mean(0) - exact.double()).abs() / error.clamp(min=1e-7)
    assert (far > 3).double().mean() < 0.02 and far.max() < 4.5


def test_the_gradient_of_the_likeliest_is_off_by_what_was_left_out():
    """What is kept is too large by 1 / its mass: the slope is Q - P / mass there and Q elsewhere."""
    p = log_p(size=0.5)
    kept = likeliest(p, 4)
    mass = p.exp().gather(1, kept.tokens).sum(-1, keepdim=True)
    torch.testing.assert_close(spread_out(kept).gather(1, kept.tokens), p.exp().gather(1, kept.tokens) / mass)
    assert (mass < 0.9).all()
    q = torch.full((N, V), 1 / V).log()
    _, slope = Heard(*heard(kept)).apart(q, Mix("forward_kl", V))
    wrong = slope - (q.exp() - p.exp())
    torch.testing.assert_close(wrong.clamp(max=0).sum(-1), -(1 - mass[:, 0]), rtol=1e-4, atol=1e-5)


def test_as_many_of_the_likeliest_as_there_are_tokens_is_all():
    torch.testing.assert_close(spread_out(likeliest(log_p(), V + 5)), log_p().exp())


def heard(kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
    return kept.tokens, kept.weights, kept.entropy
