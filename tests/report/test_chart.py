"""Charts put figures where they belong."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.report.chart import HEIGHT, WIDTH, Scale, log_ticks, make_chart, nice_step, ticks
from hasten.report.curves import Curve
from hasten.report.figures import compact, significant


def curve(x: list[float], y: list[float], label: str = "c", style: str = "line") -> Curve:
    return Curve(
        label, 0, style, {"step": np.array(x, float), "seconds": np.array(x, float)}, np.array(y, float)
    )


def corners(path: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split())) for pair in re.findall(r"[-\d.]+ [-\d.]+", path)]


def test_the_line_goes_through_the_figures():
    x, y = [0.0, 50.0, 100.0], [2.0, 6.0, 4.0]
    chart = make_chart("loss", "nats", [curve(x, y)])
    panel = chart.panels[0]
    at = {tick.label: tick.place for tick in panel.y_ticks}
    drawn = corners(panel.strokes[0].path)
    assert [px for px, _ in drawn] == [0, WIDTH / 2, WIDTH]
    for (_, height), value in zip(drawn, y, strict=True):
        assert height == pytest.approx(HEIGHT * (1 - at[f"{value:g}"]), abs=0.06), "as high as its own label"


def test_a_logarithmic_axis_gives_each_power_the_same_room():
    panel = make_chart("loss", "nats", [curve([1, 10, 100, 1000], [4, 3, 2, 1])], log=True).panels[2]
    assert panel.log and panel.axis == "step"
    np.testing.assert_allclose(np.diff([x for x, _ in corners(panel.strokes[0].path)]), WIDTH / 3, atol=0.1)
    assert [tick.label for tick in panel.x_ticks] == ["1", "10", "100", "1k"]


def test_what_stands_at_zero_has_no_place_on_a_logarithmic_axis():
    panel = make_chart("loss", "nats", [curve([0, 1, 100], [9, 3, 2])], log=True).panels[2]
    assert len(corners(panel.strokes[0].path)) == 2


def test_time_is_in_the_unit_that_gives_small_numbers():
    def unit(seconds: float) -> str:
        chart = make_chart("loss", "nats", [curve([1, seconds], [2, 1])])
        return next(panel.unit for panel in chart.panels if panel.axis == "seconds")

    assert [unit(s) for s in (90, 600, 30_000)] == ["seconds", "minutes", "hours"]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 9))
def test_ticks_are_round_evenly_spaced_and_inside(low, span, count):
    scale = Scale(low, low + span)
    found = ticks(scale, significant, count)
    assert 1 <= len(found) <= count + 2
    assert all(-1e-6 <= tick.place <= 1 + 1e-6 for tick in found)
    steps = np.diff([tick.place for tick in found]) * (scale.high - scale.low)
    np.testing.assert_allclose(steps, nice_step(scale.high - scale.low, count), rtol=1e-3)


@given(st.floats(0, 1e4), st.floats(1e-3, 1e4))
def test_neighbouring_ticks_never_read_the_same(low, span):
    labels = [tick.label for tick in ticks(Scale(low, low + span), significant, 8)]
    assert len(set(labels)) == len(labels)


def test_steps_are_counted_in_whole_numbers():
    panel = make_chart("loss", "nats", [curve([0, 1, 2], [3, 2, 1])]).panels[0]
    assert [tick.label for tick in panel.x_ticks] == ["0", "1", "2"]


@given(st.floats(1e-6, 1e6), st.integers(2, 9))
def test_a_nice_step_is_one_two_or_five_times_a_power_of_ten(span, count):
    step = nice_step(span, count)
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - n) for n in (1, 2, 5)) < 1e-6
    assert span / count * 0.998 <= step <= span / count * 2.6


@given(st.floats(1, 1e5), st.floats(1.5, 1e6))
def test_logarithmic_ticks_lie_where_their_number_is(low, ratio):
    scale = Scale(low, low * ratio, log=True)
    for tick in log_ticks(scale, compact):
        letter = tick.label[-1] if tick.label[-1].isalpha() else ""
        value = (
            float(tick.label.removesuffix(letter)) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[letter]
        )
        assert tick.place == pytest.approx(math.log(value / low) / math.log(ratio), abs=1e-6)
        assert 0 <= tick.place <= 1


@pytest.mark.parametrize("y", [[3.0], [3.0, 3.0, 3.0], [0.0, 0.0]])
def test_a_flat_curve_and_a_single_point_are_drawn(y):
    chart = make_chart("loss", "nats", [curve(list(range(1, len(y) + 1)), y)], log=True)
    for panel in chart.panels:
        assert panel.strokes and all(
            math.isfinite(v) for pair in corners(panel.strokes[0].path) for v in pair
        )
        assert panel.strokes[0].style == ("dot" if len(y) == 1 else "line")


def test_marked_curves_show_each_point():
    panel = make_chart("loss", "nats", [curve([1, 2, 3], [3, 2, 1], style="marked")]).panels[0]
    line, dots = panel.strokes
    assert corners(line.path) == corners(dots.path) and dots.path.count("h0") == 3


def test_no_curve_is_no_chart():
    assert make_chart("loss", "nats", []) is None


def test_the_pointer_reads_the_figures_and_faint_curves_are_left_out():
    chart = make_chart(
        "loss", "nats", [curve([1, 2], [5, 4], style="faint"), curve([1, 2], [5, 4.5], "</script>")]
    )
    text = chart.panels[0].reading
    assert "<" not in text and ">" not in text
    (read,) = json.loads(text)["curves"]
    assert read["label"] == "</script>" and read["y"] == [5, 4.5] and read["at"] == [1, 2]
    assert [c.label for c in chart.legend] == ["</script>"]


def test_an_axis_that_begins_at_zero_does():
    panel = make_chart("mfu", "", [curve([1, 2], [0.4, 0.5])], zero=True).panels[0]
    assert panel.y_ticks[0].label == "0" and panel.y_ticks[0].place == 0
