"""Bits per byte against written-out scoring, one token at a time."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hasten.core.errors import ConfigError, DataError
from hasten.evaluate.language import (
    TokenScores,
    Windows,
    cut,
    ratio_stderr,
    score_texts,
    score_tokens,
    summarise,
)
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build

CONTEXT = 16


class Chunks:
    """A tokenizer whose tokens are `width` bytes each: 256 ** width of them, then end of text."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.bos_id = self.eot_id = 256**width

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text.encode()) for text in texts]

    def encode(self, data: bytes) -> list[int]:
        return [int.from_bytes(data[i : i + self.width], "big") for i in range(0, len(data), self.width)]


class Uniform(nn.Module):
    """Gives every string of bytes the same probability, whatever its tokens are."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.anchor = vocab_size, nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[..., None].float()

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.zeros(*hidden.shape[:-1], self.vocab_size)


@pytest.fixture(scope="module")
def model() -> Decoder:
    shape = ModelConfig(
        vocab_size=257, dim=32, num_layers=2, num_heads=2, max_positions=CONTEXT, init_std=0.2
    )
    return build(shape, seed=0)


def draw_documents(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 257, length + 1) for length in lengths]


def log_softmax_at(model: Decoder, ids: np.ndarray) -> torch.Tensor:
    """The distribution after the last of `ids`, in float64."""
    with torch.no_grad():
        return model.logits(model(torch.from_numpy(ids)[None]))[0, -1].double().log_softmax(-1)


def exact(model: Decoder, ids: np.ndarray, context: int) -> np.ndarray:
    """Every target with all the context it can have, one forward pass each."""
    after = [log_softmax_at(model, ids[max(0, end - context) : end]) for end in range(1, len(ids))]
    return np.array([scores[target].item() for scores, target in zip(after, ids[1:], strict=True)])


def test_the_same_uniform_model_scores_the_same_whatever_its_tokenizer():
    texts = ["a text of an even length!!", "é and 中 take 6 bytes "]
    by_byte, by_pair = (
        score_texts(Uniform(256**width), Chunks(width), texts, Windows(8, 4), score_end=False)[0]
        for width in (1, 2)
    )
    assert by_byte.bits_per_byte == pytest.approx(8) == by_pair.bits_per_byte
    assert by_byte.bytes == by_pair.bytes == sum(len(text.encode()) for text in texts)
    assert by_byte.tokens == 2 * by_pair.tokens
    assert by_pair.loss == pytest.approx(2 * by_byte.loss)


def test_bits_per_byte_are_the_loss_in_bits_times_tokens_over_the_bytes_of_the_text(model):
    texts = ["naïve café 中文", "def f():\n    return 1\n"]
    score, _ = score_texts(model, Chunks(1), texts, Windows(CONTEXT, 4))
    size = sum(len(text.encode()) for text in texts)
    assert score.bytes == size and score.tokens == size + 2, "each document's end is predicted as well"
    assert score.bits_per_byte == pytest.approx(score.loss / math.log(2) * score.tokens / size)
    assert score.perplexity == pytest.approx(math.exp(score.loss))


def test_windows_sum_to_one_long_forward_where_the_context_holds_the_document(model):
    (ids,) = draw_documents([CONTEXT])
    with torch.no_grad():
        logits = model.logits(model(torch.from_numpy(ids[:-1])[None]))[0].double()
    whole = logits.log_softmax(-1).gather(-1, torch.from_numpy(ids[1:])[:, None]).sum()
    for stride in (1, 5, CONTEXT):
        scores = score_tokens(model, [ids], Windows(CONTEXT, stride))
        assert scores.log_probs.sum() == pytest.approx(whole.item(), rel=1e-5)


def test_a_stride_of_one_gives_every_target_its_whole_context(model):
    (ids,) = draw_documents([3 * CONTEXT + 5])
    scores = score_tokens(model, [ids], Windows(CONTEXT, 1))
    np.testing.assert_allclose(scores.log_probs, exact(model, ids, CONTEXT), rtol=1e-4, atol=1e-5)


def test_smaller_strides_come_nearer_to_the_exact_value(model):
    documents = draw_documents([200, 150, 90])
    truth = np.concatenate([exact(model, ids, CONTEXT) for ids in documents])
    errors = [
        np.abs(score_tokens(model, documents, Windows(CONTEXT, stride)).log_probs - truth).mean()
        for stride in (16, 8, 4, 2, 1)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 100 * errors[-1], "the test can tell: disjoint windows are far from exact"


@settings(max_examples=60, deadline=None)
@given(
    targets=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    context=st.integers(1, 12),
    data=st.data(),
)
def test_every_target_is_scored_once_with_enough_before_it(targets, context, data):
    stride = data.draw(st.integers(1, context))
    bounds = np.concatenate([[0], np.cumsum(targets)])
    scored = np.zeros(bounds[-1], int)
    for window in cut(bounds, Windows(context, stride)):
        end = window.start + window.length
        assert window.length <= context and end <= targets[window.document]
        scored[bounds[window.document] + end - window.scored : bounds[window.document] + end] += 1
        if window.start:
            assert window.length - window.scored >= context - stride
    assert (scored == 1).all()


def test_documents_never_cross(model):
    lengths = [5, 40, 17]
    documents, others = draw_documents(lengths), draw_documents(lengths, seed=1)
    together = score_tokens(model, documents, Windows(CONTEXT, 8))
    for i, ids in enumerate(documents):
        surrounded = [*others[:i], ids, *others[i + 1 :]]
        moved = score_tokens(model, surrounded, Windows(CONTEXT, 8))
        span = slice(together.bounds[i], together.bounds[i + 1])
        np.testing.assert_allclose(moved.log_probs[span], together.log_probs[span], rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 7, 50, 10_000])
def test_batches_give_what_one_window_at_a_time_gives(model, batch_tokens):
    documents = draw_documents([1, 3, 50, 16, 29, 0, 70])
    alone = score_tokens(model, documents, Windows(CONTEXT, 4, batch_tokens=1))
    batched = score_tokens(model, documents, Windows(CONTEXT, 4, batch_tokens))
    np.testing.assert_allclose(batched.log_probs, alone.log_probs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batched.correct, alone.correct)


def test_accuracy_counts_targets_that_are_the_most_probable_token(model):
    # The model's own greedy continuation is right from the second token on; random ids hardly ever are.
    ids = np.array([256, 7])
    while len(ids) <= CONTEXT:
        ids = np.append(ids, log_softmax_at(model, ids).argmax().item())
    (noise,) = draw_documents([30])
    scores = score_tokens(model, [ids, noise], Windows(CONTEXT, 4))
    expected = [
        log_softmax_at(model, doc[max(0, end - CONTEXT) : end]).argmax().item() == doc[end]
        for doc, ends in ((ids, range(1, len(ids))), (noise, range(1, CONTEXT + 1)))
        for end in ends
    ]
    assert scores.correct[: len(expected)].tolist() == expected
    assert scores.correct[1:CONTEXT].all()
    score = summarise(scores, np.array([15, 30]))
    assert score.accuracy == pytest.approx(scores.correct.sum() / len(scores.correct))


def test_logits_in_pieces_are_logits_at_once(model, monkeypatch):
    documents = draw_documents([60, 31])
    whole = score_tokens(model, documents, Windows(CONTEXT, 8))
    monkeypatch.setattr("hasten.evaluate.language.CHUNK_TARGETS", 7)
    pieces = score_tokens(model, documents, Windows(CONTEXT, 8))
    np.testing.assert_allclose(pieces.log_probs, whole.log_probs, rtol=1e-5)


def test_bf16_is_close_to_float32(model):
    documents = draw_documents([100])
    exactly, roughly = (score_tokens(model, documents, Windows(CONTEXT, 8), bf16=b) for b in (False, True))
    # bf16 keeps 8 bits: a few times 2^-8 of the logits' size, which is about 5 here.
    assert np.abs(exactly.log_probs - roughly.log_probs).max() < 0.15
    assert roughly.log_probs.dtype == np.float32


def test_dropout_is_off_and_the_model_comes_back_as_it_was(model):
    noisy = build(model.config.model_copy(update={"dropout": 0.5}), seed=0).train()
    documents = draw_documents([40])
    once, again = (score_tokens(noisy, documents, Windows(CONTEXT, 8)) for _ in range(2))
    np.testing.assert_array_equal(once.log_probs, again.log_probs)
    assert noisy.training
    assert all(parameter.grad is None for parameter in noisy.parameters())


def test_progress_is_told_how_many_targets_are_done(model):
    told: list[tuple[int, int]] = []
    documents = draw_documents([40, 10])
    score_tokens(
        model, documents, Windows(CONTEXT, 4, 32), progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (50, 50) and len(told) > 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_standard_error_agrees_with_a_bootstrap_over_documents():
    generator = np.random.default_rng(0)
    sizes = generator.integers(200, 5000, 400)
    bits = sizes * generator.normal(1.5, 0.2, 400)
    picks = generator.integers(0, 400, (4000, 400))
    bootstrap = (bits[picks].sum(1) / sizes[picks].sum(1)).std()
    # The bootstrap's own error is 1 / sqrt(2 * 4000), about 1.1%; the linearisation's is of order 1/400.
    assert ratio_stderr(bits, sizes) == pytest.approx(bootstrap, rel=0.06)


def test_the_standard_error_is_none_for_one_document_and_zero_for_equal_ones():
    assert ratio_stderr(np.array([8.0]), np.array([4])) is None
    assert ratio_stderr(np.array([8.0, 16.0]), np.array([4, 8])) == pytest.approx(0)


def test_a_hopeless_model_has_a_finite_perplexity():
    scores = TokenScores(np.full(2, -1e6, np.float32), np.zeros(2, bool), np.array([0, 2]))
    assert math.isfinite(summarise(scores, np.array([2])).perplexity)


@pytest.mark.parametrize("stride", [0, CONTEXT + 1])
def test_a_stride_that_skips_targets_is_refused(stride):
    with pytest.raises(ConfigError, match=f"stride of {stride} .* write a stride from 1 to {CONTEXT}"):
        Windows(CONTEXT, stride)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_documents_without_a_byte_are_refused(model, texts):
    with pytest.raises(DataError, match=f"the {len(texts)} documents to score hold no byte"):
        score_texts(model, Chunks(1), texts, Windows(CONTEXT, 8))
