"""Steps on pairs of answers are those of one process on every mesh that they can be on."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from as_one import assert_as_one
from parity import mesh_of
from processes import together

from hasten.core.batch import IGNORE, Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.objective.preference import Preference
from hasten.parallel.apply import parallelize
from hasten.parallel.grid import Grid
from hasten.train.engines import make_engine
from hasten.train.optim import AdamWConfig, Optimizer
from hasten.train.reference import reference
from hasten.train.step import train_step

ROWS, TOKENS, VOCAB = 4, 18, 61
CONFIG = {"vocab_size": VOCAB, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "num_layers": 2, "ffn_dim": 64}
MESHES = ("data=2", "shard=2", "tensor=2", "tensor=2 sequence_parallel=false", "pipeline=2")
METHODS = ("dpo", "orpo")


def row(number: int) -> Batch:
    """One row of two pairs; of the fourth row of one, so that processes have unequal counts."""
    random = torch.Generator().manual_seed(number)
    tokens, targets = torch.randint(VOCAB, (2, 1, TOKENS), generator=random)
    bounds = [0, 5, 9, 13, 17] if number < 3 else [0, 5, 9]
    segments, positions = torch.zeros(2, 1, TOKENS, dtype=torch.long)
    answers = torch.zeros(1, TOKENS, dtype=torch.bool)
    for text, (start, end) in enumerate(pairwise(bounds), 1):
        segments[0, start:end], positions[0, start:end] = text, torch.arange(end - start)
        answers[0, start + 2 : end] = True
    targets = targets.masked_fill(~answers, IGNORE)
    places = (targets != IGNORE).flatten().nonzero().flatten()
    reference = -5 * torch.rand(1, 4, generator=random)
    return Batch(tokens, targets, segments, positions, extra={"scored": places, "reference": reference})


def train(runtime: Runtime, mesh: str, method: str) -> dict[str, Any]:
    grid = Grid.make(runtime, mesh_of(mesh))
    model, arrangement = parallelize(ModelConfig.model_validate(CONFIG), 0, grid)
    objective = Preference(method=method, sft=0.1, chunk_tokens=3)
    engine = make_engine(model, objective, runtime, arrangement, precision="fp32", compiled=False)
    updater = Optimizer(model, AdamWConfig(eps=1e-2, learning_rate=1e-2), arrangement=arrangement)
    share = ROWS // grid.replicas
    batches = [row(number) for number in range(grid.replica * share, (grid.replica + 1) * share)]
    outcomes = [train_step(engine, updater, batches, max_norm=0.5, turn=step) for step in range(2)]
    measured = [figure.item() for figure in engine.measure(batches)]
    return {
        "loss": [outcome.loss.item() for outcome in outcomes],
        "norm": [outcome.norm.item() for outcome in outcomes],
        "measured": measured,
        "weights": arrangement.held(model),
    }


def ask(runtime: Runtime, mesh: str, folder: Path) -> list[float]:
    """What the first model gives the four texts of each row; of the last row's two, two are not there."""
    grid = Grid.make(runtime, mesh_of(mesh))
    model, arrangement = parallelize(ModelConfig.model_validate(CONFIG), 0, grid)
    share = ROWS // grid.replicas
    rows = range(grid.replica * share, (grid.replica + 1) * share)
    numbers = [np.where(np.arange(4) < (4 if n < 3 else 2), 4 * n + np.arange(4), -1)[None] for n in rows]
    batches = list(zip(numbers, map(row, rows), strict=True))
    place = {"runtime": runtime, "arrangement": arrangement, "folder": folder, "data": mesh}
    return reference(model, Preference(), batches, 14, **place).tolist()


def ask_all(runtime: Runtime, folder: Path) -> list[list[float]]:
    return [ask(runtime, mesh, folder) for mesh in MESHES]


def train_all(runtime: Runtime, runs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [train(runtime, *run) for run in runs]


@pytest.mark.slow
def test_a_mesh_gives_the_reference_of_one_process(tmp_path: Path) -> None:
    alone = ask(Runtime(torch.device("cpu")), "", tmp_path / "alone")
    assert len(set(alone)) == 14
    for figures in together(2, ask_all, tmp_path / "together"):
        for mesh, found in zip(MESHES, figures, strict=True):
            assert found == pytest.approx(alone, rel=1e-6), mesh
    assert len(list((tmp_path / "together").glob("*.safetensors"))) == len(MESHES)


@pytest.mark.slow
def test_a_mesh_prefers_as_one_process_does() -> None:
    runs = [(mesh, method) for mesh in MESHES for method in METHODS]
    alone = {method: train(Runtime(torch.device("cpu")), "", method) for method in METHODS}
    found = together(2, train_all, runs)
    for number, (mesh, method) in enumerate(runs):
        here = [process[number] for process in found]
        assert_as_one(here, alone[method], f"{mesh} {method}")
