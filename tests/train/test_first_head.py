"""A new head of classes begins with scores of one size, whatever it reads; any other head stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import VOCAB, write_corpus

from hasten.data.corpus import Corpus
from hasten.model.config import ModelConfig
from hasten.model.heads import with_classes, with_spans
from hasten.model.transformer import build
from hasten.train.first_head import HEAD, SPREAD, as_it_begins, first_head, head_of_words, what_it_reads

ENCODER = {"kind": "encoder", "position": "learned", "pooler": "tanh", "num_token_types": 2, "head": "none"}
DECODER = {"kind": "decoder", "position": "rotary"}


def shape(**kind: Any) -> ModelConfig:
    sizes = {"vocab_size": VOCAB, "dim": 64, "num_layers": 2, "num_heads": 2, "max_positions": 64}
    return ModelConfig.model_validate({**sizes, **kind})


def trunk(config: ModelConfig, loudness: float = 1.0) -> dict[str, torch.Tensor]:
    """A model's weights but for those of its head, with a pooler of that loudness."""
    weights = {n: p.detach() for n, p in build(config, seed=3).named_parameters() if not n.startswith("head")}
    return {n: p * loudness if n.startswith("pooler") else p for n, p in weights.items()}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(write_corpus(tmp_path), "train", 16, seed=0)


@pytest.mark.parametrize("loudness", [1.0, 0.03])
@pytest.mark.parametrize("base", [ENCODER, DECODER], ids=["encoder", "decoder"])
@torch.no_grad()
def test_the_first_scores_have_one_spread(corpus, base, loudness):
    before = shape(**base)
    config, weights = with_classes(before, [str(n) for n in range(200)]), trunk(before, loudness)
    (found,) = first_head(config, weights, corpus, seed=0).values()
    model = as_it_begins(config, weights, 0, {})
    (batch,) = corpus.batches(3, rows=8, micro_rows=8)
    scores = what_it_reads(model, batch) @ found.T
    assert found.shape == (200, 64)
    assert float(scores.square().mean().sqrt()) == pytest.approx(SPREAD, rel=0.2)  # a quarter of an octave


def test_few_rows_are_enough(tmp_path):
    config = with_classes(shape(**ENCODER), ["a", "b"])
    few = Corpus(write_corpus(tmp_path), "validation", 128, seed=0)
    assert few.num_rows < 4 and HEAD in first_head(config, trunk(shape(**ENCODER)), few, seed=0)


@torch.no_grad()
def test_places_of_answers_are_scored_token_by_token(corpus):
    before = shape(**ENCODER)
    config, weights = with_spans(before), trunk(before)
    (found,) = first_head(config, weights, corpus, seed=0).values()
    (batch,) = corpus.batches(0, rows=32, micro_rows=32)
    read = what_it_reads(as_it_begins(config, weights, 0, {}), batch)
    assert len(read) == int((batch.segments > 0).sum()) and found.shape == (2, 64)
    assert float((read @ found.T).square().mean().sqrt()) == pytest.approx(SPREAD, rel=0.5)  # two rows


def test_the_head_is_a_function_of_the_seed_and_reads_without_touching_the_weights(corpus):
    config, weights = with_classes(shape(**ENCODER), ["a", "b"]), trunk(shape(**ENCODER))
    before = {name: tensor.clone() for name, tensor in weights.items()}
    first, again, other = (first_head(config, weights, corpus, seed=seed)[HEAD] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize("tied", [True, False])
def test_classes_begin_as_the_words_that_a_decoder_would_say(tied):
    before = shape(**DECODER, tied=tied)
    base = dict(build(before, seed=3).named_parameters())
    said = base["embedding.weight" if tied else HEAD]
    config = with_classes(before, ["bad", "very good"])
    (found,) = head_of_words(config, base, [[5], [7, 9]]).values()
    assert torch.equal(found[0], said[5]) and torch.allclose(found[1], (said[7] + said[9]) / 2)
    classes = dict(build(config, seed=3).named_parameters())
    assert head_of_words(config, classes, [[5], [7]]) == {}  # what it begins with says no words
    encoder = shape(**ENCODER)
    named = with_classes(encoder, ["bad", "good"])
    assert head_of_words(named, dict(build(encoder, 0).named_parameters()), [[5], [7]]) == {}


def test_a_head_that_is_there_and_a_head_of_words_stay(corpus):
    config = with_classes(shape(**ENCODER), ["a", "b"])
    assert first_head(config, {**trunk(config), HEAD: torch.zeros(2, 64)}, corpus, seed=0) == {}
    assert first_head(shape(**DECODER), trunk(shape(**DECODER)), corpus, seed=0) == {}
