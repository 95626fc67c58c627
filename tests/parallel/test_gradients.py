"""Gradients summed over processes and clipped, against one process and against the formula."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from hasten.core.batch import IGNORE, Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel import gradients
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.gradients import buckets, clip_gradients, sum_gradients
from hasten.train.engine import Whole
from hasten.train.optim import AdamWConfig, Optimizer
from hasten.train.step import train_step

CPU = torch.device("cpu")
VOCAB = 19


def parameter(*gradient: float) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


def test_gradients_longer_than_the_limit_are_scaled_to_it_together() -> None:
    held = {"a": parameter(3.0, 0.0), "b": parameter(4.0)}
    assert clip_gradients(held, max_norm=1.0) == pytest.approx(5.0)
    torch.testing.assert_close(held["a"].grad, torch.tensor([0.6, 0.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(held["b"].grad, torch.tensor([0.8]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("limit", [None, 5.1])
def test_gradients_within_the_limit_stay_as_they_are(limit: float | None) -> None:
    held = {"a": parameter(3.0, 0.0), "b": parameter(4.0), "c": nn.Parameter(torch.zeros(1))}
    assert clip_gradients(held, limit) == 5.0
    assert held["a"].grad is not None and held["a"].grad.tolist() == [3.0, 0.0]
    assert held["c"].grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(value: float) -> None:
    assert not clip_gradients({"a": parameter(1.0), "b": parameter(value)}, max_norm=1.0).isfinite()


def test_a_single_process_has_nothing_to_add_up() -> None:
    held = nn.ParameterList([parameter(1.0), nn.Parameter(torch.zeros(1))])
    sum_gradients(held, Arrangement.of(held, Runtime(CPU)))
    assert held[0].grad == 1.0 and held[1].grad is None


def test_buckets_keep_order_and_hold_one_type_and_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 100)
    given = [torch.zeros(10), torch.zeros(20), torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)]
    made = list(buckets(given))
    assert [[len(g) for g in bucket] for bucket in made] == [[10, 20], [1], [1]]
    assert [g is h for bucket in made for g, h in zip(bucket, bucket, strict=True)] == [True] * 4


def tiny() -> Decoder:
    shape = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2, "max_positions": 8}
    return build(ModelConfig.model_validate(shape), seed=0)


def batch(seed: int) -> Batch:
    """Four rows; the first two have far fewer targets than the last two."""
    random = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCAB, (2, 4, 8), generator=random)
    targets[:2, 2:] = IGNORE
    return Batch(tokens, targets)


def half(whole: Batch, rank: int, world_size: int) -> list[Batch]:
    rows = slice(4 * rank // world_size, 4 * (rank + 1) // world_size)
    return [replace(whole, tokens=whole.tokens[rows], targets=whole.targets[rows])]


def three_steps(runtime: Runtime) -> dict[str, Tensor]:
    """Two good steps and, between them, one in which the last rank's gradient is not finite."""
    model = tiny()
    engine = Whole(model, CrossEntropy(), runtime, precision="fp32", compiled=False)
    optimizer = Optimizer(model, AdamWConfig(eps=1e-2, learning_rate=1e-2))
    figures: dict[str, Tensor] = {}
    for step in range(3):
        poisoned = step == 1 and runtime.rank == runtime.world_size - 1
        hook = model.norm.register_full_backward_hook(lambda _, g, __: (g[0] / 0,)) if poisoned else None
        outcome = train_step(
            engine, optimizer, half(batch(step), runtime.rank, runtime.world_size), max_norm=0.5
        )
        if hook is not None:
            hook.remove()
        figures |= {f"{name} {step}": value for name, value in vars(outcome).items()}
    return {**figures, **model.state_dict(), **optimizer.state_dict()}


def uneven_sum(runtime: Runtime) -> dict[str, Tensor]:
    """Several buckets, two types, and a parameter that only one rank has a gradient for."""
    gradients.BUCKET_BYTES = 8
    held = [parameter(1.0 + runtime.rank, 2.0), parameter(10.0), nn.Parameter(torch.zeros(1))]
    held.append(nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    held[3].grad = torch.tensor([0.5, runtime.rank], dtype=torch.float64)
    if runtime.rank == 1:
        held[2].grad = torch.tensor([7.0])
    model = nn.ParameterList(held)
    sum_gradients(model, Arrangement.of(model, runtime))
    return {f"sum {i}": p.grad for i, p in enumerate(held) if p.grad is not None}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    runtime = Runtime(CPU, rank, 2)
    torch.save({**three_steps(runtime), **uneven_sum(runtime)}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Loss, norm, weights and moments agree; a rank's bad gradient makes both skip; sums are sums."""
    multiprocessing.start_processes(work, args=(tmp_path,), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)
    for name, expected in three_steps(Runtime(CPU)).items():
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert [bool(first[f"finite {step}"]) for step in range(3)] == [True, False, True]
    assert [first[f"sum {i}"].tolist() for i in range(4)] == [[3.0, 4.0], [20.0], [7.0], [1.0, 1.0]]
