"""Filters against written-out definitions and against `transformers`; picks against their distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.generate.config import GenerateConfig
from hasten.generate.sample import (
    drawn,
    draws,
    filtered,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    pick,
)
from hasten.ops.kernels.library import library


def some_logits(rows: int = 6, vocabulary: int = 40, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def kept(logits: Tensor) -> list[set[int]]:
    """For each row, the tokens that are still possible."""
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def probabilities(row: list[float]) -> list[float]:
    """Softmax, written out in float64."""
    weights = [math.exp(x - max(row)) for x in row]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("k", [1, 2, 7, 40, 1000])
def test_top_k_keeps_the_k_likeliest(k):
    logits = some_logits()
    expected = [set(sorted(range(40), key=lambda t: -row[t])[:k]) for row in logits.tolist()]
    assert kept(keep_top_k(logits, k)) == expected


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits, expected = some_logits(), []
    for row in logits.tolist():
        probability, chosen, mass = probabilities(row), set(), 0.0
        for token in sorted(range(40), key=lambda t: -row[t]):
            if mass >= p:
                break
            chosen.add(token)
            mass += probability[token]
        expected.append(chosen)
    assert kept(keep_top_p(logits, p)) == expected


def test_top_p_of_one_keeps_every_token_whatever_rounding_does():
    logits = torch.linspace(0, -30, 5000).repeat(2, 1)
    assert keep_top_p(logits, 1.0).isfinite().all()


@pytest.mark.parametrize("p", [0.01, 0.2, 1.0])
def test_min_p_keeps_what_is_at_least_p_times_the_likeliest(p):
    logits, expected = some_logits(), []
    for row in logits.tolist():
        probability = probabilities(row)
        expected.append({t for t in range(40) if probability[t] >= p * max(probability)})
    assert kept(keep_min_p(logits, p)) == expected


def test_repetition_penalty_moves_seen_tokens_towards_the_unlikely():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    expected = torch.tensor([[2.0 / 1.25, -2.0 * 1.25, 1.0, 0.0]])
    torch.testing.assert_close(penalize_repetition(logits, seen, 1.25), expected)


@pytest.mark.parametrize("seed", range(5))
def test_every_filter_agrees_with_transformers(seed):
    from transformers.generation import logits_process as theirs

    logits = some_logits(rows=8, vocabulary=100, seed=seed)
    tokens = torch.randint(0, 100, (8, 20), generator=torch.Generator().manual_seed(seed))
    seen = torch.zeros(8, 100, dtype=torch.bool).scatter(1, tokens, True)
    pairs = [
        (theirs.TopKLogitsWarper(7), keep_top_k(logits, 7)),
        (theirs.TopPLogitsWarper(0.8), keep_top_p(logits, 0.8)),
        (theirs.MinPLogitsWarper(0.1), keep_min_p(logits, 0.1)),
        (theirs.RepetitionPenaltyLogitsProcessor(1.3), penalize_repetition(logits, seen, 1.3)),
        (theirs.TemperatureLogitsWarper(0.7), filtered(logits, temperature=0.7)),
    ]
    for process, ours in pairs:
        torch.testing.assert_close(ours, process(tokens, logits.clone()))


def test_filters_apply_in_the_order_of_transformers():
    from transformers.generation import logits_process as theirs

    logits = some_logits(rows=8, vocabulary=100)
    expected = logits.clone()
    for process in (
        theirs.TemperatureLogitsWarper(1.5),
        theirs.TopKLogitsWarper(30),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.05),
    ):
        expected = process(None, expected)
    ours = filtered(logits, temperature=1.5, top_k=30, top_p=0.9, min_p=0.05)
    torch.testing.assert_close(ours, expected)


@settings(max_examples=60, deadline=None)
@given(
    k=st.none() | st.integers(1, 50),
    top_p=st.none() | st.floats(1e-12, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
    temperature=st.floats(0.01, 100.0),
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e6]),
)
def test_the_likeliest_token_always_stays(k, top_p, min_p, temperature, scale):
    logits = scale * some_logits(rows=3, vocabulary=30)
    left = filtered(logits, temperature=temperature, top_k=k, top_p=top_p, min_p=min_p)
    rows = torch.arange(3)
    assert left[rows, logits.argmax(-1)].isfinite().all()


def test_a_low_temperature_comes_to_the_likeliest_token():
    logits = some_logits(rows=200, vocabulary=50)
    uniform = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pick(filtered(logits, temperature=1e-4), uniform), logits.argmax(-1))


def test_picks_follow_the_probabilities():
    """Evenly spread draws invert the distribution: each token's share is its probability, to one draw."""
    probability = torch.tensor([0.5, 0.0, 0.125, 0.375])
    count = 8000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = pick(probability.log().expand(count, -1), uniform)
    shares = torch.bincount(tokens, minlength=4) / count
    torch.testing.assert_close(shares, probability, atol=1 / count, rtol=0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), where=st.sampled_from([0.0, 0.5, 1 - 2**-53]))
def test_a_token_that_was_ruled_out_is_never_picked(seed, where):
    logits = keep_top_k(some_logits(rows=4, vocabulary=300, seed=seed), 5)
    logits[:, :2] = logits[:, -2:] = -torch.inf
    tokens = pick(logits, torch.full((4,), where, dtype=torch.float64))
    assert logits[torch.arange(4), tokens].isfinite().all()


def test_a_row_is_picked_alike_alone_and_in_a_batch():
    logits, uniform = some_logits(rows=9), draws(3, "x", 9)
    together = pick(logits, uniform)
    alone = torch.cat([pick(logits[i : i + 1], uniform[i : i + 1]) for i in range(9)])
    assert torch.equal(together, alone)


def test_draws_repeat_for_a_seed_and_a_prompt_and_for_nothing_else():
    assert torch.equal(draws(1, "从前", 50), draws(1, "从前", 50))
    assert not torch.equal(draws(1, "从前", 50), draws(2, "从前", 50))
    assert not torch.equal(draws(1, "从前", 50), draws(1, "从后", 50))


def test_more_draws_begin_with_the_fewer():
    assert torch.equal(draws(1, "a", 1000)[:17], draws(1, "a", 17))


def test_draws_are_spread_evenly():
    """Kolmogorov-Smirnov: 10,000 draws stay within 1.95/100 of the diagonal with probability 99.9%."""
    ordered = draws(5, "story", 10_000).sort().values
    gap = (ordered - (torch.arange(10_000) + 0.5) / 10_000).abs().max()
    assert gap < 1.95 / 100


class TestKernel:
    """The C++ against the filters and the inverse as they are written in PyTorch."""

    pytestmark = pytest.mark.skipif(library() is None, reason="the kernels cannot be compiled or run here")

    @pytest.mark.parametrize("vocabulary", [1, 2, 17, 257, 8192, 32_003])
    @pytest.mark.parametrize(
        "choice",
        [
            {"top_p": None},
            {},
            {"top_p": 0.3, "temperature": 1.7},
            {"top_k": 40},
            {"top_k": 7, "top_p": 0.5, "min_p": 0.02},
            {"min_p": 0.1, "top_p": None, "temperature": 0.3},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
    def test_it_chooses_what_the_filters_and_the_draw_choose(self, vocabulary, choice, scale):
        generator = torch.Generator().manual_seed(vocabulary)
        logits = torch.randn(8, vocabulary + 5, generator=generator)[:, :vocabulary] * scale
        draw = torch.rand(8, dtype=torch.float64, generator=generator)
        c = GenerateConfig(**choice)
        expected = filtered(logits, temperature=c.temperature, top_k=c.top_k, top_p=c.top_p, min_p=c.min_p)
        mass = expected.double().softmax(-1).cumsum(-1)
        tokens = drawn(logits, draw, c)
        # Where it differs from the definition, rounding at a border has moved a token's mass past the draw.
        for row, token in enumerate(tokens.tolist()):
            below = mass[row, token - 1] if token else 0.0
            assert below - 2e-4 <= draw[row] <= mass[row, token] + 2e-4
            least = expected[row][expected[row].isfinite()].min() * c.temperature
            assert logits[row, token] >= least - 1e-4 * scale

    def test_a_row_is_chosen_alike_alone_and_in_a_batch(self):
        logits, draw = torch.randn(9, 1000) * 3, torch.rand(9, dtype=torch.float64)
        config = GenerateConfig(top_k=100)
        together = drawn(logits, draw, config).tolist()
        assert together == [int(drawn(logits[i : i + 1], draw[i : i + 1], config)) for i in range(9)]

    @pytest.mark.parametrize("choice", [{}, {"top_k": 5}, {"top_p": 1e-9}, {"min_p": 1.0}], ids=str)
    def test_what_was_ruled_out_is_never_chosen(self, choice):
        logits = torch.full((64, 300), -torch.inf)
        logits[:, [3, 150, 299]] = 1.0
        draw = torch.linspace(0, 1 - 2**-53, 64, dtype=torch.float64)
        assert set(drawn(logits, draw, GenerateConfig(**choice)).tolist()) == {3, 150, 299}
