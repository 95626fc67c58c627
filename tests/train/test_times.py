"""Where the time of a run goes: a clock that only the tests move, so that each second has one known owner."""

import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Act, make_run, write_corpus
from torch import Tensor

from hasten.core.batch import Batch
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train import plan
from hasten.train.run import Run
from hasten.train.times import (
    CHECKPOINTS,
    DATA,
    LOOKS,
    MODEL,
    OPTIMIZER,
    PARTS,
    REST,
    START,
    DeviceSplit,
    Times,
    time_table,
)

NONE = dict.fromkeys(PARTS, 0.0)


class FakeClock:
    """A clock that stands until somebody spends time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measure_peak", lambda device, precision: 1e15)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("prepared") / "numbers")


def test_every_second_has_one_owner_however_deep_the_parts_are_nested(clock: FakeClock) -> None:
    times = Times(clock(), clock=clock)
    clock.spend(1)
    times.enter(REST)
    clock.spend(2)
    with times.of(LOOKS):
        clock.spend(4)
        with times.of(CHECKPOINTS):
            clock.spend(8)
        clock.spend(16)
    clock.spend(32)
    assert times.read() == {**NONE, START: 1, REST: 34, LOOKS: 20, CHECKPOINTS: 8}


def test_a_part_that_fails_gives_the_clock_back(clock: FakeClock) -> None:
    times = Times(clock(), clock=clock)
    with pytest.raises(ZeroDivisionError), times.of(DATA):
        clock.spend(1)
        raise ZeroDivisionError
    clock.spend(2)
    assert times.read() == {**NONE, DATA: 1, START: 2}


class FakeEvent:
    """An event on a device whose clock the test moves; it is reached `late` queries after it was recorded."""

    def __init__(self, device: FakeClock, late: int) -> None:
        self.device, self.late = device, late

    def record(self) -> None:
        self.at = self.device()

    def query(self) -> bool:
        self.late -= 1
        return self.late < 0

    def elapsed_time(self, later: "FakeEvent") -> float:
        return 1000 * (later.at - self.at)


def test_the_host_hands_over_and_the_device_says_how_the_time_divides(clock: FakeClock) -> None:
    """The host waits 8 s in all; on the device three quarters were forward and backward."""
    device = FakeClock()
    times = Times(clock(), split=DeviceSplit(lambda: FakeEvent(device, late=3)), clock=clock)
    times.enter(REST)
    for _ in range(4):
        with times.step() as halfway:
            device.spend(3)
            halfway()
            device.spend(1)
        with times.of(MODEL):
            clock.spend(2)
    for _ in range(12):
        times.read()
    assert times.read() == {**NONE, MODEL: 6, OPTIMIZER: 2}


def test_a_step_with_a_compilation_in_it_tells_nothing_of_how_steps_divide(clock: FakeClock) -> None:
    device = FakeClock()
    times = Times(clock(), split=DeviceSplit(lambda: FakeEvent(device, late=0)), clock=clock)
    for compiling in (True, False):
        with times.step() as halfway:
            times.compilations += compiling
            device.spend(100 if compiling else 1)
            halfway()
            device.spend(1)
    assert times.split is not None and times.split.optimizer_share() == 0.5


class SlowEverywhere(CrossEntropy):
    """Spends time in each forward pass of training."""

    def loss(self, model: Any, hidden: Tensor, batch: Batch) -> Tensor:
        if model.training:
            CLOCKS[-1].spend(3)
        return super().loss(model, hidden, batch)


CLOCKS: deque[FakeClock] = deque(maxlen=1)


def spending(clock: FakeClock, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, at a price."""

    def slow(*args: Any, **kwargs: Any) -> Any:
        clock.spend(seconds)
        return function(*args, **kwargs)

    return slow


def priced_run(folder: Path, prepared: Path, clock: FakeClock, **fields: Any) -> Run:
    """A run in which a forward pass costs 3 s, an update 5, a probe 7, a save 11."""
    CLOCKS.append(clock)
    run = make_run(folder, prepared, objective=SlowEverywhere(), checkpoint_every=2, log_every=1, **fields)
    run.times = Times(clock(), clock=clock)
    run.optimizer.step = spending(clock, 5, run.optimizer.step)  # type: ignore[method-assign]
    assert run.saves.checkpoints is not None
    run.saves.checkpoints.save = spending(clock, 11, run.saves.checkpoints.save)  # type: ignore[method-assign]
    return run


def test_each_part_of_a_real_run_gets_what_it_spent(clock: FakeClock, prepared: Path, tmp_path: Path) -> None:
    """Four steps of two micro-batches; looks before each and after the last; saves at 0, 2 and 4."""
    run = priced_run(tmp_path, prepared, clock, steps=4, probes=[Act(1, lambda _: clock.spend(7))])
    clock.spend(13)  # before the loop: start-up
    summary = run.fit()
    expected = {**NONE, START: 13, MODEL: 4 * 2 * 3, OPTIMIZER: 4 * 5, LOOKS: 5 * 7, CHECKPOINTS: 3 * 11}
    assert summary.times == expected
    assert summary.seconds == sum(expected.values()) == clock()


def test_waiting_for_data_is_told_from_the_rest(clock: FakeClock, prepared: Path, tmp_path: Path) -> None:
    """The batches of a step are there before they are asked for, unless making them takes longer."""
    run = priced_run(tmp_path, prepared, clock, steps=3)

    class Waited:
        def __init__(self, make: Callable[[int], Sequence[Batch]], first: int) -> None:
            self.make, self.step = make, first

        def __enter__(self) -> "Waited":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __next__(self) -> Sequence[Batch]:
            clock.spend(17)
            self.step += 1
            return self.make(self.step - 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hasten.train.run.Prefetch", Waited)
        assert run.fit().times[DATA] == 3 * 17


def test_a_resumed_run_counts_on(clock: FakeClock, prepared: Path, tmp_path: Path) -> None:
    """Stopped after two steps and begun again: the parts are those of both processes together."""

    def stop(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    first = priced_run(tmp_path, prepared, clock, steps=4, probes=[Act(1, stop)]).fit()
    assert not first.completed and first.times[OPTIMIZER] == 2 * 5
    again = FakeClock()
    second = priced_run(tmp_path, prepared, again, steps=4)
    again.spend(13)
    summary = second.fit()
    assert summary.completed and summary.steps == 4
    assert summary.times[OPTIMIZER] == 4 * 5 and summary.times[MODEL] == 4 * 2 * 3
    # The save that the first process ended with is counted by the one that it lets go on.
    assert summary.seconds == clock() + again() - 11


def test_the_compiler_is_start_up_wherever_it_is_called(clock: FakeClock) -> None:
    times = Times(clock(), clock=clock)
    times.enter(REST)

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        clock.spend(40)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with times.watching_compiler(True), times.of(LOOKS):
        for _ in range(3):
            double(torch.ones(2))
            clock.spend(1)
    assert times.read() == {**NONE, START: 40, LOOKS: 3}
    torch.compile(lambda x: 3 * x, backend=backend)(torch.ones(2))
    assert times.read()[REST] == 40, "nobody watches any more"


def test_the_table_has_a_line_for_each_part_and_shares_of_the_whole() -> None:
    lines = time_table({**NONE, START: 10.0, MODEL: 30.0}).splitlines()
    assert lines[0] == "where the 40.0 s went:" and len(lines) == 1 + len(PARTS)
    assert "25.0%" in lines[1] and "75.0%" in lines[3]
    assert time_table(NONE).count("0.0%") == len(PARTS), "a run of no time divides by nothing"


def test_real_parts_add_up_to_the_wall_clock(prepared: Path, tmp_path: Path) -> None:
    """On the machine's own clock, with the parts that compute taking some of it."""
    run = make_run(tmp_path, prepared, steps=6)
    summary = run.fit()
    assert sum(summary.times.values()) == pytest.approx(run.elapsed(), rel=0.05)
    assert all(seconds >= 0 for seconds in summary.times.values())
    assert min(summary.times[part] for part in (START, MODEL, OPTIMIZER, LOOKS, CHECKPOINTS)) > 0
