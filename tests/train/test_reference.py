"""What the first model gives answers is computed once, found again, and goes on where it was interrupted."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import DataError
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.preference import Preference
from hasten.parallel.arrangement import Arrangement
from hasten.train import reference as module
from hasten.train.reference import Numbered, reference, weights_name

VOCAB, TOKENS = 30, 14
RUNTIME = Runtime(torch.device("cpu"))
PREFERENCE = Preference()


def make(seed: int = 0) -> Transformer:
    shape = {"vocab_size": VOCAB, "dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.5, "init_std": 0.3}
    return build(ModelConfig.model_validate({**shape, "max_positions": 32}), seed=seed)


def texts(count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers; of two neighbours the prompt is the same."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, VOCAB, 2).tolist() for _ in range(count // 2)]
    answers = [draw.integers(0, VOCAB, int(draw.integers(1, 4))).tolist() for _ in range(count)]
    return [(prompts[n // 2], answer) for n, answer in enumerate(answers)]


def numbered(count: int) -> list[Numbered]:
    """Batches of two rows of one pair or two, in an order that is not that of the numbers."""
    all_texts, rows = texts(count), []
    order = np.random.default_rng(1).permutation(count // 2).tolist()
    while order:
        rows.append([order.pop() for _ in range(min(len(order), 1 + len(rows) % 2))])
    rows += [[]] * (len(rows) % 2)
    return [batch_of(rows[at : at + 2], all_texts) for at in range(0, len(rows), 2)]


def batch_of(rows: list[list[int]], all_texts: list[tuple[list[int], list[int]]]) -> Numbered:
    shape = (len(rows), 2 * TOKENS)
    tokens, segments, positions = (np.zeros(shape, np.int64) for _ in range(3))
    targets, numbers = np.full(shape, IGNORE), np.full((len(rows), 4), -1)
    for b, pairs in enumerate(rows):
        at = 0
        for m, number in enumerate(text for pair in pairs for text in (2 * pair, 2 * pair + 1)):
            prompt, answer = all_texts[number]
            ids = [*prompt, *answer]
            span = slice(at, at + len(ids) - 1)
            tokens[b, span], segments[b, span], positions[b, span] = ids[:-1], m + 1, np.arange(len(ids) - 1)
            targets[b, at + len(prompt) - 1 : at + len(ids) - 1] = answer
            numbers[b, m] = number
            at += len(ids) - 1
    places = np.append(np.flatnonzero(targets != IGNORE), np.flatnonzero(targets == IGNORE)[:1])
    tensors = map(torch.from_numpy, (tokens, targets, segments, positions))
    return numbers, Batch(*tensors, extra={"scored": torch.from_numpy(places)})


def ask(
    model: Transformer, batches: Iterable[Numbered], count: int, folder: Path, data: str = "data"
) -> np.ndarray:
    arrangement = Arrangement.of(model, RUNTIME)
    return reference(
        model, PREFERENCE, batches, count, runtime=RUNTIME, arrangement=arrangement, folder=folder, data=data
    )


def expected(model: Transformer, count: int) -> np.ndarray:
    """Each answer by itself, in float64."""
    double, sums = make().double().eval(), []
    double.load_state_dict(model.state_dict())
    for prompt, answer in texts(count):
        with torch.no_grad():
            scores = double.logits(double(torch.tensor([[*prompt, *answer][:-1]])))[0].log_softmax(-1)
        places = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
        sums.append(scores[places, torch.tensor(answer)].sum().item())
    return np.array(sums)


def test_every_text_has_its_log_probability_without_dropout(tmp_path):
    model = make().train()
    found = ask(model, numbered(20), 20, tmp_path)
    np.testing.assert_allclose(found, expected(model, 20), rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32 and model.training
    assert len(list(tmp_path.iterdir())) == 1


def test_a_batch_filled_from_it_has_no_margin_yet(tmp_path):
    model, batches = make().eval(), numbered(12)
    found = ask(model, batches, 12, tmp_path)
    for numbers, batch in batches:
        values = torch.from_numpy(np.where(numbers >= 0, found[numbers], 0).astype(np.float32))
        filled = replace(batch, extra={**batch.extra, "reference": values})
        loss = PREFERENCE.loss(model, model(**PREFERENCE.inputs(filled)), filled)
        assert loss.item() == pytest.approx(np.log(2) * PREFERENCE.count(filled).item(), rel=1e-5)


def test_it_is_found_again_and_no_model_is_asked(tmp_path, monkeypatch):
    first = ask(make(), numbered(8), 8, tmp_path)
    monkeypatch.setattr(module, "make_engine", lambda *_, **__: pytest.fail("the model was asked"))
    np.testing.assert_array_equal(ask(make(), [], 8, tmp_path), first)


@pytest.mark.parametrize("other", ["weights", "data"])
def test_other_weights_or_data_have_a_file_of_their_own(tmp_path, other):
    first = ask(make(), numbered(8), 8, tmp_path)
    second = ask(make(seed=1), numbered(8), 8, tmp_path) if other == "weights" else None
    if second is None:
        second = ask(make(), numbered(8), 8, tmp_path, data="other")
        np.testing.assert_array_equal(first, second)
    else:
        assert not np.array_equal(first, second)
    assert len(list(tmp_path.glob("reference-*.safetensors"))) == 2


def test_it_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    batches, model = numbered(24), make()
    whole = ask(model, batches, 24, tmp_path / "whole")

    def interrupted():
        yield from batches[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(model, interrupted(), 24, tmp_path)
    asked, fill = [], module.Pass.fill

    def counted(self: module.Pass, known: np.ndarray, block: list[Numbered]) -> None:
        asked.append(block)
        fill(self, known, block)

    monkeypatch.setattr(module.Pass, "fill", counted)
    np.testing.assert_array_equal(ask(model, batches, 24, tmp_path), whole)
    assert len(asked) == len(batches) - 2


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "nonsense", "another-count"])
def test_a_file_that_is_not_whole_is_made_again(tmp_path, damage):
    first = ask(make(), numbered(8), 8, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(module.save({module.TENSOR: first[:3]}) if damage is None else damage)
    np.testing.assert_array_equal(ask(make(), numbered(8), 8, tmp_path), first)


def test_figures_that_no_training_can_use_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"answer 8 \(of pair 4, counted from 0\) is in no batch"):
        ask(make(), numbered(8), 10, tmp_path)
    model = make()
    with torch.no_grad():
        model.embedding.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"answer 0 .* has no finite log-probability"):
        ask(model, numbered(8), 8, tmp_path)


def test_weights_have_one_name(tmp_path):
    model = make()
    name = weights_name(model, RUNTIME)
    assert name == weights_name(make(), RUNTIME) != weights_name(make(seed=1), RUNTIME)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert weights_name(model, RUNTIME) != name
