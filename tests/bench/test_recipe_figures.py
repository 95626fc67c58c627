"""The figures of the benches of the recipe: p-values, ramps, optima."""

from itertools import pairwise

import pytest
from time_to_loss import BASELINE, OURS, judge, shape_of
from training import ramp_up
from transfer import vertex
from welch import one_sided_below, p_value, paired_p_value, two_sided, welch


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (12.706, 1, 0.05),
        (4.303, 2, 0.05),
        (9.925, 2, 0.01),
        (2.776, 4, 0.05),
        (8.610, 4, 0.001),
        (2.228, 10, 0.05),
    ],
)
def test_p_values_are_those_of_students_printed_table(t: float, freedom: int, p: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(p, rel=1e-3)
    assert two_sided(-t, freedom) == two_sided(t, freedom)
    assert one_sided_below(-t, freedom) == pytest.approx(p / 2, rel=1e-3)
    assert one_sided_below(t, freedom) == pytest.approx(1 - p / 2, rel=1e-3)


def test_welch_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = [3.1, 3.2, 3.15], [3.4, 3.3, 3.5, 3.45]
    reference = stats.ttest_ind(ours, theirs, equal_var=False)
    difference, t, freedom = welch(ours, theirs)
    assert difference == pytest.approx(-0.2625)
    assert (t, freedom) == (pytest.approx(reference.statistic), pytest.approx(reference.df))
    assert p_value(ours, theirs) == pytest.approx(reference.pvalue, rel=1e-6)
    differences = [a - b for a, b in zip(ours, theirs, strict=False)]
    assert paired_p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6)


def test_equal_samples_give_no_evidence() -> None:
    assert p_value([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert one_sided_below(0.0, 4) == 0.5


def test_a_ramp_reads_every_row_once_in_growing_steps() -> None:
    steps = ramp_up([(0.1, 2), (0.3, 4), (1.0, 8)], total_rows=160)
    assert [first for first, _ in steps] == [0, *(first + rows for first, rows in steps[:-1])]
    assert sum(rows for _, rows in steps) == 160
    assert all(first % rows == 0 for first, rows in steps)
    assert all(a <= b for (_, a), (_, b) in pairwise(steps))


def test_the_vertex_of_a_parabola_is_found() -> None:
    losses = {2.0**k: (k - 0.3) ** 2 for k in (-1, 0, 1)}
    assert vertex(losses, 1.0) == 0.3
    assert vertex({1.0: 0.5, 2.0: 1.0}, 1.0) is None


def test_the_ratio_is_that_of_the_shortest_budget_that_is_surely_better() -> None:
    def runs(*losses: float) -> list[dict[str, float]]:
        return [{"validation_loss": x, "bits_per_byte": x, "seconds": 1, "tokens": 2} for x in losses]

    found = {
        BASELINE: {"4.000": runs(4.0, 4.02, 3.98)},
        OURS: {"2.000": runs(3.0, 3.02, 2.98), "1.000": runs(3.8, 3.81, 3.79), "0.500": runs(3.9, 4.1, 4.0)},
    }
    verdict = judge(found, 4.0)
    assert verdict["ratio"] == 4.0
    assert [budget["p"] < 0.01 for budget in verdict[OURS]] == [True, True, False]


def test_both_arms_cost_the_same_flops_per_token() -> None:
    assert shape_of(BASELINE)["flops_per_token"] == shape_of(OURS)["flops_per_token"]
