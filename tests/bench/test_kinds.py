"""What the bench of kinds counts, against the configuration's own count and against loops."""

import kinds
import pytest
import torch

from hasten.model.config import ModelConfig

ROWS = 2


def config(kind: str) -> ModelConfig:
    small = {"dim": 64, "num_heads": 2, "vocab_size": 256, "max_positions": 128, "num_layers": 2}
    return ModelConfig.model_validate({**kinds.MODELS[kind], **small})


def test_a_decoder_takes_what_its_configuration_says():
    """Which counts half of the square of attention, where the bench counts the diagonal too."""
    shape = config("decoder")
    work = kinds.work(shape, ROWS, 0)
    assert work.flops / work.tokens == pytest.approx(shape.flops_per_token(128), rel=2e-2)


@pytest.mark.parametrize("kind", ["encoder", "bert"])
def test_an_encoder_of_whole_rows_takes_what_its_configuration_says(kind, monkeypatch):
    monkeypatch.setattr(kinds, "TEXTS", (128, 128))
    shape = config(kind)
    work = kinds.work(shape, ROWS, 0)
    share = len(work.batch.extra["scored"]) / work.tokens
    assert work.flops / work.tokens == pytest.approx(shape.flops_per_token(128, head_share=share), rel=1e-6)


def test_pairs_of_whole_rows_take_what_their_configuration_says(monkeypatch):
    monkeypatch.setattr(kinds, "SENTENCES", (128, 128))
    shape = config("seq2seq")
    work = kinds.work(shape, ROWS, 0)
    assert work.flops / (ROWS * 128) == pytest.approx(shape.flops_per_token(128), rel=2e-2)


@pytest.mark.parametrize("causal", [True, False])
def test_pairs_that_see_each_other_are_counted_one_by_one(causal):
    segments, keys = torch.tensor([[1, 1, 2, 2, 2, 0]]), torch.tensor([[1, 2, 2, 1, 0, 0]])
    count = 0
    for t, mine in enumerate(segments[0].tolist()):
        for s, theirs in enumerate(keys[0].tolist()):
            count += mine == theirs and mine > 0 and (s <= t or not causal)
    assert kinds.seen(segments, keys, causal) == count


def test_documents_lie_side_by_side_and_padding_ends_the_row():
    torch.manual_seed(0)
    segments, positions = kinds.packed(3, 100, (20, 40))
    for row, at in zip(segments.tolist(), positions.tolist(), strict=True):
        assert row == sorted(row, key=lambda number: number or 99)
        for number in set(row) - {0}:
            places = [at[i] for i, other in enumerate(row) if other == number]
            assert places == list(range(len(places))) and 20 <= len(places) <= 40
