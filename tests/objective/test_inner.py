"""Hidden states and attention relations against loops in float64, packed or alone, on every kind of model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.distillation import Distillation
from hasten.objective.inner import Inner, Seen, Side, hidden_loss, relation_loss, sees, shares, sides_of

DECODER, ENCODER_SIDE = Side("", 2, True), Side("encoder.", 2, False)
SHAPE = {"vocab_size": 30, "max_positions": 32, "init_std": 0.3}
STUDENT = {**SHAPE, "dim": 16, "num_layers": 2, "num_heads": 2}
TEACHER = {**SHAPE, "dim": 24, "num_layers": 4, "num_heads": 4}
KINDS = {"decoder": {}, "encoder": {"kind": "encoder"}, "seq2seq": {"kind": "seq2seq", "start_id": 1}}
ALL = {"hidden": {"weight": 0.7}, "relations": {"weight": 1.3, "heads": 2, "layers": "spread"}}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(kind: str, seed: int = 0) -> Batch:
    """Two rows of three texts of 4, 3 and 2 places, and two of padding; the last text has no target."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets, source = torch.randint(0, 30, (3, 2, 11), generator=generator)
    segments = torch.tensor([1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0]).repeat(2, 1)
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 0]).repeat(2, 1)
    asked = torch.tensor([1, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0]).bool()
    targets = targets.masked_fill(~asked, IGNORE)
    extra = {}
    if kind == "seq2seq":
        numbers = torch.tensor([1, 1, 2, 2, 2, 2, 3, 3, 3, 0, 0]).repeat(2, 1)
        places = torch.tensor([0, 1, 0, 1, 2, 3, 0, 1, 2, 0, 0]).repeat(2, 1)
        extra = {"source": source, "source_segments": numbers, "source_positions": places}
    return Batch(tokens, targets, segments, positions, extra=extra)


def alone(batch: Batch, row: int, text: int) -> Batch:
    """One text of a batch by itself."""
    span = batch.segments[row] == text
    extra = {}
    if batch.extra:
        read = batch.extra["source_segments"][row] == text
        extra = {"source": batch.extra["source"][row, read][None]}
    return Batch(batch.tokens[row, span][None], batch.targets[row, span][None], extra=extra)


def test_a_text_counts_as_often_as_it_has_targets_however_long_it_is():
    batch = batch_of("seq2seq")
    for side, sizes in ((DECODER, [4, 3, 2]), (ENCODER_SIDE, [2, 4, 3])):
        found, at = shares(batch, side)[0], 0
        for size, targets in zip(sizes, [3, 2, 0], strict=True):
            torch.testing.assert_close(found[at : at + size], torch.full((size,), targets / size))
            at += size
        assert (found[at:] == 0).all()


def test_places_see_their_own_text_and_a_decoders_nothing_that_follows():
    batch = batch_of("decoder")
    causal, both = sees(batch, DECODER)[0], sees(batch, DECODER._replace(causal=False))[0]
    for t in range(11):
        for s in range(11):
            same = batch.segments[0, t] == batch.segments[0, s] > 0
            assert both[t, s] == (same or t == s) and causal[t, s] == ((same and s <= t) or t == s)


def test_hidden_states_are_compared_by_relative_squared_distance():
    student, teacher, share = draw(2, 5, 6, seed=1), draw(2, 5, 6, seed=2), draw(2, 5, seed=3).abs()
    expected = sum(
        share[b, t] * ((student[b, t] - teacher[b, t]) ** 2).sum() / (teacher[b, t] ** 2).sum()
        for b in range(2)
        for t in range(5)
    )
    torch.testing.assert_close(hidden_loss(student, teacher, share), expected)


@pytest.mark.parametrize("heads", [1, 3])
def test_relations_and_their_gradient_are_those_of_the_formula(heads):
    student, teacher = draw(1, 5, 6, seed=1).requires_grad_(), draw(1, 5, 9, seed=2)
    share, sight = draw(1, 5, seed=3).abs(), torch.ones(5, 5, dtype=torch.bool).tril()[None]
    expected = torch.zeros((), dtype=torch.float64)
    for head in range(heads):
        own, theirs = (x[0].chunk(heads, -1)[head] for x in (student, teacher))
        for t in range(5):
            p, q = (((a[t] @ a[: t + 1].T) / a.shape[1] ** 0.5).softmax(-1) for a in (theirs, own))
            expected = expected + share[0, t] * (p * (p / q).log()).sum() / heads
    found = relation_loss(student, teacher, share, sight, heads)
    torch.testing.assert_close(found, expected)
    (slope,), (wanted,) = (torch.autograd.grad(x, student, retain_graph=True) for x in (found, expected))
    torch.testing.assert_close(slope, wanted)


def pair(kind: str) -> tuple[Transformer, Transformer, Inner]:
    student, teacher = (
        build(ModelConfig.model_validate({**shape, **KINDS[kind]}), seed=n)
        for n, shape in enumerate((STUDENT, TEACHER))
    )
    inner = Inner(Distillation.model_validate({"teacher": "t", **ALL}), student.config, teacher.config)
    inner.put_projections(student)
    return student, teacher.eval(), inner


def loss_of(student: Transformer, teacher: Transformer, inner: Inner, seen: Any, batch: Batch) -> Tensor:
    read = {name: x for name, x in batch.extra.items() if name.startswith("source")}
    given = {"tokens": batch.tokens, "positions": batch.positions, "segments": batch.segments, **read}
    with torch.no_grad():
        teacher(**given)
    student(**given)
    return inner.loss(student, batch, *(each.taken() for each in seen))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_texts_lose_what_each_loses_alone(kind):
    student, teacher, inner = pair(kind)
    seen = Seen(student, inner.names("student")), Seen(teacher, inner.names("teacher"))
    batch = batch_of(kind)
    together = loss_of(student, teacher, inner, seen, batch)
    parts = [
        loss_of(student, teacher, inner, seen, alone(batch, row, text))
        for row in (0, 1)
        for text in (1, 2, 3)
    ]
    assert together.item() == pytest.approx(sum(parts).item(), rel=1e-5) and together.item() > 0
    rows = [loss_of(student, teacher, inner, seen, only(batch, row)) for row in (0, 1)]
    assert together.item() == pytest.approx(sum(rows).item(), rel=1e-5)
    together.backward()
    matched = [
        p for n, p in student.named_parameters() if n.startswith("projections.") or n.endswith("value.weight")
    ]
    assert len(matched) >= 4 and all(
        p.grad.abs().sum() > 0 for p in matched if p.requires_grad and p.grad is not None
    )
    assert all(p.grad.abs().sum() > 0 for p in student.projections.parameters())


def only(batch: Batch, row: int) -> Batch:
    cut = {
        name: getattr(batch, name)[row : row + 1] for name in ("tokens", "targets", "segments", "positions")
    }
    return replace(batch, **cut, extra={name: x[row : row + 1] for name, x in batch.extra.items()})


def test_equal_models_have_nothing_to_learn_from_each_other():
    teacher = pair("decoder")[1]
    config = Distillation.model_validate({"teacher": "t", "hidden": {}, "relations": {}})
    inner = Inner(config, teacher.config, teacher.config)
    inner.put_projections(teacher)
    assert not hasattr(teacher, "projections")
    seen = Seen(teacher, inner.names("student")), Seen(teacher, inner.names("teacher"))
    assert loss_of(teacher, teacher, inner, seen, batch_of("decoder")).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden": {"layers": [[0, 4]]}}, r"hidden\.layers names layer 4 of the teacher, and there are 4"),
        ({"hidden": {"layers": [[2, 0]]}}, r"names layer 2 of the student, and there are 2"),
        ({"relations": {"heads": 5}}, r"5 heads do not divide the student's query of width 16"),
        ({"relations": {"heads": 16}}, r"16 heads do not divide the teacher's query of width 24"),
    ],
)
def test_layers_and_heads_that_do_not_fit_are_refused(fields, said):
    student, teacher = (ModelConfig.model_validate(shape) for shape in (STUDENT, TEACHER))
    with pytest.raises(ConfigError, match=said):
        Inner(Distillation.model_validate({"teacher": "t", **strict(fields)}), student, teacher)


def strict(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples, which strict models want from Python."""
    return {
        k: {n: tuple(map(tuple, v)) if isinstance(v, list) else v for n, v in f.items()}
        for k, f in fields.items()
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": 1.0}, "leaves nothing to learn from the teacher"),
        ({"cache": {}, "hidden": {}}, "cache keeps what a teacher says, not how"),
        ({"cache": {}, "divergence": "jsd"}, "from which jsd cannot be told"),
        ({"cache": {"samples": 256}}, "write a number from 1 to 255, or all"),
        ({"beta": 1.0}, "less than 1"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        Distillation.model_validate({"teacher": "t", **fields})


def test_the_sides_of_a_model():
    sides = sides_of(ModelConfig.model_validate({**STUDENT, **KINDS["seq2seq"], "num_encoder_layers": 3}))
    assert [(side.prefix, side.layers, side.causal) for side in sides] == [
        ("encoder.", 3, False),
        ("decoder.", 2, True),
    ]
