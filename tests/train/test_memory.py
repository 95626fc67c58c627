"""Micro-batches that fit, and models that don't."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.ops.kernels.library import library
from hasten.parallel.config import ParallelConfig
from hasten.train import memory
from hasten.train.footprint import Workload, footprint
from hasten.train.memory import (
    CPU_MICRO_BATCH_TOKENS,
    CPU_SHARE,
    choose_micro_rows,
    choose_recompute,
    device_memory,
    resident_memory,
)

CPU = torch.device("cpu")
MODEL = ModelConfig(vocab_size=1000, dim=64, num_layers=2, num_heads=2)


def work(rows: int, row_tokens: int, micro_batches: int = 1, **given: Any) -> Workload:
    """A process's step."""
    kernels = library() is not None
    return Workload(MODEL, rows, row_tokens, micro_batches, precision="fp32", kernels=kernels, **given)


def needed(rows: int, row_tokens: int, micro_batches: int) -> float:
    """The bytes of a step."""
    return footprint(work(rows, row_tokens, micro_batches)).total


def choose(rows: int, row_tokens: int = 64, precision: str = "fp32") -> int:
    return choose_micro_rows(replace(work(rows, row_tokens), precision=precision), CPU)


@given(rows=st.integers(1, 96), rows_that_fit=st.integers(1, 96))
def test_the_most_rows_that_fit_and_divide_the_batch_are_taken(rows: int, rows_that_fit: int) -> None:
    room = needed(rows_that_fit, 16, micro_batches=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "device_memory", lambda device: room / CPU_SHARE + 1)
        fitting = [n for n in range(1, rows + 1) if rows % n == 0 and needed(n, 16, rows // n) <= room + 1]
        assert choose(rows, 16) == max(fitting)


def test_a_cpu_takes_no_more_than_gains_speed_and_at_least_a_row() -> None:
    row_tokens = 512
    assert choose(256, row_tokens) * row_tokens == CPU_MICRO_BATCH_TOKENS
    assert choose(2, 2 * CPU_MICRO_BATCH_TOKENS) == 1


def test_a_row_that_does_not_fit_is_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda device: 10**6)
    with pytest.raises(
        ConfigError,
        match=r"one row of 64 tokens needs .* GB; write a smaller model or fewer .*parallel.shard",
    ):
        choose(4)


def test_a_containers_limit_counts_where_it_is_lower_than_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    physical = device_memory(CPU)
    assert 2**28 < physical < 2**45
    monkeypatch.setattr(memory, "container_limit", lambda: 2**27)
    assert device_memory(CPU) == 2**27
    monkeypatch.setattr(memory, "container_limit", lambda: None)
    assert device_memory(CPU) >= physical


def test_a_teacher_takes_room_that_rows_would_have_had(monkeypatch: pytest.MonkeyPatch) -> None:
    give_room(monkeypatch, needed(8, 64, micro_batches=2))
    assert choose(16) == 8
    assert choose_micro_rows(work(16, 64, teacher=MODEL), CPU) < 8
    give_room(monkeypatch, needed(1, 64, micro_batches=16))
    with pytest.raises(ConfigError, match="GB of weights, teacher and optimizer"):
        choose_micro_rows(work(1, 64, teacher=MODEL.model_copy(update={"num_layers": 64})), CPU)


def give_room(monkeypatch: pytest.MonkeyPatch, room: float) -> None:
    """So many bytes for this process, and one more."""
    monkeypatch.setattr(memory, "device_memory", lambda device: room / CPU_SHARE + 1)


def on_grid(rows: int, **degrees: Any) -> int:
    """The micro-batch of one process of a grid."""
    options = {name: degrees.pop(name) for name in ("interleave", "recompute") if name in degrees}
    return choose_micro_rows(
        work(rows, 16, degrees=degrees, parallel=ParallelConfig(**degrees, **options)), CPU
    )


def test_what_is_divided_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, shared = work(8, 16), work(8, 16, degrees={"shard": 8}, parallel=ParallelConfig(shard=8))
    assert footprint(shared).states == pytest.approx(footprint(whole).states / 8)
    give_room(monkeypatch, footprint(whole).total)
    assert on_grid(64) <= 8 < on_grid(64, tensor=2) < on_grid(64, tensor=2, context=2)


def test_a_pipeline_gets_as_many_micro_batches_as_it_has_stages() -> None:
    assert [on_grid(rows, pipeline=4) for rows in (32, 12, 4, 2, 1)] == [8, 3, 1, 1, 1]
    assert [on_grid(rows, pipeline=2, interleave=2) for rows in (32, 12, 2)] == [16, 6, 1]
    with pytest.raises(ConfigError, match="a pipeline of 2 stages needs a multiple of 2 micro-batches"):
        on_grid(3, pipeline=2, interleave=2)


def test_as_little_as_will_do_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tokens = 16, 64
    plain, cheap, blocks = (
        footprint(work(rows, tokens, recompute=mode)).total for mode in ("none", "selective", "full")
    )
    assert blocks < cheap < plain
    asked = []
    for room in (plain, (plain + cheap) / 2, cheap, (cheap + blocks) / 2, blocks, blocks / 2):
        give_room(monkeypatch, room)
        asked.append(choose_recompute(work(rows, tokens), CPU))
    first = footprint(work(rows, tokens, recompute="selective", recompute_layers=1)).total
    assert asked[0] == ("none", None)
    assert asked[1] == ("selective", 1 if first <= (plain + cheap) / 2 else 2)
    assert asked[2] == ("selective", 2)
    assert [mode for mode, _ in asked[3:]] == ["full"] * 3
    fixed = work(rows, tokens, parallel=ParallelConfig(recompute="none"))
    assert choose_recompute(fixed, CPU) == ("none", None)


def test_a_row_that_fits_only_if_it_is_made_again_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    give_room(monkeypatch, footprint(work(1, 64, 4, recompute="full")).total)
    assert choose(4) == 1
    with pytest.raises(ConfigError, match="one row of 64 tokens"):
        choose_micro_rows(work(4, 64, parallel=ParallelConfig(recompute="none")), CPU)


def test_what_is_held_now_is_less_than_the_most_so_far() -> None:
    assert 0 < resident_memory(CPU) <= 1.01 * memory.peak_memory(CPU)
