"""Preferences equal their closed forms, finite differences and the analytic optimum, packed or alone."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError, DataError
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.preference import Preference, Texts

VOCAB, METHODS = 30, ("dpo", "ipo", "simpo", "orpo")
SHAPE = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2, "max_positions": 64}
Answer = tuple[list[int], list[int]]
"""A prompt and what follows it."""


def double(**fields: Any) -> Transformer:
    model = build(ModelConfig.model_validate({**SHAPE, **fields}), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).double())
    return model.train()


def talk(count: int, seed: int = 0) -> list[tuple[Answer, Answer]]:
    """Pairs (chosen, rejected) with one prompt."""
    draw = np.random.default_rng(seed)

    def ids(most: int) -> list[int]:
        return draw.integers(0, VOCAB, int(draw.integers(1, most))).tolist()

    made = []
    for _ in range(count):
        prompt = ids(5)
        made.append(((prompt, ids(7)), (prompt, ids(7))))
    return made


def packed(rows: list[list[tuple[Answer, Answer]]], length: int, *, spare: int = 3) -> Batch:
    """Rows of pairs as a batch, with `spare` places too many that are scored."""
    tokens = np.zeros((len(rows), length), np.int64)
    targets = np.full((len(rows), length), IGNORE)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for b, row in enumerate(rows):
        at = 0
        for segment, (prompt, answer) in enumerate((text for pair in row for text in pair), 1):
            ids = [*prompt, *answer]
            span = slice(at, at + len(ids) - 1)
            tokens[b, span], segments[b, span] = ids[:-1], segment
            positions[b, span] = np.arange(len(ids) - 1)
            targets[b, at + len(prompt) - 1 : at + len(ids) - 1] = answer
            at += len(ids) - 1
    places = np.flatnonzero(targets != IGNORE)
    unasked = np.flatnonzero(targets == IGNORE)[:1].repeat(spare)
    tensors = map(torch.from_numpy, (tokens, targets, segments, positions))
    return Batch(*tensors, extra={"scored": torch.from_numpy(np.concatenate([places, unasked]))})


def with_reference(batch: Batch, values: Tensor) -> Batch:
    return replace(batch, extra={**batch.extra, "reference": values})


def draw_reference(batch: Batch, seed: int = 0) -> Batch:
    """What some other model would give the texts of a batch: from -9 to -1, 0 where there is none."""
    texts = int(batch.segments.max())
    values = -1 - 8 * torch.rand(len(batch.tokens), texts, generator=torch.Generator().manual_seed(seed))
    there = torch.arange(texts) < batch.segments.amax(1)[:, None]
    return with_reference(batch, values.masked_fill(~there, 0))


def loss_of(objective: Preference, model: Transformer, batch: Batch) -> Tensor:
    return objective.loss(model, model(**objective.inputs(batch)), batch)


def log_prob(model: Transformer, text: Answer) -> tuple[float, int]:
    """The sum of an answer's log-probabilities, token by token, and their number."""
    prompt, answer = text
    logits = model.logits(model(torch.tensor([[*prompt, *answer][:-1]])))[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return sum(logits[at, token].item() for at, token in zip(places, answer, strict=True)), len(answer)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def written_out(
    objective: Preference, model: Transformer, pair: tuple[Answer, Answer], reference: list[float]
) -> float:
    """The loss of one pair by the formulas of the papers."""
    (a, n), (b, m) = (log_prob(model, text) for text in pair)
    beta = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "orpo": 0.1}[objective.method]
    beta, eps = objective.beta or beta, objective.label_smoothing
    sft = objective.sft * -a / n
    match objective.method:
        case "dpo":
            delta = (a - reference[0]) - (b - reference[1])
            right, wrong = math.log(sigmoid(beta * delta)), math.log(sigmoid(-beta * delta))
            return -(1 - eps) * right - eps * wrong + sft
        case "ipo":
            return ((a - reference[0]) / n - (b - reference[1]) / m - 1 / (2 * beta)) ** 2 + sft
        case "simpo":
            return -math.log(sigmoid(beta * a / n - beta * b / m - objective.gamma)) + sft
    odds = [math.exp(x / k) / (1 - math.exp(x / k)) for x, k in ((a, n), (b, m))]
    return -a / n - beta * math.log(sigmoid(math.log(odds[0] / odds[1]))) + sft


OBJECTIVES = [
    Preference(),
    Preference(beta=0.5, label_smoothing=0.2, sft=0.3),
    Preference(method="ipo"),
    Preference(method="simpo", gamma=0.7),
    Preference(method="orpo", sft=0.1),
]
NAMES = ["dpo", "cdpo-sft", "ipo", "simpo", "orpo-sft"]


@pytest.mark.parametrize("chunk", [None, 4], ids=["whole", "chunks"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_the_loss_of_pairs_is_the_sum_of_the_formula_written_out(objective, chunk):
    model, examples = double(), talk(5)
    batch = draw_reference(packed([examples[:2], examples[2:]], 80))
    objective = objective.model_copy(update={"chunk_tokens": chunk})
    flat = [*batch.extra["reference"][0, :4].tolist(), *batch.extra["reference"][1].tolist()]
    references = [flat[2 * pair : 2 * pair + 2] for pair in range(5)]
    expected = sum(written_out(objective, model, *both) for both in zip(examples, references, strict=True))
    assert loss_of(objective, model, batch).item() == pytest.approx(expected, rel=1e-6)
    assert objective.count(batch) == 5


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_gradients_are_those_of_finite_differences(objective):
    model = double()
    batch = draw_reference(packed([talk(2), talk(1, seed=3)], 48))
    loss = loss_of(objective.model_copy(update={"chunk_tokens": 5}), model, batch)
    loss.backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator).double()
        step = 1e-5 * direction
        with torch.no_grad():
            parameter.add_(step)
            above = loss_of(objective, model, batch)
            parameter.sub_(2 * step)
            below = loss_of(objective, model, batch)
            parameter.add_(step)
        slope = ((above - below) / 2e-5).item()
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_packed_pairs_give_the_losses_and_gradients_of_each_alone(objective):
    model, examples = double(qk_norm=True), talk(6)
    rows = [examples[:3], [], examples[3:]]
    batch = draw_reference(packed(rows, 90))
    whole = loss_of(objective, model, batch)
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    losses = []
    for number, pair in enumerate(examples):
        row, at = (0, 2 * number) if number < 3 else (2, 2 * number - 6)
        alone = with_reference(packed([[pair]], 30), batch.extra["reference"][row : row + 1, at : at + 2])
        losses.append(loss_of(objective, model, alone))
        losses[-1].backward()
    assert whole.item() == pytest.approx(sum(x.item() for x in losses), rel=1e-8)
    found = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def own_reference(objective: Preference, model: Transformer, batch: Batch) -> Batch:
    """The batch with what the model itself gives the answers."""
    with torch.no_grad():
        texts = objective.texts(model, model(**objective.inputs(batch)), batch)
    return with_reference(batch, texts.log_probs)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_at_the_reference_dpo_is_ln_2_and_ipo_a_quarter_of_the_inverse_square(beta):
    model, batch = double(), packed([talk(3)], 60)
    for method, value in (("dpo", math.log(2)), ("ipo", 1 / (4 * beta**2))):
        objective = Preference(method=method, beta=beta)
        loss = loss_of(objective, model, own_reference(objective, model, batch))
        assert loss.item() == pytest.approx(3 * value, rel=1e-9)


def two_arms(objective: Preference, share: float) -> float:
    """The log-ratio at which a policy over two answers ends, the first one chosen in so many pairs."""
    margin = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [margin], max_iter=400, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    batch = Batch(*torch.zeros(2, 2, 2, dtype=torch.long), torch.tensor([[1, 2], [1, 2]]))
    batch = with_reference(batch, torch.zeros(2, 2, dtype=torch.float64))
    weights = torch.tensor([share, 1 - share], dtype=torch.float64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        texts = torch.stack([torch.stack([margin, -margin]), torch.stack([-margin, margin])]) / 2
        losses = objective.pair_losses(Texts(texts, torch.ones_like(texts)), batch)[:, 0]
        loss = (weights * losses).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return margin.item()


def test_the_optimum_of_two_arms_is_the_analytic_one():
    """DPO's: the log-ratio is the log-odds of being chosen over β.  IPO's: (2 share - 1) / (2 β)."""
    for share in (0.6, 0.9):
        odds = math.log(share / (1 - share))
        assert two_arms(Preference(beta=0.3), share) == pytest.approx(odds / 0.3, rel=1e-6)
        ipo = two_arms(Preference(method="ipo", beta=0.3), share)
        assert ipo == pytest.approx((2 * share - 1) / 0.6, rel=1e-6)
    smoothed = two_arms(Preference(beta=0.3, label_smoothing=0.1), 1.0)
    assert smoothed == pytest.approx(math.log(0.9 / 0.1) / 0.3, rel=1e-6)  # and not without bound


@pytest.mark.parametrize("method", ["simpo", "orpo"])
def test_losses_without_a_reference_never_look_at_one(method):
    model, batch, objective = double(), packed([talk(2)], 40), Preference(method=method)
    poisoned = with_reference(batch, torch.full((1, 4), math.nan))
    assert torch.equal(loss_of(objective, model, batch), loss_of(objective, model, poisoned))
    assert not objective.needs_reference


@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_a_missing_reference_is_named(method):
    with pytest.raises(DataError, match=f"objective.method={method} compares with the model"):
        loss_of(Preference(method=method), double(), packed([talk(1)], 30))


def test_pairs_in_which_the_chosen_is_preferred_are_counted():
    model, examples = double(), talk(8)
    batch = packed([examples[:5], examples[5:]], 140)
    hidden = model(**Preference().inputs(batch))
    sums = [[log_prob(model, text)[0] for text in pair] for pair in examples]
    wins = sum(chosen > rejected for chosen, rejected in sums)
    zero = with_reference(batch, torch.zeros(2, 10, dtype=torch.float64))
    assert Preference().correct(model, hidden, zero) == wins
    means = [[x / n for x, n in (log_prob(model, text) for text in pair)] for pair in examples]
    wins = sum(chosen > rejected for chosen, rejected in means)
    for method in ("simpo", "orpo"):
        assert Preference(method=method, gamma=9.0).correct(model, hidden, batch) == wins
    same = own_reference(Preference(), model, batch)
    assert Preference().correct(model, hidden, same) == 0  # a tie is no preference


def test_without_chosen_places_all_targets_count():
    model, batch = double(), draw_reference(packed([talk(3)], 60))
    everywhere = replace(batch, extra={"reference": batch.extra["reference"]})
    first, second = (loss_of(Preference(), model, b) for b in (batch, everywhere))
    torch.testing.assert_close(first, second)


def test_a_prompt_carries_no_loss():
    model = double()
    batch = packed([[(([1, 2, 3], [4, 5]), ([1, 2, 3], [6]))]], 12)
    texts = Preference().texts(model, model(**Preference().inputs(batch)), batch)
    assert texts.lengths[0, :2].tolist() == [2, 1]
    assert texts.log_probs[0, 0].item() == pytest.approx(log_prob(model, ([1, 2, 3], [4, 5]))[0])


def test_only_a_chunk_of_logits_is_there_at_a_time():
    model, batch, rows = double(), packed([talk(6)], 120), []
    model.apply_head = lambda head, x: rows.append(len(x)) or head(x)
    objective = Preference(method="simpo", chunk_tokens=4)
    loss_of(objective, model, batch).backward()
    places = len(batch.extra["scored"])
    assert max(rows) == 4 and sum(rows) == 2 * places  # once for the loss, once for its gradient


def test_a_certain_answer_has_a_finite_loss():
    objective = Preference(method="orpo")
    means = torch.tensor([[0.0, -3.0], [-1e-12, -80.0]], requires_grad=True)
    batch = Batch(*torch.zeros(2, 2, 2, dtype=torch.long), torch.tensor([[1, 2], [1, 2]]))
    losses = objective.pair_losses(Texts(means, torch.ones(2, 2)), batch)
    losses.sum().backward()
    assert losses.isfinite().all() and means.grad.isfinite().all()


def test_what_cannot_work_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"context 2 would spread .* write parallel\.context=1"):
        Preference().check_degrees({"context": 2, "data": 1})
    Preference().check_degrees({"context": 1, "tensor": 4})
    with pytest.raises(ValidationError, match="label_smoothing belongs to dpo"):
        Preference(method="ipo", label_smoothing=0.1)
