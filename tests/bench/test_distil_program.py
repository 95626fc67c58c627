"""The bench of distillation: what it trains, and how it counts what a student gained."""

from argparse import Namespace
from pathlib import Path

import distil_text
import pytest
from training import Results


def test_what_is_closed_is_a_share_of_the_way_to_the_teacher_seed_by_seed():
    losses = {"labels": [6.0, 5.0], "distilled": [5.5, 4.25]}
    found = distil_text.arm_figures(losses, "distilled", 4.0)
    assert found["by_seed"] == [0.25, 0.75] and found["closed"] == 0.5
    assert found["validation_loss"] == 4.875 and found["p_paired"] is not None
    assert "closed" not in distil_text.arm_figures(losses, "labels", 4.0)


@pytest.mark.parametrize("arm", distil_text.ARMS)
def test_every_arm_is_a_recipe_on_equally_many_tokens(arm, tmp_path):
    given = distil_text.student(arm, Path("runs/teacher"), distil_text.DIM)
    made = distil_text.text_recipe(tmp_path / arm, tmp_path, 8192, 3, given)
    assert (made.train.tokens, made.train.seed, made.train.optimizer.kind) == (8192, 3, "muon")
    assert (made.objective.kind == "distillation") == (arm != "labels")
    assert (made.base is not None) == (made.layers is not None) == (arm in ("layers", "sampled"))
    assert made.model.num_layers == distil_text.STUDENT_LAYERS


def test_the_teacher_has_eight_million_parameters():
    shape = distil_text.shape(distil_text.TEACHER_LAYERS, distil_text.DIM)
    made = distil_text.text_recipe(Path("teacher"), Path("cache"), 8192, 0, {"model": shape}).model
    assert made.model_copy(update={"vocab_size": 4096}).num_parameters == pytest.approx(8e6, rel=0.05)


def test_what_is_regained_is_a_share_of_what_the_cut_cost_seed_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(distil_text, "demo_text", lambda cache: None)
    given = Namespace(
        runs=tmp_path / "distil.json", cache=tmp_path, tokens=8192, teacher_tokens=1000, dim=96, seeds=2
    )
    results = Results(given.runs)
    name = distil_text.Lesson.begin(results, given).name
    losses = {"whole": 4.0, "cut": 5.0, "scratch": 7.0, "tokens": 50}
    results.runs = {
        f"{name} / teacher": {"validation_loss": 4.0},
        **{f"{name} / regained / {seed}": {**losses, "taught": 4.5 - seed / 4} for seed in range(2)},
    }
    found = distil_text.regained(results, given)
    assert found["by_seed"] == [0.5, 0.75] and found["regained"] == 0.625
    assert found["layers"] == [12, 9] and found["losses"]["taught"] == [4.5, 4.25]
