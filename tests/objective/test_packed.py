"""Packing is invisible: rows of several texts or pairs give the losses and gradients of each by itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.data.examples import Places, pairs
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.cross_entropy import CrossEntropy

VOCAB, START, PAD, MASK = 40, 0, 0, 1
OBJECTIVE = CrossEntropy(label_smoothing=0.1)
SHAPE = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2, "max_positions": 32}
BERT = {
    "position": "learned",
    "norm": "layer",
    "norm_place": "after",
    "embedding_norm": "learned",
    "attention_bias": True,
    "out_bias": True,
    "ffn_bias": True,
    "num_token_types": 2,
    "head_transform": True,
    "head_bias": True,
    "tied": True,
}
MODERN = {"position": "rotary", "activation": "geglu", "norm_place": "both", "qk_norm": True}
PAPER = {
    "position": "sinusoidal",
    "norm": "layer",
    "norm_place": "after",
    "tied": True,
    "embedding_scale": 4.0,
}
T5 = {"position": "relative", "activation": "relu", "attention_scale": 1.0, "logit_scale": 0.25, "tied": True}
UNTIED = {
    "position": "learned",
    "shared_embeddings": False,
    "source_vocab_size": VOCAB,
    "num_encoder_layers": 3,
}
ENCODERS = {"bert": BERT, "modern": MODERN, "relative": {"position": "relative"}}
SEQ2SEQS = {
    "paper": PAPER,
    "t5": T5,
    "rotary": {"position": "rotary", "norm_place": "both"},
    "untied": UNTIED,
}


def double(kind: str, **fields: Any) -> Transformer:
    """A model in float64 whose every parameter is off its first value."""
    model = build(ModelConfig.model_validate({**SHAPE, "kind": kind, **fields}), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).double())
    return model.train()


def loss_of(model: Transformer, batch: Batch) -> Tensor:
    return OBJECTIVE.loss(model, model(**OBJECTIVE.inputs(batch)), batch)


def gradients(model: Transformer, batches: list[Batch]) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of each batch, and the gradient of their sum."""
    model.zero_grad()
    losses = [loss_of(model, batch) for batch in batches]
    torch.stack(losses).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return [loss.item() for loss in losses], found


def texts(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masked texts: tokens [n] and targets [n]."""
    draw = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        n = int(draw.integers(3, 12))
        tokens, targets = draw.integers(2, VOCAB, n), np.full(n, IGNORE)
        places = draw.permutation(n)[: max(n // 3, 1)]
        targets[places], tokens[places] = tokens[places], MASK
        result.append((tokens, targets))
    return result


def masked(rows: list[list[tuple[np.ndarray, np.ndarray]]], row_tokens: int, spare: int) -> Batch:
    """Rows of masked texts, with `spare` places too many that are scored."""
    places = Places(len(rows), row_tokens, PAD)
    targets = np.full((len(rows), row_tokens), IGNORE, np.int64)
    for b, row in enumerate(rows):
        for segment, (tokens, wanted) in enumerate(row, 1):
            targets[b, places.put(b, segment, tokens)] = wanted
    scored = np.flatnonzero(targets.reshape(-1) != IGNORE)
    unasked = np.flatnonzero(targets.reshape(-1) == IGNORE)[:1].repeat(spare)
    tensors = map(torch.from_numpy, (places.tokens, targets, places.segments, places.positions))
    return Batch(*tensors, extra={"scored": torch.from_numpy(np.concatenate([scored, unasked]))})


def alone(tokens: np.ndarray, targets: np.ndarray) -> Batch:
    """One text without padding, segments or chosen places."""
    return Batch(torch.from_numpy(tokens)[None], torch.from_numpy(targets)[None])


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_masked_texts_give_the_losses_and_gradients_of_each_alone(name):
    model, examples = double("encoder", **ENCODERS[name]), texts(7)
    losses, expected = gradients(model, [alone(*text) for text in examples])
    rows = [examples[:3], examples[3:4], examples[4:]]
    packed, found = gradients(model, [masked(rows, 36, spare=5)])
    assert sum(losses) == pytest.approx(packed[0], rel=1e-6)  # the loss itself is summed in float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for text, loss in zip(examples, losses, strict=True):
        assert gradients(model, [masked([[text]], 20, spare=2)])[0][0] == pytest.approx(loss, rel=1e-5)


def dialogue(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a source and a target, each with its end."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, 12, (count, 2)).tolist()
    return [(draw.integers(2, VOCAB, s), draw.integers(2, VOCAB, t)) for s, t in lengths]


def pair_alone(source: np.ndarray, target: np.ndarray) -> Batch:
    """One pair without padding, segments or positions."""
    tokens = torch.from_numpy(np.concatenate([[START], target[:-1]]))[None]
    return Batch(tokens, torch.from_numpy(target)[None], extra={"source": torch.from_numpy(source)[None]})


@pytest.mark.parametrize("name", SEQ2SEQS)
def test_packed_pairs_give_the_losses_and_gradients_of_each_alone(name):
    model, examples = double("seq2seq", **SEQ2SEQS[name]), dialogue(7)
    losses, expected = gradients(model, [pair_alone(*pair) for pair in examples])
    rows = [examples[:3], examples[3:4], examples[4:], []]
    packed, found = gradients(model, [pairs(rows, (40, 38), START, PAD)])
    assert sum(losses) == pytest.approx(packed[0], rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for pair, loss in zip(examples, losses, strict=True):
        assert gradients(model, [pairs([[pair]], (30, 30), START, PAD)])[0][0] == pytest.approx(
            loss, rel=1e-5
        )


@pytest.mark.parametrize("kind", ["encoder", "seq2seq"])
def test_micro_batches_and_rows_cut_differently_give_the_same_gradient(kind):
    model = double(kind)
    if kind == "encoder":
        examples = texts(6, seed=2)
        whole, cut = masked([examples], 72, 0), [masked([[e]], 12, 1) for e in examples]
    else:
        talk = dialogue(6, seed=2)
        whole = pairs([talk], (72, 72), START, PAD)
        cut = [pairs([talk[:2], talk[2:3]], (40, 36), START, PAD), pairs([talk[3:]], (40, 36), START, PAD)]
    expected, found = gradients(model, [whole])[1], gradients(model, cut)[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_only_the_places_that_are_asked_go_through_the_head_and_spare_ones_add_nothing():
    model = double("encoder", **BERT)
    batch = masked([texts(3)], 40, spare=0)
    spare = masked([texts(3)], 40, spare=9)
    everywhere = replace(batch, extra={})
    for other in (spare, everywhere):
        (one,), first = gradients(model, [batch])
        (two,), second = gradients(model, [other])
        assert one == pytest.approx(two, rel=1e-6)
        torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-9)
    seen = []
    model.transform.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[0]))
    loss_of(model, batch)
    assert seen == [len(batch.extra["scored"])]


def test_correct_guesses_are_counted_among_the_targets():
    model, batch = double("encoder", **BERT), masked([texts(4), texts(2, seed=3)], 40, spare=3)
    hidden = model(**OBJECTIVE.inputs(batch))
    asked = batch.targets != IGNORE
    expected = (model.logits(hidden).argmax(dim=-1) == batch.targets)[asked].sum()
    assert OBJECTIVE.correct(model, hidden, batch) == expected
    assert OBJECTIVE.correct(model, hidden, replace(batch, extra={})) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("kind", "fields"), [("encoder", BERT), ("encoder", MODERN), ("seq2seq", PAPER), ("seq2seq", {})]
)
def test_a_first_loss_is_that_of_guessing(kind, fields, smoothing):
    shape = {**SHAPE, "dim": 64, "vocab_size": 500, "kind": kind, **fields}
    shape |= {"embedding_scale": 8.0} if "embedding_scale" in fields else {}
    model = build(ModelConfig.model_validate(shape), seed=0)
    batch = masked([texts(6)], 80, 2) if kind == "encoder" else pairs([dialogue(6)], (80, 80), START, PAD)
    objective = CrossEntropy(label_smoothing=smoothing)
    loss = objective.loss(model, model(**objective.inputs(batch)), batch) / objective.count(batch)
    assert loss.item() == pytest.approx(np.log(500), rel=0.03)
