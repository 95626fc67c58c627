"""The planner against published measurements, as `bench/planner_exam.py` grades it."""

import json
from dataclasses import asdict
from pathlib import Path

import planner_exam
import planner_rows
import pytest

from hasten.plan.rates import FIT

ROOT = Path(__file__).parents[2]
SAVED = json.loads((ROOT / "bench/results/planner-exam.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def graded():
    """Every grade, now."""
    if not planner_exam.DATA.is_file():
        pytest.skip("published_throughput.csv is not here")
    return planner_exam.exam(planner_exam.DATA)


def test_flops_are_nvidias(graded):
    assert graded["flops_max_error"] <= 0.025
    assert graded["flops_mean_error"] <= 0.002


def test_memory_is_nanotrons(graded):
    assert graded["memory_max_error"] <= 0.05
    assert graded["memory_pipelined_max_error"] <= 0.08


def test_time_is_what_was_measured(graded):
    assert graded["time_rms_fitted"] <= 0.08
    assert graded["time_rms_heldout_without_context_parallel"] <= 0.15
    assert graded["time_rms_heldout_with_later_releases"] <= 0.15
    assert graded["time_rms_heldout"] <= 0.15


def test_the_layout_it_picks_is_the_best_published(graded):
    assert graded["layouts_worst"] >= 0.95
    assert len(graded["layouts"]) >= 6


def test_what_was_saved_is_what_comes_out(graded):
    assert graded.keys() == SAVED.keys()
    for name, value in graded.items():
        if isinstance(value, float):
            assert value == pytest.approx(SAVED[name], rel=1e-6), name
    assert SAVED["constants"] == asdict(FIT)


@pytest.mark.parametrize("page", ["plan.md", "plan.zh-CN.md"])
def test_the_figures_of_the_page_are_those_of_the_result_file(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    shown = {
        "flops_max_error": "2.5%", "flops_mean_error": "0.2%", "memory_max_error": "5%",
        "memory_pipelined_max_error": "8%", "time_rms_fitted": "8%", "time_rms_heldout": "15%",
        "time_rms_heldout_without_context_parallel": "", "time_rms_heldout_with_later_releases": "",
    }  # fmt: skip
    for name, asked in shown.items():
        figure = f"{SAVED[name]:.2%}" if name == "flops_mean_error" else f"{SAVED[name]:.1%}"
        assert any(figure in line and asked in line for line in table), (name, figure)
    for value in SAVED["constants"].values():
        assert any(f"{value:.3f}" in line for line in table), value
    assert (SAVED["time_rows_heldout"], sum(SAVED["flops_rows"].values())) == (35, 94)


def test_every_row_stands_somewhere_and_none_twice():
    if not planner_exam.DATA.is_file():
        pytest.skip("published_throughput.csv is not here")
    for row in planner_rows.published(planner_rows.read(planner_exam.DATA)):
        assert (
            planner_exam.fitted_on(row)
            or planner_exam.why_not(row)
            or row.system.startswith(planner_exam.GATED_SYSTEMS)
        )


def test_without_the_data_it_says_so(tmp_path, capsys):
    assert planner_exam.main(["--data", str(tmp_path / "none.csv")]) == 0
    assert "none.csv is not there" in json.loads(capsys.readouterr().out)["skipped"]
