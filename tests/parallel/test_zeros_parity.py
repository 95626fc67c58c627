"""A pruned model that is trained on, on meshes: its zeros stay, and its steps are those of one process."""

from typing import Any

import pytest
import torch
from parity import CASES, OPTIMIZERS, differences, finer_products, mesh_of, steps_taken
from processes import together

from hasten.compress.sparsify import Sparsify
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.layout import role
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.apply import Beginning, parallelize
from hasten.parallel.grid import Grid
from hasten.train.engines import make_engine
from hasten.train.optim import Optimizer

JOBS = [
    (mesh, "decoder", optimizer)
    for mesh in ("data=2", "shard=2", "tensor=2", "pipeline=2")
    for optimizer in OPTIMIZERS
]


@finer_products()
def train(runtime: Runtime, mesh: str, case: str, optimizer: str) -> dict[str, Any]:
    """A few steps of a pruned model: losses, norms, and what is here of the weights before and after."""
    grid, config = Grid.make(runtime, mesh_of(mesh)), ModelConfig.model_validate(CASES[case])
    pruned = Sparsify(method="magnitude", pattern="2:4").apply(build(config, 0), [])
    weights = {name: parameter.detach() for name, parameter in pruned.named_parameters()}
    model, arrangement = parallelize(config, 0, grid, beginning=Beginning(weights=weights))
    first = {name: (piece, tensor.clone()) for name, (piece, tensor) in arrangement.held(model).items()}
    engine = make_engine(model, CrossEntropy(), runtime, arrangement, precision="fp32", compiled=False)
    updater = Optimizer(model, OPTIMIZERS[optimizer], arrangement=arrangement, keep_zeros=True)
    figures = steps_taken(engine, updater, case, grid)
    return {**figures, "first": first, "weights": arrangement.held(model)}


def train_all(runtime: Runtime) -> list[dict[str, Any]]:
    return [train(runtime, *job) for job in JOBS]


@pytest.mark.slow
def test_a_mesh_trains_a_pruned_model_as_one_process_does() -> None:
    found = together(2, train_all)
    alone = {name: train(Runtime(torch.device("cpu")), "", "decoder", name) for name in OPTIMIZERS}
    for number, (mesh, _, optimizer) in enumerate(JOBS):
        parts = [process[number] for process in found]
        result = differences(parts, alone[optimizer])
        assert result["initial_weights_equal"], (mesh, optimizer, result)
        assert result["loss"] < 1e-6 and result["measured"] < 1e-6, (mesh, optimizer, result)
        assert result["norm"] < 5e-6 and result["weights"] < 1e-5, (mesh, optimizer, result)
        for part in parts:
            for name, (_, tensor) in part["weights"].items():
                zeros = part["first"][name][1] == 0
                assert not bool(zeros.any()) or role(name) == "matrix"
                assert torch.equal(tensor == 0, zeros), (mesh, optimizer, name)
