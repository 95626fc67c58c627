"""Speculative decoding: whose texts these are, how they are distributed, and what is refused."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from hasten.core.errors import ConfigError
from hasten.generate.cache import KeyValueCache
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.generate.native import NativeDecoder
from hasten.generate.sample import drawn_from, filtered_by, invert, shares
from hasten.generate.speculative import settle
from hasten.model.transformer import Encoder, Seq2Seq, build
from hasten.ops.kernels.library import library

GREEDY = {"temperature": 0.0, "max_new_tokens": 40, "heal_prompt": False}
PROMPTS = ["Once upon a time", "x"]
SHAPES = {
    "rotary": {},
    "learned": {"position": "learned"},
    "window": {"sliding_window": 5, "window_layers": (0,), "local_rope_theta": 300.0},
    "head": {"head_bias": True, "logit_soft_cap": 15.0, "qk_norm": True},
}
needs_kernels = pytest.mark.skipif(library() is None, reason="the kernels cannot be compiled or run here")


def relative(model, noise):
    """A model whose weights are a little different: its guesses are often right and sometimes wrong."""
    other = copy.deepcopy(model)
    torch.manual_seed(7)
    with torch.no_grad():
        for matrix in (one for one in other.parameters() if one.dim() > 1):
            matrix.add_(noise * matrix.std() * torch.randn_like(matrix))
    return other


def written(model, tokenizer, prompts=PROMPTS, draft=None, **settings):
    return generate(model, tokenizer, prompts, GenerateConfig(**settings), draft=draft)


@pytest.mark.parametrize("ahead", [1, 4, 9])
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
def test_the_likeliest_text_is_the_models_own_whatever_is_guessed(small_model, bytes_only, noise, ahead):
    model = small_model()
    plain = written(model, bytes_only, **GREEDY)
    fast = written(model, bytes_only, draft=relative(model, noise), draft_tokens=ahead, **GREEDY)
    assert [one.tokens for one in fast] == [one.tokens for one in plain]
    assert [one.stopped_by for one in fast] == [one.stopped_by for one in plain]
    if noise == 0:
        assert all(one.accepted == one.guessed > 0 for one in fast)
    assert all(one.guessed == one.accepted == 0 for one in plain)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@needs_kernels
def test_tokens_read_together_score_as_those_read_one_by_one(small_model, shape):
    model, tokens = small_model(**shape), torch.tensor([[5, 9, 200, 3, 7, 31, 8, 64, 2, 100]])
    scores = []
    for together in (True, False):
        native = NativeDecoder(model)
        with torch.inference_mode(), KeyValueCache(model, [0], 16, native) as cache:
            cache.read(tokens[:, :3])
            if together:
                first = cache.follow_all(tokens[0, 3:9]).clone()
                cache.go_back(6)
                again = cache.follow_all(tokens[0, 6:])
                scores.append(torch.cat((first[:3], again)))
            else:
                scores.append(torch.cat([cache.follow(tokens[:, i]).clone() for i in range(3, 10)]))
    assert torch.equal(*scores)


def test_without_kernels_tokens_read_together_score_alike(small_model):
    model, tokens = small_model(), torch.tensor([[5, 9, 200, 3, 7]])
    with torch.inference_mode(), KeyValueCache(model, [0], 5) as cache:
        cache.read(tokens[:, :2])
        found = cache.follow_all(tokens[0, 2:])
    torch.testing.assert_close(found, model.logits(model(tokens))[0, 2:], atol=1e-4, rtol=1e-4)


def chi_square(counts, expected):
    """The probability of counts as unlikely as these."""
    seen = expected > 0
    assert counts[~seen].sum() == 0, "something came that cannot"
    statistic = ((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum()
    return chi2.sf(statistic, seen.sum() - 1)


def test_what_is_settled_has_the_large_models_distribution():
    torch.manual_seed(0)
    draw, trials = np.random.default_rng(1), 25_000
    p, q = torch.randn(3, 6).mul(1.5).softmax(-1), torch.randn(2, 6).mul(1.5).softmax(-1)
    p[:, 5], q[:, 0] = 0, 0  # what one of them never says
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    firsts, seconds, kept = np.zeros(6), np.zeros((6, 6)), 0
    for _ in range(trials):
        guesses = [int(draw.choice(6, p=row.double().numpy() / row.double().sum().item())) for row in q]
        tokens = settle(guesses, p, q, draw.random((3, 3)).tolist())
        firsts[tokens[0]] += 1
        kept += len(tokens) > 1
        if len(tokens) > 1:
            seconds[tokens[0], tokens[1]] += 1
    assert chi_square(firsts, trials * p[0].double().numpy()) > 1e-3
    given = seconds.sum(0)  # the second token, where the first guess was kept, whatever it was
    assert chi_square(given, given.sum() * p[1].double().numpy()) > 1e-3
    expected = torch.minimum(p[0], q[0]).sum().item()  # Leviathan et al. 2023, theorem 3.5
    assert abs(kept / trials - expected) < 4 * math.sqrt(expected * (1 - expected) / trials)


def test_texts_of_two_tokens_have_the_models_distribution(small_model, bytes_only):
    model = small_model(head_bias=True)
    with torch.no_grad():  # few tokens that can come, so that few texts show the distribution
        model.head.weight.mul_(0.1)
        model.head_bias.zero_()[6:] = -100
    config = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 2, "heal_prompt": False}
    samples = 2000
    texts = written(
        model, bytes_only, ["x"], relative(model, 0.5), samples_per_prompt=samples, draft_tokens=1, **config
    )
    assert 0.1 < sum(one.accepted for one in texts) / sum(one.guessed for one in texts) < 0.99
    counts, expected = {}, {}
    for one in texts:
        counts[one.tokens] = counts.get(one.tokens, 0) + 1
    with torch.inference_mode():
        ids = [bytes_only.bos_id, *bytes_only.encode("x")]
        settings = GenerateConfig(**config)
        first = shares(model.logits(model(torch.tensor([ids])))[0, -1:], settings)[0]
        for token in first.nonzero().flatten().tolist():
            second = shares(model.logits(model(torch.tensor([[*ids, token]])))[0, -1:], settings)[0]
            for other in second.nonzero().flatten().tolist():
                expected[token, other] = samples * (first[token] * second[other]).item()
    assert counts.keys() <= expected.keys() and len(expected) > 5
    common = [key for key, count in expected.items() if count >= 5]
    seen = np.array([*(counts.get(key, 0) for key in common), 0.0])
    wanted = np.array([*(expected[key] for key in common), 0.0])
    seen[-1], wanted[-1] = samples - seen.sum(), samples - wanted.sum()  # all that is rare together
    assert chi_square(seen[wanted > 1], wanted[wanted > 1]) > 1e-3


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 3}, {"min_p": 0.1, "temperature": 0.7}, {"temperature": 0}]
)
def test_shares_are_those_of_the_filters(settings):
    torch.manual_seed(0)
    logits, config = torch.randn(4, 300), GenerateConfig(**settings)
    wanted = (
        filtered_by(logits, config).softmax(-1)
        if config.temperature
        else torch.nn.functional.one_hot(logits.argmax(-1), 300).float()
    )
    torch.testing.assert_close(shares(logits, config), wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {}, {"top_k": 3, "min_p": 0.05}], ids=str)
def test_one_token_is_drawn_from_what_is_left(settings):
    """The kernel's shares and its draw, at once, and what PyTorch makes of the same (transposed) scores."""
    config = GenerateConfig(**settings)
    scores = 2 * torch.randn(20, 37, generator=torch.Generator().manual_seed(4))
    apart = scores.t().contiguous().t()
    for row, other in zip(scores.split(1), apart.split(1), strict=True):
        left, its = torch.empty(37), torch.empty(37)
        for draw in (0.0, 0.3, 0.999):
            token = drawn_from(row, draw, config, left)
            torch.testing.assert_close(left[None], shares(row, config))
            assert token == invert(left[None], draw)
            assert drawn_from(other[:, ::1], draw, config, its) == token
            torch.testing.assert_close(its, left, rtol=1e-5, atol=1e-7)


def test_a_text_ends_where_it_would_and_slides_as_it_would(small_model, bytes_only):
    model = small_model()
    settings = {**GREEDY, "max_new_tokens": 100, "context_overflow": "slide"}
    plain = written(model, bytes_only, **settings)
    fast = written(model, bytes_only, draft=relative(model, 0.1), **settings)
    assert [(one.tokens, one.forgotten_tokens) for one in fast] == [
        (one.tokens, one.forgotten_tokens) for one in plain
    ]
    stop = plain[0].text[5:8]
    again = written(model, bytes_only, draft=relative(model, 0.1), **GREEDY, stop=(stop,))
    assert again[0].text == written(model, bytes_only, **GREEDY, stop=(stop,))[0].text


def test_healing_and_the_least_length_hold(small_model, bytes_only):
    model = small_model()
    for settings in ({"heal_prompt": True}, {"heal_prompt": False, "min_new_tokens": 12}):
        asked = {"temperature": 0.0, "max_new_tokens": 20, **settings}
        plain, fast = (written(model, bytes_only, draft=it, **asked) for it in (None, relative(model, 0.1)))
        assert [one.tokens for one in fast] == [one.tokens for one in plain]


def test_a_draft_with_a_shorter_context_guesses_as_far_as_it_can_read(small_model, bytes_only):
    model, short = small_model(), small_model(seed=1, max_positions=20, position="learned")
    plain, fast = (written(model, bytes_only, draft=it, **GREEDY) for it in (None, short))
    assert [one.tokens for one in fast] == [one.tokens for one in plain]


def test_the_same_seed_gives_the_same_text(small_model, bytes_only):
    model = small_model()
    draft = relative(model, 0.3)
    asked = {"temperature": 0.9, "max_new_tokens": 30, "seed": 3}
    first, second = (written(model, bytes_only, draft=draft, **asked) for _ in range(2))
    assert first == second
    alone = written(model, bytes_only, PROMPTS[1:], draft, **asked)
    assert alone[0] == first[1]


def test_what_does_not_go_together_is_refused(small_model, bytes_only):
    for settings in ({"repetition_penalty": 1.2}, {"no_repeat_ngram": 2}, {"beams": 3}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            GenerateConfig(draft=Path("small"), **settings)
    model = small_model()
    pairs = build(model.config.model_copy(update={"kind": "seq2seq"}), seed=0)
    assert isinstance(pairs, Seq2Seq)
    with pytest.raises(ConfigError, match="decoder"):
        written(model, bytes_only, draft=pairs, **GREEDY)
    reader = build(model.config.model_copy(update={"kind": "encoder"}), seed=0)
    assert isinstance(reader, Encoder)
    with pytest.raises(ConfigError, match="decoder"):
        written(model, bytes_only, draft=reader, **GREEDY)
