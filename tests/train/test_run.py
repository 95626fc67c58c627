"""Whole runs of a tiny model: resumed, stopped, timed, poisoned."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from tiny_run import EOT, POISON, ROW_TOKENS, Act, PoisonedCrossEntropy, make_run, write_corpus

from hasten.core.errors import CheckpointError, ConfigError, DataError, HastenError
from hasten.core.files import damage
from hasten.data.shards import open_split
from hasten.train import plan
from hasten.train.metrics import measure_peak
from hasten.train.restore import read_tensors
from hasten.train.schedule import WSD
from hasten.train.signals import ECHO_SECONDS

STEPS = 20
FILES = ("weights/model.safetensors", "state/optimizer.safetensors")
TIMES = {"seconds", "tokens_per_second", "mfu"}


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is really measured, only not for half a second."""
    monkeypatch.setattr(plan, "measure_peak", lambda device, precision: measure_peak(device, precision, 0.01))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("prepared") / "numbers")


def every_three(**fields: Any) -> dict[str, Any]:
    """Everything that a run does, at steps that do not fall together."""
    return {"steps": STEPS, "log_every": 3, "validate_every": 7, "checkpoint_every": 4, **fields}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what depends on the clock."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()]


def end_of(folder: Path, step: int = STEPS) -> list[bytes]:
    """The bytes of weights and optimizer after `step`."""
    return [(folder / f"checkpoints/step-{step:06}" / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def straight(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 20 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    summary = make_run(folder, prepared, **every_three()).fit()
    assert (summary.steps, summary.skipped, summary.rollbacks, summary.completed) == (STEPS, 0, 0, True)
    return folder


def test_a_run_is_packed_shuffled_and_repeatable(straight: Path, prepared: Path, tmp_path: Path) -> None:
    """What the resume tests below compare is worth comparing: the data is of that kind, the seed decides."""
    batches = make_run(tmp_path / "unused", prepared, **every_three()).make_batches(0)
    assert any(batch.segments is not None and int(batch.segments.max()) > 1 for batch in batches)
    make_run(tmp_path / "same", prepared, **every_three()).fit()
    make_run(tmp_path / "other", prepared, **every_three(), seed=1).fit()
    assert end_of(tmp_path / "same") == end_of(straight)
    assert end_of(tmp_path / "other") != end_of(straight)


@pytest.mark.slow
@pytest.mark.parametrize("k", range(1, STEPS + 1))
def test_k_steps_and_the_rest_are_twenty_steps_byte_for_byte(
    k: int, straight: Path, prepared: Path, tmp_path: Path
) -> None:
    """Stopped by a signal after step k and begun again: weights, moments and every line of metrics."""

    def stop(step: int) -> None:
        if step == k - 1:  # it arrives while the run looks at itself before step k
            os.kill(os.getpid(), signal.SIGTERM)

    first = make_run(tmp_path, prepared, **every_three(), probes=[Act(1, stop)]).fit()
    assert first.steps == k
    second = make_run(tmp_path, prepared, **every_three()).fit()
    assert second.completed and second.steps == STEPS
    assert end_of(tmp_path) == end_of(straight)
    assert lines(tmp_path) == lines(straight)


@pytest.mark.parametrize("crash_at", [0, 1, 5, 8, 19, 20])
def test_a_crash_loses_no_line_and_doubles_none(
    crash_at: int, straight: Path, prepared: Path, tmp_path: Path
) -> None:
    """Nothing is saved at the crash: the run goes back to its last checkpoint and comes to the same end."""

    def crash(step: int) -> None:
        if step == crash_at:
            raise ZeroDivisionError

    broken = make_run(tmp_path, prepared, **every_three(), probes=[Act(1, crash)])
    with pytest.raises(ZeroDivisionError):
        broken.fit()
    broken.saves.wait()
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "ki')  # what a crash can leave of a line
    make_run(tmp_path, prepared, **every_three()).fit()
    assert end_of(tmp_path) == end_of(straight)
    assert lines(tmp_path) == lines(straight)


def test_lines_come_when_they_are_due_and_say_what_they_should(straight: Path) -> None:
    found = [(line["kind"], line["step"]) for line in lines(straight)]
    train = [step for kind, step in found if kind == "train"]
    assert train == [3, 6, 9, 12, 15, 18]
    assert [step for kind, step in found if kind == "validation"] == [0, 7, 14, 20]
    first, last = (next(line for line in lines(straight) if line["step"] == step) for step in (0, 18))
    assert {"loss", "learning_rate", "grad_norm", "tokens", "epoch"} < last.keys()
    assert last["tokens"] == 18 * 4 * ROW_TOKENS
    assert last["loss"] < first["validation_loss"]


def test_a_finished_run_has_nothing_left_to_do(straight: Path, prepared: Path) -> None:
    before, written = end_of(straight), (straight / "metrics.jsonl").read_bytes()
    summary = make_run(straight, prepared, **every_three()).fit()
    assert summary.completed and summary.steps == STEPS
    validated = [line for line in lines(straight) if line["kind"] == "validation"]
    assert summary.validation["validation_loss"] == validated[-1]["validation_loss"]
    assert end_of(straight) == before and (straight / "metrics.jsonl").read_bytes() == written


def test_a_longer_horizon_goes_on_from_the_end_of_a_shorter_one(prepared: Path, tmp_path: Path) -> None:
    make_run(tmp_path, prepared, **every_three(steps=4)).fit()
    assert make_run(tmp_path, prepared, **every_three(steps=6)).fit().steps == 6


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"batch_tokens": 8 * ROW_TOKENS}, "began with batch rows 4 and the recipe now gives 8"),
        ({"seed": 3}, "began with seed 0 and the recipe now gives 3"),
        ({"optimizer": {"kind": "adamw"}}, "optimizer state"),
    ],
)
def test_a_run_is_not_continued_as_another_one(
    change: dict[str, Any], complaint: str, straight: Path, prepared: Path
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        make_run(straight, prepared, **every_three(**change)).fit()


def test_data_that_does_not_fill_a_step_is_refused_before_the_run(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the 4,096 of one step"):
        make_run(tmp_path, prepared, steps=1, batch_tokens=4096 * ROW_TOKENS)
    with pytest.raises(
        ConfigError, match=r"batch_tokens \(40\) must be a multiple of data.row_tokens \(16\)"
    ):
        make_run(tmp_path, prepared, steps=1, batch_tokens=40)


# Time


@pytest.mark.slow
def test_a_run_told_its_time_ends_in_time_with_its_schedule_complete(prepared: Path, tmp_path: Path) -> None:
    """Within 0.6 s, for other processes can hold up the last save of so short a run; in minutes it is 5%."""
    fields = {"minutes": 0.08, "log_every": 1, "schedule": WSD(warmup_steps=0)}
    began = time.monotonic()
    run = make_run(tmp_path, prepared, **fields)
    summary = run.fit()
    assert time.monotonic() - began == pytest.approx(4.8, rel=0.05, abs=0.6)
    assert summary.completed
    rates = [line["learning_rate"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert max(rates) == run.rates["matrix"]
    assert min(rates) == rates[-1] < 0.1 * max(rates)
    assert lines(tmp_path)[-1]["kind"] == "validation"
    again = make_run(tmp_path, prepared, **fields).fit()
    assert again.completed and again.steps == summary.steps


def test_time_before_an_interruption_counts(prepared: Path, tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    first = make_run(tmp_path, prepared, minutes=0.05, probes=[Act(1, stop)]).fit()
    assert not first.completed
    second = make_run(tmp_path, prepared, minutes=0.05).fit()
    assert second.completed and second.seconds == pytest.approx(3.0, abs=0.6)


# What is not finite


def poisoned_names(prepared: Path) -> set[str]:
    shards = open_split(prepared / "train")["numbers"]
    return {shards.name(d) for d in range(shards.num_documents) if POISON in shards.ids(d).tolist()}


def quarantined(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_a_poisoned_document_is_recorded_and_costs_only_its_steps(tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", poisoned=1)
    run = make_run(tmp_path, data, **every_three(log_every=1), objective=PoisonedCrossEntropy())
    summary = run.fit()
    records = quarantined(tmp_path)
    assert summary.skipped == len(records) >= 1
    assert summary.rollbacks == 0 and summary.completed
    for record in records:
        assert poisoned_names(data) & set(record["documents"])
        batches = run.make_batches(record["data_step"])
        assert set(record["documents"]) == {name for batch in batches for name in batch.documents}
    skipped = {record["step"] for record in records}
    losses = {line["step"]: line["loss"] for line in lines(tmp_path) if line["kind"] == "train"}
    assert {step for step, loss in losses.items() if loss is None} == skipped
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_steps_that_fail_in_a_row_lead_back_to_a_checkpoint_and_past_the_data(tmp_path: Path) -> None:
    """A stretch of three bad batches: the run returns to the last save and never reads them again."""
    data = write_corpus(tmp_path / "data")
    read: list[int] = []

    run = make_run(tmp_path, data, **every_three(log_every=1, max_skips=3), objective=PoisonedCrossEntropy())
    clean = run.make_batches

    def make_batches(data_step: int) -> Any:
        read.append(data_step)
        batches = clean(data_step)
        if data_step in (9, 10, 11):
            batches[0].tokens[0, 0] = POISON
        return batches

    run.make_batches = make_batches  # type: ignore[method-assign]
    summary = run.fit()
    assert (summary.steps, summary.skipped, summary.rollbacks, summary.completed) == (STEPS, 3, 1, True)
    assert [(r["step"], r["data_step"]) for r in quarantined(tmp_path)] == [(10, 9), (11, 10), (12, 11)]
    assert read == sorted(set(read))
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "train"] == list(range(1, STEPS + 1))


def test_a_run_that_cannot_be_saved_by_going_back_ends_with_advice(prepared: Path, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", poisoned=60)
    run = make_run(
        tmp_path, data, **every_three(max_skips=2, max_rollbacks=1), objective=PoisonedCrossEntropy()
    )
    with pytest.raises(HastenError, match=r"not finite around step 3, after going back 1 times; lower"):
        run.fit()
    assert damage(tmp_path / "checkpoints/step-000000") is None


def test_weights_that_are_not_finite_never_become_a_checkpoint(prepared: Path, tmp_path: Path) -> None:
    """They are spoilt one step before a save: the run goes back to step 8 and on with new data."""
    spoilt: list[int] = []

    def spoil(step: int) -> None:
        if step == 11 and not spoilt:
            spoilt.append(step)
            with torch.no_grad():
                run.model.layers["0"].attention.query.weight.fill_(torch.nan)

    run = make_run(tmp_path, prepared, **every_three(log_every=1, keep_last=9), probes=[Act(1, spoil)])
    summary = run.fit()
    assert (summary.steps, summary.skipped, summary.rollbacks, summary.completed) == (STEPS, 1, 1, True)
    for step in (0, 4, 8, 12, 16, 20):
        weights = read_tensors(tmp_path / f"checkpoints/step-{step:06}", "weights/model")
        assert all(tensor.isfinite().all() for tensor in weights.values()), step


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", poisoned=60)
    fields = every_three(max_skips=2, checkpoint_every=None)
    with pytest.raises(HastenError, match="there is no checkpoint yet"):
        make_run(tmp_path, data, **fields, objective=PoisonedCrossEntropy()).fit()


# Signals, in a process of their own


@pytest.fixture
def program(prepared: Path, tmp_path: Path) -> Iterator[Any]:
    """Start the training as a program in its own process; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds_per_look: float) -> subprocess.Popen[str]:
        command = [sys.executable, tiny_run.__file__, str(tmp_path), str(prepared), str(seconds_per_look)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        wait_for(tmp_path / "metrics.jsonl")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(path: Path) -> None:
    """Until there is a line of metrics."""
    end = time.monotonic() + 60
    while not path.exists() or not path.read_bytes().count(b"\n"):
        assert time.monotonic() < end, "the program has not begun to train"
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0(program: Any, tmp_path: Path) -> None:
    process = program(0.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    last = lines(tmp_path)[-1]["step"]
    assert damage(tmp_path / f"checkpoints/step-{last:06}") is None


@pytest.mark.slow
def test_a_second_sigterm_exits_at_once_and_an_echo_of_the_first_is_none(
    program: Any, tmp_path: Path
) -> None:
    """Each look takes a minute, so that the first signal's save is far away."""
    process = program(60.0)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: saving after this step" in next(line for line in process.stdout if "SIGTERM" in line)
    process.send_signal(signal.SIGTERM)
    time.sleep(ECHO_SECONDS)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 128 + signal.SIGTERM


def test_end_of_text_begins_and_ends_the_documents_of_these_tests(prepared: Path) -> None:
    ids = open_split(prepared / "train")["numbers"].ids(0)
    assert ids[0] == ids[-1] == EOT
