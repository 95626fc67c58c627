"""The program that holds predictions against this machine: its cases, and one of them in small."""

import json
from pathlib import Path

import planner_here
import pytest

from hasten.model.config import ModelConfig
from hasten.plan import machine

SAVED = Path(__file__).parents[2] / "bench/results/planner-here.json"
TINY = planner_here.case("tiny", planner_here.decoder(64, 32, 2, 2), "fp32", "muon", (4, 2), 16, threads=1)


def shape_of(case):
    """What tells two trainings apart."""
    return json.dumps(
        [case["model"], case["precision"], case["optimizer"], case["parallel"], case["threads"]]
    )


def test_what_is_examined_was_not_tried_and_is_varied():
    examined, tried = (
        {shape_of(case) for case in cases} for cases in (planner_here.EXAMINED, planner_here.TRIED)
    )
    assert len(examined) == len(planner_here.EXAMINED) >= 12
    assert not examined & tried
    sizes = [ModelConfig(**case["model"]).num_parameters / 1e6 for case in planner_here.EXAMINED]
    assert min(sizes) < 1.5
    assert max(sizes) > 25
    for key in ("precision", "optimizer", "processes"):
        assert len({case[key] for case in planner_here.EXAMINED}) > 1, key


@pytest.mark.parametrize("case", planner_here.EXAMINED, ids=lambda case: case["name"])
def test_every_case_divides(case):
    replicas = case["parallel"].get("data", 1) * case["parallel"].get("shard", 1)
    assert case["rows"] % (replicas * case["micro_rows"]) == 0
    ModelConfig(**case["model"])


def test_a_training_says_what_was_predicted_and_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "machine_file", lambda: tmp_path / "machine.json")
    said = planner_here.train(TINY)
    assert said["parameters"] == ModelConfig(**TINY["model"]).num_parameters
    assert said["predicted_bytes"] > 0 < said["measured_bytes"]
    assert said["predicted_seconds"] is None  # nothing is known of the machine
    assert said["measured_seconds"] > 0


def test_the_saved_figures_are_of_these_cases():
    if not SAVED.is_file():
        pytest.skip("no result has been saved")
    saved = json.loads(SAVED.read_text(encoding="utf-8"))
    assert {one["name"] for one in saved["examined"]} <= {case["name"] for case in planner_here.EXAMINED}
    assert saved["cases"] == len(saved["examined"]) >= 12
    for one in saved["examined"]:
        assert one["memory_error"] == pytest.approx(one["predicted_bytes"] / one["measured_bytes"] - 1)
        assert one["time_error"] == pytest.approx(one["predicted_seconds"] / one["measured_seconds"] - 1)
