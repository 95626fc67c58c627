"""Divergences and their slopes equal what is written out in float64, in chunks or whole, labels or not."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.core.batch import IGNORE, UNKNOWN
from hasten.objective.divergence import Heard, Logits, Mix, OverChunks, divergence
from hasten.ops.loss import SLICE_NUMBERS, linear_cross_entropy

KINDS = ("forward_kl", "reverse_kl", "jsd")


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Token by token, as in a textbook."""
    return (p * (p / q).log()).sum(-1)


def by_the_book(p: Tensor, q: Tensor, kind: str, beta: float) -> Tensor:
    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_slope_are_those_of_the_formula(kind, beta):
    teacher, student = draw(5, 9, seed=1, size=2), draw(5, 9, seed=2).requires_grad_()
    expected = by_the_book(teacher.softmax(-1), student.softmax(-1), kind, beta)
    (slope,) = torch.autograd.grad(expected.sum(), student)
    found = divergence(teacher.log_softmax(-1), student.detach().log_softmax(-1), kind, beta)
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "near"), [("forward_kl", 1e-6), ("reverse_kl", 1 - 1e-6)])
def test_the_jensen_shannon_divergence_tends_to_either_kl(kind, near):
    log_p, log_q = draw(4, 7, seed=1).log_softmax(-1), draw(4, 7, seed=2).log_softmax(-1)
    share = near if kind == "forward_kl" else 1 - near
    for found, limit in zip(
        divergence(log_p, log_q, "jsd", near), divergence(log_p, log_q, kind), strict=True
    ):
        torch.testing.assert_close(found / share, limit, rtol=1e-4, atol=1e-6)


def test_nothing_is_apart_from_itself():
    log_p = draw(3, 8, size=4).log_softmax(-1)
    for kind in KINDS:
        value, slope = divergence(log_p, log_p, kind)
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


SHAPES = [
    {"kind": "forward_kl"},
    {"kind": "forward_kl", "temperature": 3.0, "labels": 0.3},
    {"kind": "reverse_kl", "temperature": 0.5, "labels": 0.5},
    {"kind": "jsd", "beta": 0.2, "temperature": 2.0},
    {"kind": "forward_kl", "labels": 0.2, "known": 10},
]
N, D, V = 11, 6, 13


def setting(beyond: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student's states [N, D], head [V, D], bias [V], targets [N], teacher's logits [N, V + 2]."""
    targets = torch.randint(0, 10, (N,), generator=torch.Generator().manual_seed(3))
    targets[[2, 7]], targets[[3, 10]] = IGNORE, UNKNOWN
    return (
        draw(N, D, seed=1),
        draw(V, D, seed=2),
        draw(V, seed=4),
        targets,
        draw(N, V + 2 * beyond, seed=5, size=2),
    )


def written_out(  # noqa: PLR0917
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, theirs: Tensor, mix: Mix, cap: float | None
):
    """The summed loss in float64, place by place."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(N):
        if targets[n] == IGNORE:
            continue
        logits = hidden[n] @ weight.T + bias
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        p = (theirs[n, : mix.known] / mix.temperature).softmax(-1)
        q = (logits[: mix.known] / mix.temperature).softmax(-1)
        apart = by_the_book(p, q, mix.kind, mix.beta)
        if targets[n] == UNKNOWN:
            total = total + mix.temperature**2 * apart
            continue
        label = F.cross_entropy(logits[None], targets[n][None])
        total = total + (1 - mix.labels) * mix.temperature**2 * apart + mix.labels * label
    return total


@pytest.mark.parametrize("cap", [None, 2.0], ids=["plain", "capped"])
@pytest.mark.parametrize("chunk", [None, 4, 1])
@pytest.mark.parametrize("fields", SHAPES, ids=lambda fields: "-".join(map(str, fields.values())))
def test_the_loss_of_a_head_and_its_gradients_are_those_written_out(fields, chunk, cap):
    """Float32 inside, so agreement is to its rounding."""
    mix = Mix(**{"known": V, **fields})
    hidden, weight, bias, targets, theirs = setting()
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    expected = written_out(*leaves, targets, theirs, mix, cap)
    slopes = torch.autograd.grad(expected, leaves)
    own = [x.float().requires_grad_() for x in (hidden, weight, bias)]
    over = OverChunks(Logits(theirs.float()), mix)
    found = linear_cross_entropy(own[0], own[1], targets, own[2], chunk_tokens=chunk, soft_cap=cap, over=over)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for slope, wanted in zip(torch.autograd.grad(found, own), slopes, strict=True):
        torch.testing.assert_close(slope.double(), wanted, rtol=1e-4, atol=1e-5)


def test_hot_distributions_pull_logits_together_whatever_the_temperature():
    """Hinton et al. 2015, eq. 4: of centred logits the slope of τ² KL tends to (z - v) / V."""
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (draw(3, V, seed=1), draw(3, V, seed=2)))
    for temperature in (1e3, 1e4):
        _, slope = divergence(
            (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1), "forward_kl"
        )
        torch.testing.assert_close(temperature * slope, (student - teacher) / V, rtol=1e-2, atol=1e-4)


def test_what_was_heard_of_every_token_is_what_the_teacher_says():
    """K = V with the probabilities as weights: loss and slope of the whole distribution."""
    mix = Mix("forward_kl", V, temperature=2.0, labels=0.25)
    hidden, weight, bias, targets, theirs = setting(beyond=False)
    p = (theirs / mix.temperature).softmax(-1).float()
    entropy = -(p * p.log()).sum(-1)
    heard = Heard(torch.arange(V).expand(N, V), p, entropy)
    results = []
    for told in (heard, Logits(theirs.float())):
        own = [x.float().requires_grad_() for x in (hidden, weight, bias)]
        loss = linear_cross_entropy(
            own[0], own[1], targets, own[2], chunk_tokens=3, over=OverChunks(told, mix)
        )
        results.append([loss.detach(), *torch.autograd.grad(loss, own)])
    for some, all_ in zip(*results, strict=True):
        torch.testing.assert_close(some, all_, rtol=1e-4, atol=1e-5)


def test_a_loss_that_needs_no_gradient_is_the_same():
    mix = Mix("jsd", V, labels=0.5)
    hidden, weight, bias, targets, theirs = (x.float() if x.is_floating_point() else x for x in setting())

    def loss() -> Tensor:
        over = OverChunks(Logits(theirs), mix)
        return linear_cross_entropy(hidden, weight, targets, bias, chunk_tokens=5, over=over)

    plain = loss()
    hidden.requires_grad_()
    assert plain.item() == pytest.approx(loss().item(), rel=1e-6) and math.isfinite(plain.item())


@pytest.mark.parametrize("kept", ["logits", "heard"])
def test_few_places_at_a_time_change_nothing_and_a_chunk_asks_the_teacher_once(monkeypatch, kept):
    """Where V is large float32 copies are of few places, but a head's weights are read once for all."""
    mix, asked = Mix("forward_kl", V, labels=0.25), []
    hidden, weight, bias, targets, theirs = (x.float() if x.is_floating_point() else x for x in setting())
    p = theirs[:, :V].softmax(-1)
    entropy = -(p * p.log()).sum(-1)

    def head(states: Tensor) -> Tensor:
        asked.append(len(states))
        return states

    def loss() -> Tensor:
        told = Logits(theirs, head) if kept == "logits" else Heard(torch.arange(V).expand(N, V), p, entropy)
        over = OverChunks(told, mix)
        return linear_cross_entropy(hidden, weight, targets, bias, chunk_tokens=5, over=over)

    whole = loss()
    monkeypatch.setitem(SLICE_NUMBERS, "cpu", 2 * weight.shape[0])
    asked.clear()
    assert loss().item() == pytest.approx(whole.item(), rel=1e-6)
    if kept == "logits":
        assert asked == [min(5, N - first) for first in range(0, N, 5)]
