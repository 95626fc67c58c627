"""Steps of a student are those of one process on every mesh that it can be on, and so is what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from as_one import assert_as_one
from parity import mesh_of
from processes import together

from hasten.core.batch import IGNORE, Batch
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.data.shards import ShardWriter
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.distillation import Distillation
from hasten.objective.inner import Inner
from hasten.parallel.apply import Beginning, parallelize
from hasten.parallel.grid import Grid
from hasten.train import teacher_cache
from hasten.train.engines import make_engine
from hasten.train.optim import AdamWConfig, Optimizer
from hasten.train.step import train_step
from hasten.train.teacher import Teaching

ROWS, TOKENS, VOCAB = 4, 12, 61
CONFIG = {"vocab_size": VOCAB, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "num_layers": 2, "ffn_dim": 64}
SAID = {"labels": 0.3, "temperature": 2.0, "chunk_tokens": 5}
INNER = {**SAID, "hidden": {}, "relations": {"heads": 8}}
RUNS = [("data=2", SAID), ("shard=2", SAID), ("context=2", SAID), ("data=2", INNER), ("shard=2", INNER)]


def row(number: int) -> Batch:
    """One row of two texts; of the fourth row half the targets, so that processes have unequal counts."""
    random = torch.Generator().manual_seed(number)
    tokens, targets = torch.randint(VOCAB, (2, 1, TOKENS), generator=random)
    segments = torch.tensor([[1] * 5 + [2] * 7])
    positions = torch.tensor([[*range(5), *range(7)]])
    targets[0, 6 if number == 3 else 11 :] = IGNORE
    return Batch(tokens, targets, segments, positions)


def teaching(fields: dict[str, Any]) -> Teaching:
    teacher = build(ModelConfig.model_validate({**CONFIG, "dim": 48, "num_layers": 3}), 1)
    config = Distillation.model_validate({"teacher": "t", **fields})
    return Teaching(config, teacher, Inner(config, ModelConfig.model_validate(CONFIG), teacher.config), VOCAB)


def train(runtime: Runtime, mesh: str, fields: dict[str, Any]) -> dict[str, Any]:
    grid, taught = Grid.make(runtime, mesh_of(mesh)), teaching(fields)
    taught.config.check_degrees(grid.degrees)
    shape = ModelConfig.model_validate(CONFIG)
    model, arrangement = parallelize(shape, 0, grid, "fp32", taught.beginning(Beginning()))
    objective = taught.objective(model, "fp32")
    engine = make_engine(model, objective, runtime, arrangement, precision="fp32", compiled=False)
    updater = Optimizer(model, AdamWConfig(eps=1e-2, learning_rate=1e-2), arrangement=arrangement)
    share = ROWS // grid.replicas
    batches = [row(number) for number in range(grid.replica * share, (grid.replica + 1) * share)]
    outcomes = [train_step(engine, updater, batches, max_norm=0.5, turn=step) for step in range(2)]
    return {
        "loss": [outcome.loss.item() for outcome in outcomes],
        "norm": [outcome.norm.item() for outcome in outcomes],
        "measured": [figure.item() for figure in engine.measure(batches)],
        "weights": arrangement.held(model),
    }


def train_all(runtime: Runtime) -> list[dict[str, Any]]:
    return [train(runtime, *run) for run in RUNS]


def keep(runtime: Runtime, data: Path, folder: Path) -> list[list[float]]:
    """What is kept of a small corpus, as this process reads it: tokens and weights of its first rows."""
    grid = Grid.make(runtime, mesh_of(f"data={runtime.world_size}"))
    teacher_cache.SWEEP_TOKENS = 32  # so that there is something for both
    rows = Corpus(data, "train", 16, 0)
    place = {"folder": folder, "data": "data", "runtime": runtime, "precision": "fp32"}
    said = teacher_cache.spoken(
        teaching({"cache": {"samples": 5}}), rows, **place, share=(grid.replica, grid.replicas)
    )
    batch = said(rows.batches(0, rows=4, micro_rows=4)[0])
    return [batch.extra[f"teacher.{name}"].flatten().tolist() for name in ("tokens", "weights")]


@pytest.mark.slow
def test_a_mesh_learns_from_a_teacher_as_one_process_does() -> None:
    alone = [train(Runtime(torch.device("cpu")), "", fields) for fields in (SAID, INNER)]
    found = together(2, train_all)
    for number, (mesh, fields) in enumerate(RUNS):
        here = [process[number] for process in found]
        assert_as_one(here, alone[fields is INNER], f"{mesh} {sorted(fields)}")


@pytest.mark.slow
def test_two_processes_keep_together_what_one_keeps(tmp_path: Path) -> None:
    writer = ShardWriter("numbers", VOCAB, 0, 0)
    random = torch.Generator().manual_seed(0)
    for n in range(30):
        writer.add(f"{n}.txt", torch.randint(1, VOCAB, (3 + n,), generator=random).tolist(), 3 + n)
    (tmp_path / "data/train").mkdir(parents=True)
    writer.write(tmp_path / "data/train/numbers-0.safetensors")
    alone = keep(Runtime(torch.device("cpu")), tmp_path / "data", tmp_path / "alone")
    for found in together(2, keep, tmp_path / "data", tmp_path / "together"):
        assert found[0] == alone[0] and found[1] == pytest.approx(alone[1])
    assert len(list((tmp_path / "together").glob("*/block-0000[01]-*.safetensors"))) == 2
