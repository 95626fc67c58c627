"""What a run measures: whole lines, exact means, a peak that is one."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import DataError, MissingExtraError
from hasten.train.metrics import Meter, MetricsLog, Window, measure_peak, read_lines
from hasten.train.step import Outcome

CPU = torch.device("cpu")


def outcome(loss: float, norm: float = 1.0) -> Outcome:
    tensor = torch.tensor(loss)
    return Outcome(tensor, torch.tensor(norm), tensor.isfinite())


def test_lines_are_appended_in_order_with_their_step_and_kind(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.write(1, "train", {"loss": 2.5, "mfu": None})
    log.write(1, "validation", {"validation_loss": float("nan")})
    log.sync()
    assert read_lines(log.path) == [
        {"step": 1, "kind": "train", "loss": 2.5, "mfu": None},
        {"step": 1, "kind": "validation", "validation_loss": None},
    ]


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.integers(0, 9)), keep=st.integers(-1, 10), cut=st.integers(0, 200))
def test_after_any_cut_the_file_holds_whole_lines_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int, cut: int
) -> None:
    log = MetricsLog(tmp_path_factory.mktemp("run") / "metrics.jsonl")
    for step in sorted(steps):
        log.write(step, "train", {"loss": step / 3})
    whole = log.path.read_bytes()[:cut] if steps else b""
    log.path.write_bytes(whole)
    log.keep(keep)
    complete = sorted(steps)[: whole.count(b"\n")]
    expected = [{"step": s, "kind": "train", "loss": s / 3} for s in complete if s <= keep]
    assert read_lines(log.path) == expected
    log.write(keep + 1, "train", {})
    assert read_lines(log.path)[-1]["step"] == keep + 1


def test_a_file_that_is_not_there_needs_no_cutting(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.keep(3)
    log.sync()
    assert not log.path.exists()


@pytest.mark.parametrize(
    "text", ["nonsense\n", "[1]\n", '{"kind": "train"}\n', '{"step": null}\n', "\n", "\udcff\n"]
)
def test_a_line_that_no_run_wrote_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"metrics.jsonl:2: is no line of metrics, .*; remove it"):
        read_lines(path)


def test_a_window_holds_the_mean_of_its_finite_losses_and_the_last_finite_norm() -> None:
    meter = Meter(CPU)
    for loss, norm in ((1.0, 5.0), (float("nan"), float("nan")), (2.5, 7.0), (float("inf"), 9.0)):
        meter.add(outcome(loss, norm), tokens=100, seconds=0.5)
    assert meter.take() == {"loss": 1.75, "grad_norm": 7.0, "tokens_per_second": 200.0}
    assert meter.take() == {"loss": None, "grad_norm": None, "tokens_per_second": None}


@given(losses=st.lists(st.floats(0, 20, width=32), min_size=1, max_size=12), cut=st.integers(0, 12))
@settings(deadline=None)
def test_a_window_cut_by_a_checkpoint_gives_the_same_figures(losses: list[float], cut: int) -> None:
    straight, first, second = Meter(CPU), Meter(CPU), Meter(CPU)
    for meter, part in ((straight, losses), (first, losses[:cut])):
        for loss in part:
            meter.add(outcome(loss), 10, 1.0)
    saved = json.loads(json.dumps(vars(first.read())))
    second.start(Window(**saved))
    for loss in losses[cut:]:
        second.add(outcome(loss), 10, 1.0)
    assert second.take() == straight.take()


def test_tensorboard_gets_the_same_figures_and_forgets_what_was_undone(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": float(step), "mfu": None})
    log.keep(1)
    log.write(2, "train", {"loss": 20.0})
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]


def test_event_files_without_the_package_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        MissingExtraError, match=r"train.tensorboard needs .* pip install 'hasten\[tensorboard\]'"
    ):
        MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_is_not_below_what_a_product_reaches(precision: str) -> None:
    """A single product cannot be faster than the best of many, but for noise: a factor of 2 is allowed."""
    first, second = (measure_peak(CPU, precision, seconds=0.1) for _ in range(2))
    assert 0.5 < first / second < 2
    assert 1e9 < first < 1e16
