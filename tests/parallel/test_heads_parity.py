"""Steps with a head of classes are those of one process on every mesh: of texts, and of an answer's ends."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from as_one import assert_as_one
from parity import mesh_of
from processes import together

from hasten.core.batch import IGNORE, TYPES, Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.heads import with_classes, with_spans
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.spans import Spans
from hasten.parallel.apply import parallelize
from hasten.parallel.grid import Grid
from hasten.train.engines import make_engine
from hasten.train.optim import AdamWConfig, Optimizer
from hasten.train.step import train_step

ROWS, TOKENS, VOCAB, MOST = 4, 18, 61, 4
TRUNKS: dict[str, dict[str, Any]] = {
    "encoder": {"kind": "encoder", "position": "learned", "num_token_types": 2, "norm": "layer"},
    "decoder": {"num_kv_heads": 2, "activation": "swiglu"},
}
MESHES = ("data=2", "shard=2", "tensor=2", "tensor=2 sequence_parallel=false", "pipeline=2")
KINDS = ("spans encoder", "classes encoder", "classes decoder")


def config(kind: str) -> ModelConfig:
    """A tiny trunk with the head of `kind`."""
    task, _, trunk = kind.partition(" ")
    sizes = {"vocab_size": VOCAB, "dim": 32, "num_heads": 4, "num_layers": 2, "ffn_dim": 64}
    shape = ModelConfig.model_validate({**sizes, **TRUNKS[trunk]})
    return with_spans(shape) if task == "spans" else with_classes(shape, ["a", "b", "c"])


def row(number: int, kind: str) -> Batch:
    """One row of four texts; the fourth row has two, so that processes have unequal counts."""
    random = torch.Generator().manual_seed(number)
    tokens = torch.randint(VOCAB, (1, TOKENS), generator=random)
    bounds = [0, 5, 9, 13, 17] if number < 3 else [0, 5, 9]
    segments, positions, types = torch.zeros(3, 1, TOKENS, dtype=torch.long)
    targets, ends = torch.full((1, TOKENS), IGNORE), torch.full((2, 1, MOST), -1)
    for text, (start, end) in enumerate(pairwise(bounds), 1):
        segments[0, start:end], positions[0, start:end] = text, torch.arange(end - start)
        types[0, start + 2 : end] = 1
        ends[:, 0, text - 1] = torch.randint(start, end, (2,), generator=random).sort().values
        place = start if kind.endswith("encoder") else end - 1
        targets[0, place] = torch.randint(3, (), generator=random)
    extra = {TYPES: types} if kind.endswith("encoder") else {}
    if kind.startswith("spans"):
        extra |= {"start": ends[0], "end": ends[1]}
        return Batch(tokens, torch.full_like(tokens, IGNORE), segments, positions, extra=extra)
    places = (targets != IGNORE).flatten().nonzero().flatten()
    spare = torch.full((MOST - len(places),), TOKENS - 1)
    return Batch(tokens, targets, segments, positions, extra={**extra, "scored": torch.cat([places, spare])})


def train(runtime: Runtime, mesh: str, kind: str) -> dict[str, Any]:
    grid = Grid.make(runtime, mesh_of(mesh))
    model, arrangement = parallelize(config(kind), 0, grid)
    objective = Spans() if kind.startswith("spans") else CrossEntropy()
    engine = make_engine(model, objective, runtime, arrangement, precision="fp32", compiled=False)
    updater = Optimizer(model, AdamWConfig(eps=1e-2, learning_rate=1e-2), arrangement=arrangement)
    share = ROWS // grid.replicas
    batches = [row(n, kind) for n in range(grid.replica * share, (grid.replica + 1) * share)]
    outcomes = [train_step(engine, updater, batches, max_norm=0.5, turn=step) for step in range(2)]
    measured = [figure.item() for figure in engine.measure(batches)]
    return {
        "loss": [outcome.loss.item() for outcome in outcomes],
        "norm": [outcome.norm.item() for outcome in outcomes],
        "measured": measured,
        "weights": arrangement.held(model),
    }


def train_all(runtime: Runtime, runs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [train(runtime, *run) for run in runs]


@pytest.mark.slow
def test_a_mesh_tells_classes_apart_as_one_process_does() -> None:
    runs = [(mesh, kind) for mesh in MESHES for kind in KINDS]
    alone = {kind: train(Runtime(torch.device("cpu")), "", kind) for kind in KINDS}
    found = together(2, train_all, runs)
    for number, (mesh, kind) in enumerate(runs):
        here = [process[number] for process in found]
        assert_as_one(here, alone[kind], f"{mesh} {kind}")
