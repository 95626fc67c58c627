"""A student's loss is the written-out one on every kind of model, however batches are cut and packed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError, DataError
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.distillation import Distillation
from hasten.objective.distilled import Distilled
from hasten.objective.inner import Inner

V, KNOWN = 30, 28
KINDS: dict[str, dict[str, Any]] = {
    "decoder": {"logit_soft_cap": 5.0},
    "encoder": {"kind": "encoder", "head_bias": True, "head_transform": True, "tied": True, "norm": "layer"},
    "seq2seq": {"kind": "seq2seq", "start_id": 1},
    "classes": {
        "kind": "encoder",
        "head": "pooled_classes",
        "num_classes": 5,
        "pooler": "tanh",
        "head_bias": True,
    },
}


def model(kind: str, seed: int, **fields: Any) -> Transformer:
    shape = {
        "vocab_size": V,
        "dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "max_positions": 32,
        "init_std": 0.4,
    }
    made = build(ModelConfig.model_validate({**shape, **KINDS[kind], **fields}), seed=seed)
    with torch.no_grad():
        for n, parameter in enumerate(made.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
    return made.train()


def objective(kind: str, student: Transformer, teacher: Transformer, **fields: Any) -> Distilled:
    config = Distillation.model_validate({"teacher": "t", **fields})
    known = 5 if kind == "classes" else KNOWN
    inner = Inner(config, student.config, teacher.config)
    return Distilled(config, student, teacher, inner=inner, known=known)


def batch_of(kind: str, seed: int = 0) -> Batch:
    """Two rows of texts of 5 and 4 places and one of padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets, source = torch.randint(0, KNOWN, (3, 2, 10), generator=generator)
    segments = torch.tensor([1] * 5 + [2] * 4 + [0]).repeat(2, 1)
    positions = torch.tensor([*range(5), *range(4), 0]).repeat(2, 1)
    asked = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0, 0]).bool()
    if kind == "classes":
        asked, targets = (positions[0] == 0) & (segments[0] > 0), targets % 5
    targets = targets.masked_fill(~asked, IGNORE)
    extra = {}
    if kind in ("encoder", "classes"):
        extra["scored"] = torch.cat(
            [(targets.flatten() != IGNORE).nonzero().flatten(), torch.tensor([9, 19])]
        )
    if kind == "seq2seq":
        extra |= {"source": source, "source_segments": segments, "source_positions": positions}
    return Batch(tokens, targets, segments, positions, extra=extra)


def loss_of(made: Distilled, batch: Batch) -> Tensor:
    batch = made.enrich(batch)
    return made.loss(made.student, made.student(**made.inputs(batch)), batch)


def written_out(made: Distilled, teacher: Transformer, batch: Batch) -> Tensor:
    """Text by text, place by place."""
    config, total = made.config, torch.zeros(())
    for row in range(len(batch.tokens)):
        for text in range(1, int(batch.segments[row].max()) + 1):
            span = batch.segments[row] == text
            given = {"tokens": batch.tokens[row, span][None]}
            if "source" in batch.extra:
                given["source"] = batch.extra["source"][row, batch.extra["source_segments"][row] == text][
                    None
                ]
            own = made.student.logits(made.student(**given))[0]
            with torch.no_grad():
                theirs = teacher.logits(teacher(**given))[0]
            for t, target in enumerate(batch.targets[row, span].tolist()):
                if target == IGNORE:
                    continue
                p, q = (x[t, : made.mix.known].div(config.temperature).log_softmax(-1) for x in (theirs, own))
                apart = F.kl_div(q, p, reduction="sum", log_target=True)
                if config.divergence == "reverse_kl":
                    apart = F.kl_div(p, q, reduction="sum", log_target=True)
                label = F.cross_entropy(own[t][None], torch.tensor([target]))
                total = total + (1 - config.labels) * config.temperature**2 * apart + config.labels * label
    return total


@pytest.mark.parametrize(
    "fields", [{"temperature": 2.0}, {"divergence": "reverse_kl", "labels": 0.4}], ids=["forward", "reverse"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradients_are_those_written_out(kind, fields):
    student, teacher = model(kind, 0), model(kind, 1, dim=24, num_layers=2, dropout=0.5)
    made, batch = objective(kind, student, teacher, **fields), batch_of(kind)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    found, expected = loss_of(made, batch), written_out(made, teacher, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert made.count(batch).item() == CrossEntropy().count(batch).item() == (batch.targets != IGNORE).sum()
    slopes = [
        torch.autograd.grad(x, list(student.parameters()), allow_unused=True) for x in (found, expected)
    ]
    for slope, wanted in zip(*slopes, strict=True):
        if wanted is not None:
            torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_chunks_and_rows_by_themselves_change_nothing(chunk):
    student, teacher, batch = model("decoder", 0), model("decoder", 1), batch_of("decoder")
    whole = loss_of(objective("decoder", student, teacher, labels=0.2), batch).item()
    made = objective("decoder", student, teacher, labels=0.2, chunk_tokens=chunk)
    assert loss_of(made, batch).item() == pytest.approx(whole, rel=1e-6)
    rows = [
        replace(
            batch, **{n: getattr(batch, n)[r : r + 1] for n in ("tokens", "targets", "segments", "positions")}
        )
        for r in (0, 1)
    ]
    assert sum(loss_of(made, row).item() for row in rows) == pytest.approx(whole, rel=1e-6)


def test_a_measured_loss_is_that_of_the_labels_and_asks_no_teacher():
    student, teacher, batch = model("decoder", 0).eval(), model("decoder", 1), batch_of("decoder")
    made = objective("decoder", student, teacher, temperature=3.0, hidden={})
    assert made.enrich(batch) is batch
    hidden = student(**made.inputs(batch))
    assert made.loss(student, hidden, batch).item() == CrossEntropy().loss(student, hidden, batch).item()


def test_a_student_that_is_its_teacher_loses_nothing():
    student, teacher = model("decoder", 0), model("decoder", 0)
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        made = objective("decoder", student, teacher, divergence=divergence)
        assert loss_of(made, batch_of("decoder")).item() == pytest.approx(0, abs=1e-4)


def test_labels_and_layers_alone_need_no_head_of_the_teacher():
    student = model("encoder", 0)
    teacher = model("encoder", 1, head="none", tied=False, head_transform=False, head_bias=False)
    made, batch = objective("encoder", student, teacher, labels=1.0, relations={}), batch_of("encoder")
    labels = CrossEntropy().loss(student, student(**made.inputs(batch)), batch).item()
    assert loss_of(made, batch).item() > labels


def test_a_batch_without_what_the_teacher_said_is_an_error():
    student = model("decoder", 0)
    config = Distillation(teacher="t")
    made = Distilled(config, student, None, inner=Inner(config, student.config, student.config), known=V)
    with pytest.raises(DataError, match=r"write objective\.cache=null"):
        loss_of(made, batch_of("decoder"))


@pytest.mark.parametrize("axis", ["tensor", "pipeline", "context"])
def test_meshes_that_divide_what_is_compared_are_refused(axis):
    inner = Distillation.model_validate({"teacher": "t", "hidden": {}})
    with pytest.raises(
        ConfigError, match=rf"parallel: {axis} 2 divides the student.* write parallel\.{axis}=1"
    ):
        inner.check_degrees({axis: 2})
    if axis == "context":
        Distillation(teacher="t").check_degrees({axis: 2, "data": 2, "shard": 2})
