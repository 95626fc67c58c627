"""Schedules against values worked out by hand, and as functions of progress alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.config import Config, parse
from hasten.core.errors import ConfigError
from hasten.train.schedule import WSD, Constant, Cosine, Linear, Schedule, Shape


class Holder(Config):
    schedule: Schedule


STEPS, WARMUP = 100, 10


def at(schedule: Shape, step: int) -> float:
    return schedule.multiplier(step / STEPS, step)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [  # at step 0, the last of warm-up, the first of decay, one in the decay, and the last
        (
            WSD(warmup_steps=WARMUP, decay_share=0.4),
            {0: 0.1, 9: 1, 59: 1, 60: 1, 61: 0.975, 80: 0.5, 99: 0.025},
        ),
        (WSD(warmup_steps=WARMUP, decay_share=0.4, final=0.2), {0: 0.1, 60: 1, 80: 0.6, 99: 0.22}),
        (Linear(warmup_steps=WARMUP), {0: 0.1, 9: 0.91, 50: 0.5, 99: 0.01}),
        (Linear(warmup_steps=0, final=0.5), {0: 1, 50: 0.75, 99: 0.505}),
        (Cosine(warmup_steps=0, final=0.1), {0: 1, 50: 0.55, 25: 0.55 + 0.45 * math.sqrt(0.5)}),
        (Cosine(warmup_steps=WARMUP, final=0), {0: 0.1, 99: math.sin(math.pi / 200) ** 2}),
        (Constant(warmup_steps=WARMUP), {0: 0.1, 4: 0.5, 9: 1, 99: 1}),
    ],
)
def test_values_at_the_corners_are_those_worked_out_by_hand(
    schedule: Shape, values: dict[int, float]
) -> None:
    for step, value in values.items():
        assert at(schedule, step) == pytest.approx(value, rel=1e-12), step


@pytest.mark.parametrize("schedule", [WSD(), Linear(), Cosine(), Constant()])
@given(progress=st.floats(-1, 2), step=st.integers(0, 10**9))
def test_a_multiplier_is_a_share_whatever_the_clock_says(schedule: Shape, progress: float, step: int) -> None:
    assert 0 <= schedule.multiplier(progress, step) <= 1


@pytest.mark.parametrize("schedule", [WSD(warmup_steps=0), Linear(warmup_steps=0), Cosine(warmup_steps=0)])
@given(one=st.floats(0, 1), other=st.floats(0, 1))
def test_after_warm_up_the_rate_never_rises(schedule: Shape, one: float, other: float) -> None:
    early, late = sorted((one, other))
    assert schedule.multiplier(early, 0) >= schedule.multiplier(late, 0)


def test_runs_of_two_lengths_share_the_constant_part_of_wsd() -> None:
    """A longer run can start from a checkpoint of a shorter one, taken before its decay."""
    schedule = WSD(warmup_steps=5, decay_share=0.4)
    short = [schedule.multiplier(step / 50, step) for step in range(30)]
    assert short == [schedule.multiplier(step / 500, step) for step in range(30)]


def test_an_unknown_schedule_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"schedule.kind cannot be 'cosin'. Did you mean 'cosine'\?"):
        parse(Holder, {"schedule": {"kind": "cosin"}}, "a.yaml")
