"""A model beside the one it was made from, against the same figures written out token by token in float64."""

import copy
import math

import numpy as np
import pytest
import torch

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError, DataError
from hasten.evaluate.agreement import FEWEST_DOCUMENTS, Tally, compare_rows, compare_texts, ratio
from hasten.evaluate.interval import SAMPLES, SEED
from hasten.evaluate.language import Windows, score_texts
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build

CONTEXT = 16
SHAPE = {"vocab_size": 257, "dim": 32, "num_layers": 2, "num_heads": 2, "max_positions": CONTEXT}


class Bytes:
    """A tokenizer of bytes."""

    bos_id = eot_id = 256

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]


@pytest.fixture(scope="module")
def reference() -> Decoder:
    return build(ModelConfig(**SHAPE, init_std=0.3), seed=0)


@pytest.fixture(scope="module")
def model(reference) -> Decoder:
    """The reference with some noise on its weights."""
    other, draw = copy.deepcopy(reference), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return other


def written_out(reference: Decoder, model: Decoder, text: str) -> dict[str, float]:
    """Sums over the targets of a text that fits into the context."""
    ids = torch.tensor([256, *text.encode(), 256])
    with torch.no_grad():
        p, q = (each.logits(each(ids[None, :-1]))[0].double().log_softmax(-1) for each in (reference, model))
    places, targets = torch.arange(len(ids) - 1), ids[1:]
    return {
        "kl": float((p.exp() * (p - q)).sum()),
        "same": float((p.argmax(-1) == q.argmax(-1)).sum()),
        "loss": float(-q[places, targets].sum()),
        "reference_loss": float(-p[places, targets].sum()),
        "correct": float((q.argmax(-1) == targets).sum()),
    }


TEXTS = ["abc", "a longer text", "xyzzy!", "", "q"]


def test_each_figure_is_the_one_written_out(reference, model):
    found = compare_texts(reference, model, Bytes(), TEXTS, Windows(CONTEXT, CONTEXT // 2)).agreement()
    sums = [written_out(reference, model, text) for text in TEXTS]
    total = {name: sum(each[name] for each in sums) for name in sums[0]}
    targets = sum(len(text) + 1 for text in TEXTS)
    nats = math.log(2) * sum(len(text) for text in TEXTS)
    assert found.targets == targets
    assert found.kl.value == pytest.approx(total["kl"] / targets, rel=1e-4)
    assert found.same.value == pytest.approx(total["same"] / targets)
    assert found.accuracy.value == pytest.approx(total["correct"] / targets)
    assert found.loss.value == pytest.approx(total["loss"] / targets, rel=1e-5)
    change = total["loss"] - total["reference_loss"]
    assert found.loss_change.value == pytest.approx(change / targets, rel=1e-3)
    assert found.bits_per_byte is not None and found.bits_change is not None
    assert found.bits_per_byte.value == pytest.approx(total["loss"] / nats, rel=1e-5)
    assert found.bits_change.value == pytest.approx(change / nats, rel=1e-3)


@pytest.mark.parametrize("count", [FEWEST_DOCUMENTS - 15, FEWEST_DOCUMENTS + 5])
def test_long_texts_are_scored_as_evaluation_scores_them(reference, model, count):
    texts = [f"{number} bottles of beer on the wall, " * (1 + number % 4) for number in range(count)]
    windows = Windows(CONTEXT, 5, batch_tokens=64)
    tally = compare_texts(reference, model, Bytes(), texts, windows)
    found, (score, _) = tally.agreement(), score_texts(model, Bytes(), texts, windows)
    assert found.bits_per_byte is not None
    assert found.bits_per_byte.value == pytest.approx(score.bits_per_byte, rel=1e-5)
    assert found.accuracy.value == pytest.approx(score.accuracy)
    assert (found.units == count) == (count >= FEWEST_DOCUMENTS), "of few documents windows are drawn"
    assert tally.sizes.sum() == pytest.approx(score.bytes)


def test_a_model_agrees_with_itself_for_certain(reference):
    texts = [f"text {number}" for number in range(30)]
    found = compare_texts(reference, reference, Bytes(), texts, Windows(CONTEXT, 8)).agreement()
    assert found.kl.value == pytest.approx(0, abs=1e-9) and found.same.value == 1
    for change in (found.loss_change, found.accuracy_change, found.bits_change):
        assert change is not None and change.value == 0 and change.interval == 0
    assert found.loss.interval is not None and found.loss.interval > 0


def test_rows_count_where_they_have_a_target(reference, model):
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 257, (3, CONTEXT), generator=draw)
    targets = tokens.roll(-1, 1).masked_fill(torch.rand(3, CONTEXT, generator=draw) < 0.6, IGNORE)
    targets[2] = IGNORE  # a row of padding is no unit
    found = compare_rows(reference, model, [Batch(tokens, targets)]).agreement()
    with torch.no_grad():
        p, q = (each.logits(each(tokens)).double().log_softmax(-1) for each in (reference, model))
    asked = targets != IGNORE
    kl = (p.exp() * (p - q)).sum(-1)[asked].mean()
    assert found.targets == int(asked.sum()) and found.units == 2
    assert found.kl.value == pytest.approx(float(kl), rel=1e-4)
    assert found.bits_per_byte is None, "nobody counted bytes"


def test_an_interval_is_that_of_units_drawn_again():
    draw = np.random.default_rng(0)
    above, below = draw.normal(3, 1, 40), draw.integers(1, 9, 40).astype(float)
    again = np.random.default_rng(SEED).integers(40, size=(SAMPLES, 40))
    ratios = [above[some].sum() / below[some].sum() for some in again]
    low, high = np.quantile(ratios, [0.025, 0.975])
    found = ratio(above, below)
    assert found.value == pytest.approx(above.sum() / below.sum())
    assert found.interval == pytest.approx((high - low) / 2)
    assert ratio(above[:1], below[:1]).interval is None


def test_a_change_is_paired():
    """What is hard for both cancels: texts differ a lot, the change between two models hardly."""
    hard = np.random.default_rng(1).uniform(1, 5, 50)
    columns = np.stack(
        [np.full(50, 10.0), hard, hard, 10 * hard + 0.1, 10 * hard, np.zeros(50), np.zeros(50)], axis=1
    )
    found = Tally(columns, np.full(50, 30.0)).agreement()
    assert found.loss_change.value == pytest.approx(0.01)
    assert found.loss_change.interval == pytest.approx(0, abs=1e-9)
    assert found.loss.interval is not None and found.loss.interval > 0.2


def test_what_cannot_be_compared_is_refused(reference):
    other = build(ModelConfig(**{**SHAPE, "vocab_size": 300}), seed=0)
    with pytest.raises(ConfigError, match="300 scores cannot be compared with one of kind decoder with 257"):
        compare_texts(reference, other, Bytes(), ["a"], Windows(CONTEXT, 8))
    with pytest.raises(DataError, match="no target to compare two models on; give a split with some text"):
        compare_rows(reference, reference, []).agreement()
