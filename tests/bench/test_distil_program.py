"""The bench of distillation: what it trains, and how it counts what a student gained."""

from pathlib import Path

import distil
import pytest


def test_what_is_closed_is_a_share_of_the_way_to_the_teacher_seed_by_seed():
    losses = {"labels": [6.0, 5.0], "distilled": [5.5, 4.25]}
    found = distil.arm_figures(losses, "distilled", 4.0)
    assert found["by_seed"] == [0.25, 0.75] and found["closed"] == 0.5
    assert found["validation_loss"] == 4.875 and found["p_paired"] is not None
    assert "closed" not in distil.arm_figures(losses, "labels", 4.0)


@pytest.mark.parametrize("arm", distil.ARMS)
def test_every_arm_is_a_recipe_on_equally_many_tokens(arm, tmp_path):
    given = distil.student(arm, Path("runs/teacher"), distil.DIM)
    made = distil.text_recipe(tmp_path / arm, tmp_path, 8192, 3, given)
    assert (made.train.tokens, made.train.seed, made.train.optimizer.kind) == (8192, 3, "muon")
    assert (made.objective.kind == "distillation") == (arm != "labels")
    assert (made.base is not None) == (made.layers is not None) == (arm in ("layers", "sampled"))
    assert made.model.num_layers == distil.STUDENT_LAYERS


def test_the_teacher_has_eight_million_parameters():
    shape = distil.shape(distil.TEACHER_LAYERS, distil.DIM)
    made = distil.text_recipe(Path("teacher"), Path("cache"), 8192, 0, {"model": shape}).model
    assert made.model_copy(update={"vocab_size": 4096}).num_parameters == pytest.approx(8e6, rel=0.05)
