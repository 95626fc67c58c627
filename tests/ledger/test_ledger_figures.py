"""From trials to rows: what is made up comes out, however the machine drifted."""

import pytest
from made_up import CPU, LEARNING, NAMES, SLOWER, ledger, trials

from hasten.ledger.arms import make_arms
from hasten.ledger.figures import learning_times, make_rows, pace, seconds_to, spread
from hasten.ledger.table import times
from hasten.ledger.trial import validation_curve

ARMS = make_arms(NAMES, CPU, staircase=True)
ROWS = {row["arm"]: row for row in make_rows(ARMS, trials())}


@pytest.mark.parametrize("arm", SLOWER)
def test_how_much_slower_an_arm_is_does_not_depend_on_the_rounds_speed(arm: str) -> None:
    slower = ROWS[arm]["slower"]
    noise = 1.05 if arm != "full" else 1.0
    assert slower["median"] == pytest.approx(SLOWER[arm])
    assert (slower["low"], slower["high"]) == pytest.approx((SLOWER[arm] / noise, SLOWER[arm] * noise))
    assert slower["repeats"] == 3


@pytest.mark.parametrize("arm", ["without muon", "without block", "plain"])
def test_time_to_loss_is_measured_where_learning_changes(arm: str) -> None:
    """Everything falls by 1 in 10 s; the plain arm ends at 7, four times later."""
    found = ROWS[arm]["time_to_loss"]
    assert found["median"] == pytest.approx(LEARNING[arm]) and found["reached"] == 3


def test_elsewhere_it_is_the_time_for_the_same_tokens() -> None:
    assert ROWS["without bf16"]["time_to_loss"] == ROWS["without bf16"]["slower"]
    assert ROWS["stair muon"]["time_to_loss"] is None, "a step of the stairs is timed for its pace only"


def test_an_arm_that_does_not_get_there_leaves_a_lower_bound() -> None:
    made = trials()
    for trial in made:
        if trial["arm"] == "without muon" and trial["round"] == 1:
            trial["result"]["validation"] = [[0.0, 8.0], [30.0, 7.5]]
    (arm,) = (arm for arm in ARMS if arm.name == "without muon")
    found = learning_times(made, arm)
    assert found is not None and found["reached"] == 2
    assert found["low"] == pytest.approx(30 / (10 / 0.8)), "it had not come down after 30 s"
    assert times(found).startswith(">")


def test_arms_without_trials_have_no_row_and_a_missing_round_no_ratio() -> None:
    made = [t for t in trials() if t["arm"] != "without prefetch" and (t["arm"], t["round"]) != ("full", 2)]
    rows = {row["arm"]: row for row in make_rows(ARMS, made)}
    assert "without prefetch" not in rows
    assert rows["without bf16"]["slower"]["repeats"] == 2
    assert rows["without bf16"]["tokens_per_second"]["repeats"] == 3


def test_pace_leaves_the_first_steps_out_unless_there_are_no_others() -> None:
    assert pace({"result": {"paces": [[1, 1.0], [2, 2.0], [3, 30.0], [4, 50.0]]}}) == 40.0
    assert pace({"result": {"paces": [[1, 7.0]]}}) == 7.0


@pytest.mark.parametrize(
    "target, expected",
    [(8.0, 0.0), (7.5, 5.0), (7.0, 10.0), (6.25, 25.0), (6.0, 30.0), (5.9, None)],
)
def test_the_crossing_is_found_on_straight_lines(target: float, expected: float | None) -> None:
    assert seconds_to([(0, 8.0), (10, 7.0), (20, 6.5), (30, 6.0), (40, 6.2)], target) == expected


def test_the_first_crossing_counts_even_if_the_loss_rises_again() -> None:
    assert seconds_to([(0, 8.0), (10, 6.0), (20, 7.0), (30, 5.0)], 6.5) == 7.5
    assert seconds_to([(0, 5.0), (10, 5.0)], 5.0) == 0.0


def test_looks_take_no_time_on_the_curve() -> None:
    """Ten tokens a step at 5, 10, 2 tokens/s; validation happens at 0, after two steps, and at the end."""
    lines = [
        {"step": 0, "kind": "validation", "validation_loss": 3.0},
        {"step": 1, "kind": "train", "tokens": 10, "tokens_per_second": 5.0},
        {"step": 2, "kind": "train", "tokens": 20, "tokens_per_second": 10.0},
        {"step": 2, "kind": "validation", "validation_loss": 2.0},
        {"step": 3, "kind": "train", "tokens": 30, "tokens_per_second": 2.0},
        {"step": 3, "kind": "validation", "validation_loss": 1.0},
    ]
    assert validation_curve(lines) == [(0.0, 3.0), (3.0, 2.0), (8.0, 1.0)]


def test_spread_of_nothing_is_none() -> None:
    assert spread([]) is None
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "repeats": 3}
    assert len(ledger()["rows"]) == len(ARMS)
