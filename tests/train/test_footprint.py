"""The bytes of a step as they are counted beforehand, against the tensors that are there."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.distillation import Distillation
from hasten.objective.distilled import Distilled
from hasten.objective.inner import Inner
from hasten.objective.protocol import Objective
from hasten.ops.kernels.library import library
from hasten.parallel.config import ParallelConfig
from hasten.parallel.recompute import recompute
from hasten.parallel.schedules import program, simulate
from hasten.train.engine import Whole
from hasten.train.footprint import Workload, footprint, in_flight
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer, Rates
from hasten.train.step import train_step

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel"))
from alive import Alive

ROWS, TOKENS = 8, 64
SMALL = {"vocab_size": 512, "dim": 64, "num_layers": 4, "num_heads": 4, "max_positions": 4 * TOKENS}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gelu, adamw": ({}, {}),
    "swiglu in bf16, adamw": ({"activation": "swiglu"}, {"precision": "bf16"}),
    "two micro-batches": ({"activation": "swiglu"}, {"precision": "bf16", "micro_batches": 2}),
    "fewer keys, muon": ({"activation": "relu_squared", "num_kv_heads": 1}, {"optimizer": "muon"}),
    "tied, qk norm": ({"tied": True, "qk_norm": True}, {"precision": "bf16"}),
    "encoder, norms after": ({"kind": "encoder", "norm_place": "after", "norm": "layer"}, {}),
    "selective": ({"activation": "swiglu"}, {"recompute": "selective"}),
    "full": ({"activation": "swiglu"}, {"recompute": "full", "precision": "bf16"}),
    "half of it full": ({"activation": "swiglu"}, {"recompute": "full", "recompute_layers": 2}),
    "seq2seq": ({"kind": "seq2seq", "num_layers": 2}, {"precision": "bf16"}),
    "seq2seq, long sources": ({"kind": "seq2seq", "num_layers": 2}, {"source_tokens": 4 * TOKENS}),
    "beside a teacher": ({"vocab_size": 8192}, {"teacher": {"vocab_size": 8192, "dim": 128}}),
    "a teacher in bf16, two micro-batches": (
        {"num_layers": 1},
        {"teacher": {"dim": 256, "activation": "swiglu"}, "precision": "bf16", "micro_batches": 2},
    ),
    "wide table": ({"vocab_size": 8192, "num_layers": 1}, {"precision": "bf16"}),
}


def measured(work: Workload) -> int:
    """The most bytes of tensors in the second of two steps, and weights and moments."""
    model = build(work.model, seed=0)
    recompute(model, work.recompute, work.recompute_layers)
    runtime = Runtime(torch.device("cpu"))
    objective, teacher = objective_of(work, model)
    engine = Whole(model, objective, runtime, precision=work.precision, compiled=False)
    config = MuonConfig() if work.optimizer == "muon" else AdamWConfig()
    optimizer = Optimizer(model, config, Rates(Rates.written(config).each, work.turns))
    batches = []
    for _ in range(work.micro_batches):
        ids = torch.randint(work.model.vocabulary, (work.micro_rows, work.row_tokens + 1))
        source = torch.randint(
            work.model.vocabulary, (work.micro_rows, work.source_tokens or work.row_tokens)
        )
        extra = {"source": source} if work.model.kind == "seq2seq" else {}
        batches.append(Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), extra=extra))
    train_step(engine, optimizer, batches, turn=0)
    with Alive() as alive:
        train_step(engine, optimizer, batches, turn=1)
    held = *optimizer.parameters.values(), *optimizer.state_dict().values(), *teacher
    return sum(t.nbytes for t in held) + alive.peak


def objective_of(work: Workload, model: Transformer) -> tuple[Objective, list[Tensor]]:
    """What is learnt, and the weights of a teacher."""
    if work.teacher is None:
        return CrossEntropy(), []
    config, teacher = Distillation(teacher="there"), build(work.teacher, seed=1)
    inner = Inner(config, work.model, work.teacher)
    given = {"known": work.model.vocabulary, "precision": work.precision}
    return Distilled(config, model, teacher, inner=inner, **given), list(teacher.parameters())


@pytest.mark.skipif(library() is None, reason="the formulas are those of our kernels, which are not here")
@pytest.mark.parametrize("case", CASES)
def test_a_step_holds_what_was_counted(case: str) -> None:
    shape, given = CASES[case]
    model = ModelConfig(**{**SMALL, **shape})
    teacher = ModelConfig(**{**SMALL, **given["teacher"]}) if "teacher" in given else None
    given = {"precision": "fp32", **given, "teacher": teacher}
    work = Workload(model, ROWS, TOKENS, kernels=True, **given)
    assert footprint(work).total == pytest.approx(measured(work), rel=0.1)


def test_states_are_those_of_the_model() -> None:
    model = ModelConfig(**SMALL)
    for optimizer in ("adamw", "muon"):
        counted = footprint(Workload(model, 1, TOKENS, optimizer=optimizer))
        assert counted.states + counted.gradients == pytest.approx(model.state_bytes(optimizer))


def test_what_is_divided_is_divided() -> None:
    model = ModelConfig(**SMALL, activation="swiglu")

    def of(**degrees: int) -> Any:
        parallel = ParallelConfig(**degrees)
        return footprint(Workload(model, ROWS, TOKENS, 8, degrees=degrees, parallel=parallel))

    one = of()
    assert of(shard=4).states == pytest.approx(one.states / 4)
    assert of(context=2).activations == pytest.approx(one.activations / 2)
    assert of(tensor=2).activations == pytest.approx(one.activations / 2, rel=0.05)
    assert of(tensor=4).states == pytest.approx(one.states / 4, rel=0.05)
    # Two of four layers on each stage, of two micro-batches at once on the first.
    assert of(pipeline=2).activations == pytest.approx(one.activations, rel=0.05)
    assert of(pipeline=2).weights < 0.75 * one.weights
    assert of(data=2).states == one.states


@pytest.mark.parametrize("interleave", [1, 2, 3])
def test_what_waits_is_what_the_schedule_holds(interleave: int) -> None:
    for stages in range(2, 6):
        line = simulate(program("1f1b", stages, 4 * stages, interleave), lambda op: 1)
        for stage in range(stages):
            waiting = in_flight("1f1b", stages, interleave, stage, 4 * stages)
            assert waiting * interleave == line.peak_in_flight(stage)
