"""Curves say what the lines say: smoothed without lag, thinned without loss of mean."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.errors import DataError
from hasten.report.curves import (
    MAX_POINTS,
    SMOOTHING,
    Curve,
    figure_curves,
    loss_curves,
    read_curve,
    smoothed,
    thinned,
)
from hasten.report.files import read_run, read_runs


def curve(y: list[float]) -> Curve:
    return Curve("c", 0, "faint", {"step": np.arange(1.0, len(y) + 1)}, np.array(y, float))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=400))
def test_smoothing_is_the_mean_of_as_many_neighbours_on_either_side(y):
    half = len(y) // SMOOTHING // 2
    for i, value in enumerate(smoothed(curve(y)).y):
        reach = min(half, i, len(y) - 1 - i)
        assert value == pytest.approx(np.mean(y[i - reach : i + reach + 1]), abs=1e-6)


def test_a_straight_line_stays_where_it_is():
    line = curve([3 * i for i in range(700)])
    np.testing.assert_allclose(smoothed(line).y, line.y)


@given(st.integers(1, 3 * MAX_POINTS))
def test_a_thinned_curve_has_points_that_are_means_of_their_neighbours(n):
    whole = curve(list(np.random.default_rng(n).normal(size=n)))
    thin = thinned(whole)
    assert len(thin.y) == min(n, MAX_POINTS) == len(thin.x["step"])
    assert (np.diff(thin.x["step"]) > 0).all()
    if n % MAX_POINTS == 0:  # equal buckets: the mean of means is the mean
        assert thin.y.mean() == pytest.approx(whole.y.mean())
    assert whole.y.min() <= thin.y.min() and thin.y.max() <= whole.y.max()


def write(folder, lines) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_null_figures_leave_no_point_and_an_axis_is_offered_only_if_every_point_has_a_place(tmp_path):
    lines = [
        {"step": 1, "kind": "train", "loss": 8.0, "tokens": 10, "seconds": 1.0},
        {"step": 2, "kind": "train", "loss": None, "tokens": 20, "seconds": 2.0},
        {"step": 3, "kind": "train", "loss": 6.0, "tokens": 30},
        {"step": 3, "kind": "validation", "validation_loss": 7.0},
    ]
    write(tmp_path, lines)
    run = read_run(tmp_path)
    found = read_curve(run, "train", "loss", label="l", series=0, style="line")
    assert found is not None and found.y.tolist() == [8.0, 6.0]
    assert {axis: values.tolist() for axis, values in found.x.items()} == {"step": [1, 3], "tokens": [10, 30]}
    assert read_curve(run, "train", "mfu", label="m", series=0, style="line") is None


@pytest.mark.parametrize("value", ["3.2", [1], {"a": 1}, True])
def test_a_figure_that_is_no_number_is_refused_with_its_step(tmp_path, value):
    write(tmp_path, [{"step": 7, "kind": "train", "loss": value}])
    with pytest.raises(
        DataError, match=r"metrics.jsonl: step 7: loss should be a number, got .* remove the line"
    ):
        loss_curves([read_run(tmp_path)])


def test_one_run_has_a_colour_for_each_curve_and_several_have_a_colour_each(make_run):
    runs = read_runs([make_run("a"), make_run("b", seed=1)])
    alone = loss_curves(runs[:1])
    assert [(c.label, c.series, c.style) for c in alone] == [
        ("train", 0, "faint"),
        ("train", 0, "line"),
        ("validation", 1, "marked"),
    ]
    both = loss_curves(runs)
    assert [(c.label, c.series) for c in both] == [
        ("a · train", 0),
        ("a · validation", 0),
        ("b · train", 1),
        ("b · validation", 1),
    ]


def test_the_learning_rate_is_drawn_as_logged(make_run):
    run = read_run(make_run(steps=80))
    (drawn,) = figure_curves([run], "learning_rate", smooth=False)
    assert drawn.y.tolist() == [line["learning_rate"] for line in run.metrics if line["kind"] == "train"]


def test_a_run_that_has_only_begun_has_no_curve(tmp_path):
    write(tmp_path, [])
    run = read_run(tmp_path)
    assert loss_curves([run]) == [] == figure_curves([replace(run, name="x")], "mfu", smooth=True)
