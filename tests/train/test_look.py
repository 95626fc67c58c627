"""Looks: validation against the loss worked out by hand, probes, and what they may cost."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CPU, MODEL, ROW_TOKENS, Act, write_corpus

from hasten.data.corpus import Corpus
from hasten.data.shards import ShardWriter
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train
from hasten.train.engine import Whole
from hasten.train.horizon import Moment
from hasten.train.look import VALIDATION, Looks
from hasten.train.validate import Validation

TEXTS = ["never the twain shall meet", "naïve café 漢字", "x = 1\n", ""]


def engine(vocab_size: int) -> Whole:
    model = build(ModelConfig.model_validate({**MODEL, "vocab_size": vocab_size}), seed=0)
    return Whole(model, CrossEntropy(), CPU, precision="fp32", compiled=False)


def at(step: int, progress: float, elapsed: float = 100.0) -> Moment:
    return Moment(step, elapsed, progress, ended=progress == 1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS * 20, TokenizerConfig(vocab_size=280))


@pytest.fixture
def corpus(tokenizer: Tokenizer, tmp_path: Path) -> Corpus:
    writer = ShardWriter("texts", tokenizer.vocab_size, tokenizer.eot_id, tokenizer.eot_id)
    for text in TEXTS:
        writer.add(text, tokenizer.encode(text), len(text.encode()))
    (tmp_path / "validation").mkdir()
    writer.write(tmp_path / "validation" / "texts-0.safetensors")
    return Corpus(tmp_path, "validation", ROW_TOKENS, seed=0)


@pytest.mark.parametrize("micro_rows", [1, 2, 3])
def test_validation_is_the_mean_loss_of_every_document_by_itself(
    corpus: Corpus, tokenizer: Tokenizer, micro_rows: int
) -> None:
    """Rows that are packed and padded give what each document gives alone (all are shorter than a row)."""
    runner = engine(tokenizer.vocab_size)
    validation = Validation(corpus, CPU, max_tokens=10**6, micro_rows=micro_rows, tokenizer=tokenizer)
    loss, count, num_bytes = 0.0, 0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer.eot_id, *tokenizer.encode(text), tokenizer.eot_id])
        scores = runner.model.logits(runner.model.eval()(ids[None, :-1]))[0].log_softmax(-1)
        loss -= float(scores[torch.arange(len(ids) - 1), ids[1:]].detach().sum())
        count, num_bytes = count + len(ids) - 1, num_bytes + len(text.encode())
    figures = validation(runner)
    assert figures["validation_targets"] == count
    assert figures["validation_loss"] == pytest.approx(loss / count, rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(loss / log(2) / num_bytes, rel=1e-5)


def test_validation_keeps_to_its_tokens_and_to_the_same_rows(corpus: Corpus, tokenizer: Tokenizer) -> None:
    few = Validation(corpus, CPU, max_tokens=ROW_TOKENS, micro_rows=1)
    assert len(few.batches) == 1 < corpus.num_rows
    figures = few(engine(tokenizer.vocab_size))
    assert "bits_per_byte" not in figures, "nobody said how many bytes a token is"
    assert few(engine(tokenizer.vocab_size)) == figures


def test_probes_look_at_a_model_in_evaluation_mode_on_rank_0_only(tmp_path: Path) -> None:
    runner = engine(32)
    seen: list[Any] = []
    probe = Act(2, lambda step: seen.append((step, runner.model.training, torch.is_grad_enabled())))
    looks = Looks(None, None, [probe])
    runner.model.train()
    for step in range(5):
        for name in looks.due(at(step, step / 10), 0.0):
            looks.take(name, runner, runner.model, at(step, step / 10), leads=True)
    assert seen == [(0, False, False), (2, False, False), (4, False, False)]
    assert runner.model.training
    looks.take("act", runner, runner.model, at(6, 0.6), leads=False)
    assert len(seen) == 3


def test_automatic_validation_costs_at_most_a_twentieth_of_the_time(tmp_path: Path) -> None:
    corpus = Corpus(write_corpus(tmp_path / "data"), "validation", ROW_TOKENS, 0)
    looks = Looks(Validation(corpus, CPU, max_tokens=64, micro_rows=2), "auto", [])
    assert looks.due(at(0, 0.0, elapsed=0.1), 0.0) == [VALIDATION], "the first is free"
    looks.take(VALIDATION, engine(32), engine(32).model, at(0, 0.0), leads=True)
    looks.seconds[VALIDATION], looks.spent[VALIDATION] = 4.0, 4.0
    assert looks.due(at(10, 0.5, elapsed=159.0), 0.0) == []
    assert looks.due(at(10, 0.5, elapsed=161.0), 0.0) == [VALIDATION]
    assert looks.due(at(19, 0.96, elapsed=999.0), 0.0) == [], "the last is near"
    assert looks.due(at(20, 1.0, elapsed=10.0), 0.0) == [VALIDATION], "and it is free"


def test_the_first_validation_is_not_held_against_the_next(tmp_path: Path) -> None:
    """It may carry what is done once: what the next will take follows the pace of training."""
    corpus = Corpus(write_corpus(tmp_path / "data"), "validation", ROW_TOKENS, 0)
    looks = Looks(Validation(corpus, CPU, max_tokens=64, micro_rows=2), "auto", [])
    looks.take(VALIDATION, engine(32), engine(32).model, at(0, 0.0), leads=True)
    assert not looks.spent
    for measured, expected in ((100.0, 0.4 * 64), (0.01, 0.2 * 64), (0.3 * 64, 0.3 * 64)):
        looks.seconds[VALIDATION] = measured
        assert looks.estimate_all(token_seconds=1.0) == pytest.approx(expected)
    assert looks.estimate_all(token_seconds=0.0) == 0.3 * 64, "before the first step there is no pace"


def test_looks_go_on_from_their_state() -> None:
    first, second = (Looks(None, None, [Act(5, lambda step: None)]) for _ in range(2))
    first.take("act", engine(32), engine(32).model, at(5, 0.5), leads=True)
    second.restore(first.state(), first.seconds)
    assert second.seconds == first.seconds
    assert [second.due(at(step, step / 10), 0.0) for step in (5, 9, 10)] == [[], [], ["act"]]
