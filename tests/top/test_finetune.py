"""Fine-tuning from a recipe: a base, a task, and what a run's folder holds at the end."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetune import DECODER, ENCODER, WORDS, chats, labelled, preferred, save_base, spans

from hasten import lookup as recipes
from hasten import stages
from hasten.adapt.lora import adapted_layers
from hasten.cli import main
from hasten.core.config import dump
from hasten.core.errors import CheckpointError, ConfigError
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build
from hasten.recipe import Recipe
from hasten.train.load import load_adapted, load_model
from hasten.train.restore import checkpoint_in, read_tensors


@pytest.fixture
def base(tmp_path, byte_tokenizer):
    """`base(config)`: a folder with a model of this shape."""
    return lambda config: save_base(tmp_path / f"base-{config.kind}", config, byte_tokenizer)


def written(tmp_path: Path, base: Path, data: dict[str, Any], **more: Any) -> Path:
    """A recipe file."""
    given = {
        "output": str(tmp_path / "run"),
        "base": str(base),
        "data": {**data, "row_tokens": 64, "cache": str(tmp_path / "cache")},
        "train": {
            "steps": 6,
            "batch_tokens": 128,
            "log_every": 1,
            "validate_every": 3,
            "checkpoint_every": 3,
        },
        "evaluate": {"split": "validation" if data["task"]["kind"] == "labelled" else "test"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**given, **more}), encoding="utf-8")
    return path


def read(path: Path, *overrides: str) -> Recipe:
    return recipes.read(str(path), list(overrides))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(checkpoint_in(folder), "weights/model")


def test_a_classifier_begins_with_the_base_and_learns_its_labels(tmp_path, base):
    path = written(tmp_path, base(ENCODER), labelled(tmp_path))
    longer = {"steps": 120, "batch_tokens": 256, "optimizer": {"kind": "adamw", "learning_rate": 3e-3}}
    recipe = read(path, *(f"train.{name}={json.dumps(value)}" for name, value in longer.items()))
    assert recipe.train.metric == "validation_accuracy"
    assert stages.train(recipe).completed
    model, _ = load_model(tmp_path / "run")
    assert model.config.class_names == ("colour", "number") and model.config.head == "pooled_classes"
    result = stages.evaluate(recipe)["classification"]
    assert result["accuracy"] == 1.0 and result["examples"] == len(WORDS)
    begun = dict(load_model(tmp_path / "base-encoder")[0].named_parameters())
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} - {
        n.partition(".")[0] for n in begun
    } == {
        "head",
        "head_bias",
        "pooler",
    }


@pytest.mark.parametrize("packed", ["model", "nf4"])
def test_a_run_of_pairs_keeps_the_pairs_alone_and_stands_beside_its_base(tmp_path, base, packed):
    folder = base(DECODER)
    path = written(tmp_path, folder, chats(tmp_path), adapt={"kind": "lora", "rank": 4, "base": packed})
    assert stages.train(read(path)).completed
    kept = weights(tmp_path / "run")
    assert kept and all("lora_" in name for name in kept)
    beside, _ = load_adapted(tmp_path / "run")
    plain, _ = load_model(tmp_path / "run")
    assert len(adapted_layers(beside)) == 14 and not adapted_layers(plain)
    tokens = torch.arange(20)[None] + 97
    both = [model.logits(model(tokens)) for model in (beside, plain)]
    assert torch.allclose(*both, atol=1e-5) and not torch.equal(both[0], torch.zeros_like(both[0]))
    assert any(bool(tensor.any()) for name, tensor in kept.items() if name.endswith("lora_b"))
    if packed == "model":
        assert main(["export", str(tmp_path / "run"), "to=peft", f"output={tmp_path / 'adapter'}"]) == 0
        again, _ = load_model(tmp_path / "adapter")  # in PEFT's layout, beside the same base
        assert torch.allclose(again.logits(again(tokens)), both[1], atol=1e-5)


def test_a_base_that_has_changed_or_gone_is_refused(tmp_path, base):
    folder = base(DECODER)
    stages.train(read(written(tmp_path, folder, chats(tmp_path), adapt={"kind": "lora", "rank": 4})))
    save_hugging_face(build(DECODER, 1), folder)
    with pytest.raises(CheckpointError, match="was trained beside other weights than"):
        load_model(tmp_path / "run")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"was trained beside the model in .*base-decoder, which cannot be read"
    ):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("adapt", [None, {"kind": "lora", "rank": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("task", [chats, preferred], ids=["chat", "preferences"])
def test_a_training_that_is_gone_on_with_ends_as_one_in_one_piece(tmp_path, base, task, adapt):
    path = written(tmp_path, base(DECODER), task(tmp_path), adapt=adapt)
    whole, cut = (f"output={tmp_path / name}" for name in ("whole", "cut"))
    stages.train(read(path, whole))
    stages.train(read(path, cut))
    shutil.rmtree(tmp_path / "cut/checkpoints/step-000006")  # as if it had ended after three steps
    stages.train(read(path, cut))
    ends = [weights(tmp_path / name / "checkpoints/step-000006") for name in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_is_measured_of_each_task(tmp_path, base):
    chat = written(tmp_path, base(DECODER), chats(tmp_path))
    overrides = ["evaluate.written={metric: exact, max_new_tokens: 4}", "device=cpu"]
    stages.train(read(chat))
    found = stages.evaluate(read(chat, *overrides))
    assert found["supervised"]["targets"] == found["supervised"]["base"]["targets"] > 0
    assert found["supervised"]["loss"] != found["supervised"]["base"]["loss"]
    assert found["written"]["metric"] == "exact" and found["written"]["asked"] == 3
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["supervised"] == found["supervised"]


def test_a_continued_pretraining_says_what_it_gained_and_what_it_cost(tmp_path, base):
    texts = {"here": "the cat sat on the mat, again and again. ", "there": "0123 4567 89 "}
    for name, text in texts.items():
        for number in range(40 if name == "here" else 3):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.txt").write_text(f"{number} {text * 12}", encoding="utf-8")
    given = {
        "output": str(tmp_path / "run"),
        "base": str(base(DECODER)),
        "data": {
            "sources": [str(tmp_path / "here")],
            "split": {"validation": 0.1, "test": 0.2, "by": "document"},
            "clean": {"near_duplicates": None, "repetition": False},
            "row_tokens": 64,
            "cache": str(tmp_path / "cache"),
        },
        "train": {"steps": 60, "batch_tokens": 256, "optimizer": {"kind": "adamw", "learning_rate": 3e-3}},
        "evaluate": {"elsewhere": [str(tmp_path / "there")], "baselines": False},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(given), encoding="utf-8")
    recipe = read(tmp_path / "recipe.yaml")
    stages.train(recipe)
    found = stages.evaluate(recipe)
    assert found["continued"]["test"]["after"] == found["test"]
    assert found["continued"]["test"]["change"] < -1 < found["continued"]["there"]["change"]
    page = stages.report(recipe).read_text(encoding="utf-8")
    assert f"{found['continued']['there']['change']:+.3f}" in page
    plain = stages.evaluate(recipe.model_copy(update={"checkpoint": tmp_path / "base-decoder"}))
    assert plain["test"] == found["continued"]["test"]["before"]
    assert all(part["change"] == 0 for part in plain["continued"].values())


def test_preferences_are_measured_from_the_base(tmp_path, base):
    path = written(tmp_path, base(DECODER), preferred(tmp_path))
    recipe = read(path, "train.optimizer={kind: adamw, learning_rate: 0.003}", "train.steps=20")
    stages.train(recipe)
    found = stages.evaluate(recipe)["preferences"]
    assert found["pairs"] > 0 and found["margin"] > 0 and found["loss"] < 0.6931
    untouched = stages.evaluate(recipe.model_copy(update={"checkpoint": tmp_path / "base-decoder"}))[
        "preferences"
    ]
    assert untouched["margin"] == 0 and untouched["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_answers_are_found_in_texts(tmp_path, base):
    recipe = read(written(tmp_path, base(ENCODER), spans(tmp_path)))
    assert recipe.objective.kind == "spans"
    stages.train(recipe)
    assert stages.evaluate(recipe)["answers"]["questions"] == 1


def test_a_run_stops_when_validations_no_longer_get_better(tmp_path, base):
    path = written(tmp_path, base(ENCODER), labelled(tmp_path))
    still = ["train.optimizer={kind: adamw, learning_rate: 1.0e-12}", "train.patience=2", "train.steps=60"]
    summary = stages.train(read(path, *still))
    # The first validation, before step 1, is the best; two that are not better follow it.
    assert (summary.completed, summary.steps) == (True, 6)
    folder = tmp_path / "run/checkpoints"
    note = json.loads((folder / "step-000006/manifest.json").read_text())["note"]
    assert note["metric"] == pytest.approx(1 - summary.validation["validation_accuracy"])


def test_the_recipe_that_is_kept_says_all_that_was_filled_in(tmp_path, base):
    path = written(tmp_path, base(DECODER), preferred(tmp_path))
    recipe = read(path)
    assert recipe.train.optimizer.learning_rate == "auto" and recipe.train.schedule.kind == "linear"
    assert recipe.objective.kind == "preference"
    again = tmp_path / "again.yaml"
    again.write_text(dump(recipe), encoding="utf-8")
    assert read(again) == recipe


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"base": None, "adapt": {"kind": "lora"}}, "adapt needs a model to stand beside; write base"),
        ({"model": {"dim": 64}}, r"model\.dim is for a new model, and base"),
        (
            {"adapt": {"kind": "lora"}, "train": {"steps": 1, "optimizer": {"kind": "muon"}}},
            "which muon is not made for",
        ),
    ],
    ids=["adapt", "model", "muon"],
)
def test_what_does_not_go_together_is_refused(tmp_path, base, change, complaint):
    path = written(tmp_path, base(DECODER), chats(tmp_path))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        read(path)


def test_an_objective_of_another_task_is_refused(tmp_path, base):
    path = written(tmp_path, base(DECODER), chats(tmp_path), objective={"kind": "preference"})
    with pytest.raises(
        ConfigError, match=r"objective\.kind is preference, and chat is learnt by cross_entropy"
    ):
        stages.train(read(path))


def test_an_encoder_cannot_chat(tmp_path, base):
    with pytest.raises(ConfigError, match="a conversation is for a decoder, not for encoder"):
        stages.train(read(written(tmp_path, base(ENCODER), chats(tmp_path))))


def test_a_new_head_is_heard_from_the_first_step(tmp_path, base):
    """It is drawn to the measure of what it reads: near zero, the first loss would be ln 2."""
    stages.train(read(written(tmp_path, base(ENCODER), labelled(tmp_path))))
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and abs(first["validation_loss"] - math.log(2)) > 0.03
