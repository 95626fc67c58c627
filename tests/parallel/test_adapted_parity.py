"""Adapted models on meshes: the steps of one process, with pairs that are not zero."""

from functools import partial
from typing import Any

import pytest
import torch
from parity import CASES, differences, mesh_of, steps_taken
from processes import together
from torch import Tensor

from hasten.adapt.config import LoraConfig
from hasten.adapt.lora import adapt, settle
from hasten.adapt.nf4 import packed_weights
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.initial import first_value
from hasten.model.transformer import Transformer, assemble
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.apply import Beginning, parallelize
from hasten.parallel.arrangement import Arrangement, Piece
from hasten.parallel.grid import Grid
from hasten.train.engines import make_engine
from hasten.train.optim import AdamWConfig, Optimizer

Job = tuple[str, str, dict[str, Any]]
"""Mesh, case and what is adapted how."""
TWO: list[Job] = [
    *((mesh, "decoder", {}) for mesh in ("data=2", "shard=2", "tensor=2", "pipeline=2", "context=2")),
    *((mesh, "seq2seq", {}) for mesh in ("shard=2", "tensor=2", "pipeline=2")),
    *((mesh, "tied", {}) for mesh in ("shard=2 stage=1", "tensor=2")),
    ("tensor=2 sequence_parallel=false", "decoder", {"targets": ("*.key", "*.out", "*.up")}),
    ("pipeline=2", "decoder", {"targets": ("layers.3.*",)}),  # nothing to train on the first stage
    *((mesh, "decoder", {"dora": True}) for mesh in ("data=2", "shard=2", "pipeline=2")),
    *((mesh, "decoder", {"base": "nf4"}) for mesh in ("data=2", "pipeline=2")),
]
FOUR: list[Job] = [
    ("shard=2 tensor=2", "decoder", {}),
    ("tensor=4", "decoder", {}),  # more processes than heads of keys and values
    ("pipeline=2 tensor=2", "tied", {}),
]
ALPHA = 3.0
"""A scale of one: a large one makes the second step's rounding as many times larger."""


def arranged(config: ModelConfig, lora: LoraConfig, grid: Grid) -> tuple[Transformer, Arrangement]:
    """This process's part of an adapted model, its base drawn by name and the second matrices too."""
    with torch.device("meta"):
        model: Transformer = assemble(config)
        base = {name: parameter.shape for name, parameter in model.named_parameters()}
        adapt(model, lora, rank=3)
    moved = {n: p.shape for n, p in model.named_parameters() if n.endswith("lora_b")}
    given = {n: first_value(f"{n}.moved", shape, config, seed=0) / 4 for n, shape in moved.items()}

    def settled(model: Transformer) -> None:
        for name, layer in packed_weights(model):
            layer.take(first_value(name, base[name], config, seed=0))
        settle(model)

    beginning = Beginning(adapt=partial(adapt, config=lora, rank=3), weights=given, settle=settled)
    return parallelize(config, 0, grid, beginning=beginning)


def train(runtime: Runtime, mesh: str, case: str, options: dict[str, Any]) -> dict[str, Any]:
    """A few steps: losses, norms, and what is here of the weights before and after."""
    grid, config = Grid.make(runtime, mesh_of(mesh)), ModelConfig.model_validate(CASES[case])
    model, arrangement = arranged(config, LoraConfig.model_validate({"alpha": ALPHA, **options}), grid)
    first = {name: (piece, tensor.clone()) for name, (piece, tensor) in numbers(arrangement, model).items()}
    engine = make_engine(model, CrossEntropy(), runtime, arrangement, precision="fp32", compiled=False)
    updater = Optimizer(model, AdamWConfig(eps=1e-2, learning_rate=1e-2), arrangement=arrangement)
    figures = steps_taken(engine, updater, case, grid)
    return {**figures, "first": first, "weights": numbers(arrangement, model)}


def numbers(arrangement: Arrangement, model: Transformer) -> dict[str, tuple[Piece, Tensor]]:
    """What is here, but for codes: bytes are no numbers to compare, and what they say shows in the loss."""
    return {name: held for name, held in arrangement.held(model).items() if "nf4_" not in name}


def train_all(runtime: Runtime, jobs: list[Job]) -> list[dict[str, Any]]:
    return [train(runtime, *job) for job in jobs]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "jobs"), [(2, TWO), (4, FOUR)], ids=["two", "four"])
def test_a_mesh_trains_an_adapted_model_as_one_process_does(processes: int, jobs: list[Job]) -> None:
    found = together(processes, train_all, jobs)
    alone: dict[str, dict[str, Any]] = {}
    for number, (mesh, case, options) in enumerate(jobs):
        key = f"{case} {options}"
        if key not in alone:
            alone[key] = train(Runtime(torch.device("cpu")), "", case, options)
        result = differences([process[number] for process in found], alone[key])
        assert result["initial_weights_equal"], (mesh, key, result)
        assert result["loss"] < 1e-6 and result["measured"] < 1e-6, (mesh, key, result)
        assert result["norm"] < 5e-6 and result["weights"] < 1e-5, (mesh, key, result)
        pairs = [n for n in alone[key]["weights"] if "lora_" in n]
        moved = [n for n in pairs if not torch.equal(alone[key]["first"][n][1], alone[key]["weights"][n][1])]
        assert len(moved) == len(pairs) > 0
