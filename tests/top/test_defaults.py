"""What follows from a recipe's task and base where it says nothing, and that nothing said is changed."""

import pytest

from hasten.defaults import EPOCHS, OPTIMIZER, SCHEDULE, filled
from hasten.model.config import ModelConfig
from hasten.train.optim import AdamWConfig, Rates


def test_a_recipe_without_task_and_base_gets_an_objective_and_nothing_else():
    recipe = {"data": {"sources": ["a.txt"]}, "train": {"steps": 3}}
    assert filled(recipe) == {**recipe, "objective": {"kind": "cross_entropy"}}
    assert filled({"objective": {"label_smoothing": 0.1}})["objective"] == {
        "kind": "cross_entropy",
        "label_smoothing": 0.1,
    }


@pytest.mark.parametrize("task", sorted(EPOCHS))
def test_a_task_says_how_long_and_by_what(task):
    result = filled({"base": "there", "data": {"task": {"kind": task}}})
    assert result["train"]["epochs"] == EPOCHS[task]
    assert result["train"]["optimizer"] == OPTIMIZER and result["train"]["schedule"] == SCHEDULE
    assert result["train"].get("metric", "validation_loss") == (
        "validation_loss" if task == "chat" else "validation_accuracy"
    )
    kinds = {"spans": "spans", "preferences": "preference"}
    assert result["objective"]["kind"] == kinds.get(task, "cross_entropy")


def test_what_a_recipe_says_stays():
    said = {
        "base": "there",
        "objective": {"kind": "preference", "method": "ipo"},
        "data": {"task": {"kind": "preferences"}},
        "train": {
            "steps": 7,
            "optimizer": {"kind": "muon"},
            "schedule": {"kind": "wsd"},
            "metric": "validation_loss",
        },
    }
    assert filled(said) == said


@pytest.mark.parametrize("recipe", [{}, {"data": 3}, {"data": {"task": "chat"}}, {"train": 5, "base": "x"}])
def test_what_is_no_recipe_is_left_for_the_check_to_refuse(recipe):
    assert filled(recipe).items() >= recipe.items()


def test_rates_follow_the_width_and_pairs_take_ten_times_as_much():
    """Between 2e-5 and 5e-5 at BERT's width (Devlin et al. 2019, A.3), 1e-5 to 2e-5 at that of 7B models."""
    auto = AdamWConfig(learning_rate="auto")
    small, large = (Rates.at(auto, ModelConfig(vocab_size=9, dim=dim), 1024) for dim in (768, 4096))
    assert 2e-5 < small["matrix"] < 5e-5 and 1e-5 < large["matrix"] < 2e-5
    assert small["adapter"] == 10 * small["matrix"]
    given = AdamWConfig(learning_rate="auto", adapter_learning_rate=3e-4)
    assert Rates.at(given, ModelConfig(vocab_size=9, dim=768), 1024)["adapter"] == 3e-4
