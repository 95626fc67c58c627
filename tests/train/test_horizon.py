"""When a run ends and when it pauses, in numbers alone."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import CheckpointError
from hasten.train.horizon import Cadence, Clock, Every, Horizon, Moment, Steps
from hasten.train.state import State


def walk(horizon: Horizon, seconds: float, cadence: Cadence) -> tuple[list[int], list[float]]:
    """Steps at which `cadence` was due, and progress at each step, where every step takes `seconds`."""
    due, progress, step = [], [], 0
    while True:
        moment = horizon.moment(step, step * seconds, step_seconds=seconds)
        if cadence.due(moment):
            due.append(step)
            cadence = cadence.done(moment)
        assert not cadence.due(moment), "once is enough"
        if moment.ended:
            return due, progress
        progress.append(moment.progress)
        step += 1


def test_steps_are_counted_from_none_behind_to_all_but_one() -> None:
    _, progress = walk(Steps(4), 1.0, Cadence(None))
    assert progress == [0, 0.25, 0.5, 0.75]


@settings(deadline=None)
@given(total=st.floats(10, 100), seconds=st.floats(0.1, 3))
def test_a_clock_ends_within_half_a_step_of_its_time(total: float, seconds: float) -> None:
    _, progress = walk(Clock(total), seconds, Cadence(None))
    assert abs(len(progress) * seconds - total) <= seconds * 0.501
    assert progress == sorted(progress) and progress[-1] <= 1


def test_a_clock_sets_time_aside_and_completes_its_progress_before_it() -> None:
    clock = Clock(100.0)
    assert clock.moment(5, 45.0, reserve=10).progress == 0.5
    assert not clock.moment(5, 88.9, reserve=10, step_seconds=2).ended
    assert clock.moment(5, 89.0, reserve=10, step_seconds=2).ended
    assert clock.moment(1, 5.0, reserve=200).ended


def test_a_clock_allows_one_step_however_little_time_there_is() -> None:
    assert not Clock(1.0).moment(0, 5.0).ended


@settings(deadline=None)
@given(every=st.integers(1, 30), total=st.integers(1, 60))
def test_every_so_many_steps_means_before_the_first_at_each_and_after_the_last(
    every: int, total: int
) -> None:
    due, _ = walk(Steps(total), 1.0, Cadence(every))
    assert due == sorted({*range(0, total + 1, every), total})


def test_auto_is_ten_times_a_run_or_sooner_by_the_clock() -> None:
    assert walk(Steps(50), 1.0, Cadence("auto"))[0] == list(range(0, 51, 5))
    often = walk(Steps(50), 1.0, Cadence("auto", seconds=2))[0]
    assert set(range(0, 51, 5)) < set(often)
    assert max(b - a for a, b in pairwise(often)) == 2
    assert walk(Steps(3), 1.0, Cadence("auto"))[0] == [0, 1, 2, 3]
    assert walk(Steps(50), 1.0, Cadence(None))[0] == [50]


@settings(deadline=None)
@given(every=st.sampled_from([None, "auto", 1, 3, 7]), total=st.integers(1, 40), cut=st.integers(0, 40))
def test_a_cadence_goes_on_from_its_saved_state(every: Every, total: int, cut: int) -> None:
    horizon, straight, resumed = Steps(total), Cadence(every), Cadence(every)
    for step in range(total + 1):
        if step == cut:
            resumed = Cadence(every).restored(resumed.state())
        moment = horizon.moment(step, float(step))
        assert straight.due(moment) == resumed.due(moment)
        if straight.due(moment):
            straight, resumed = straight.done(moment), resumed.done(moment)


def test_a_moment_that_was_served_is_not_served_again() -> None:
    moment = Moment(step=4, elapsed=1.0, progress=1.0, ended=True)
    assert not Cadence(1).done(moment).due(moment)


WANTED = State(batch_rows=4, row_tokens=16, seed=0, micro_rows=2)


def test_a_state_survives_being_saved() -> None:
    state = State(4, 16, 0, 2, step=7, data_step=9, validation={"validation_loss": 1.5})
    assert State.from_json(state.to_json(), WANTED, Path("step-000007")) == state


@pytest.mark.parametrize("change", [{"another": 1}, {"step": None}])
def test_a_state_of_another_version_is_refused(change: dict[str, int | None]) -> None:
    saved = {**WANTED.to_json(), **{k: v for k, v in change.items() if v is not None}}
    for name in (k for k, v in change.items() if v is None):
        del saved[name]
    with pytest.raises(CheckpointError, match=r"differ in '(another|step)'; begin a new run"):
        State.from_json(saved, WANTED, Path("step-000007"))


@pytest.mark.parametrize("name", ["batch_rows", "row_tokens", "seed"])
def test_a_state_with_data_in_another_order_is_refused(name: str) -> None:
    saved = {**WANTED.to_json(), name: 99}
    with pytest.raises(CheckpointError, match=f"began with {name.replace('_', ' ')} 99 and the recipe now"):
        State.from_json(saved, WANTED, Path("step-000007"))
