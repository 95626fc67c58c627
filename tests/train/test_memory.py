"""Micro-batches that fit, and models that don't."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.train import memory
from hasten.train.memory import CPU_MICRO_BATCH_TOKENS, CPU_SHARE, choose_micro_rows, device_memory

CPU = torch.device("cpu")
MODEL = ModelConfig(vocab_size=1000, dim=64, num_layers=2, num_heads=2)


def choose(rows: int, row_tokens: int = 64, precision: str = "fp32") -> int:
    return choose_micro_rows(MODEL, rows, row_tokens, device=CPU, precision=precision, optimizer="adamw")


@given(rows=st.integers(1, 96), rows_that_fit=st.integers(1, 96))
def test_the_most_rows_that_fit_and_divide_the_batch_are_taken(rows: int, rows_that_fit: int) -> None:
    room = MODEL.state_bytes("adamw") + MODEL.activation_bytes(rows_that_fit, 16, bytes_per_number=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "device_memory", lambda device: room / CPU_SHARE + 1)
        expected = max(n for n in range(1, rows_that_fit + 1) if rows % n == 0)
        assert choose(rows, 16) == expected


def test_a_cpu_takes_no_more_than_gains_speed_and_at_least_a_row() -> None:
    row_tokens = 512
    assert choose(256, row_tokens) * row_tokens == CPU_MICRO_BATCH_TOKENS
    assert choose(2, 2 * CPU_MICRO_BATCH_TOKENS) == 1


def test_a_row_that_does_not_fit_is_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda device: 10**6)
    with pytest.raises(
        ConfigError, match=r"one row of 64 tokens needs .* GB; write a smaller model or fewer"
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
