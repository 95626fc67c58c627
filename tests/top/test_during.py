"""A task's score while it is learnt is what `evaluate` finds, changes nothing, and may end the training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetune import DECODER, ENCODER, chats, labelled, lines, preferred, save_base, spans

from hasten import lookup as recipes
from hasten import stages
from hasten.core.errors import ConfigError
from hasten.recipe import Recipe
from hasten.report.summary import summary as figures_of_run
from hasten.train.restore import best, read_tensors

WRITTEN = {"metric": "bleu", "words": "char", "max_new_tokens": 8}
LORA = {"adapt": {"kind": "lora", "rank": 16}}


def answered(tmp_path: Path) -> dict[str, Any]:
    """Chats, some of them to validate on."""
    data = chats(tmp_path)
    rows = [{"prompt": f"say {word}", "completion": word * 2} for word in ("ay", "bw", "cx", "dz")]
    data["split"]["validation_sources"] = [lines(tmp_path / "validation.jsonl", rows)]
    return data


def found_in_texts(tmp_path: Path) -> dict[str, Any]:
    """Questions, some of them to validate on."""
    data = spans(tmp_path)
    data["split"] = {"validation": 0, "test": 0, "validation_sources": data["sources"]}
    return {**data, "waive": ["leak", "duplicates"]}


def recipe_of(tmp_path: Path, base: Path | None, data: dict[str, Any], *words: str, **more: Any) -> Recipe:
    """A short training with three looks; evaluate scores the same examples."""
    train = {"steps": 6, "batch_tokens": 128, "precision": "fp32", "validate_every": 3, "checkpoint_every": 3}
    evaluate = {"split": "validation", "precision": "fp32", "during_training": 64, "written": None}
    given = {
        "output": str(tmp_path / "run"),
        **({} if base is None else {"base": str(base)}),
        "data": {"row_tokens": 64, "cache": str(tmp_path / "cache"), **data},
        "train": {**train, **more.pop("train", {})},
        "evaluate": {**evaluate, **more.pop("evaluate", {})},
        **more,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(given), encoding="utf-8")
    return recipes.read(str(path), ["device=cpu", *words])


def scores(folder: Path) -> list[dict[str, Any]]:
    """The lines of scores."""
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == "score"]


def fast(rate: float) -> dict[str, Any]:
    """Long enough to learn something."""
    adamw = {"kind": "adamw", "learning_rate": rate, "adapter_learning_rate": rate}
    return {
        "steps": 120,
        "validate_every": 60,
        "checkpoint_every": 60,
        "optimizer": adamw,
    }


def of_labels(found: dict[str, Any]) -> float:
    return 100 * found["classification"]["macro_f1"]


def of_answers(found: dict[str, Any]) -> float:
    return found["answers"]["f1"]


def of_writing(found: dict[str, Any]) -> float:
    return found["written"]["score"]


@pytest.mark.parametrize(
    ("data", "more", "score"),
    [
        (labelled, {"train": fast(3e-3)}, of_labels),
        (found_in_texts, {"train": fast(3e-3)}, of_answers),
        (answered, {"train": fast(1e-2), "evaluate": {"written": WRITTEN}}, of_writing),
        (answered, {"train": fast(1e-2), "evaluate": {"written": WRITTEN}, **LORA}, of_writing),
    ],
    ids=["labels", "spans", "chat", "lora"],
)
def test_the_score_is_that_of_evaluate_and_looking_changes_nothing(
    tmp_path, byte_tokenizer, data, more, score
):
    config = DECODER if data is answered else ENCODER
    base, rows = save_base(tmp_path / "base", config, byte_tokenizer), data(tmp_path)
    recipe = recipe_of(tmp_path, base, rows, **more)
    summary = stages.train(recipe)
    looked = scores(tmp_path / "run")
    assert [line["step"] for line in looked] == [0, 60, 120] and looked[-1]["score"] > looked[0]["score"]
    assert summary.validation["score"] == looked[-1]["score"]
    found = stages.evaluate(
        recipe.model_copy(update={"checkpoint": tmp_path / "run/checkpoints/step-000120"})
    )
    assert score(found) == pytest.approx(looked[-1]["score"], abs=1e-6)
    plain = recipe_of(
        tmp_path, base, rows, "evaluate.during_training=0", f"output={tmp_path / 'plain'}", **more
    )
    stages.train(plain)
    assert not scores(tmp_path / "plain")
    ends = [
        read_tensors(tmp_path / name / "checkpoints/step-000120", "weights/model")
        for name in ("run", "plain")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_translations_are_scored_while_they_are_learnt(tmp_path, pairs_file):
    data = {
        "sources": [{"paths": str(pairs_file), "source_field": "en", "target_field": "de"}],
        "split": {"validation": 0.2, "test": 0.1},
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
    }
    shape = {"kind": "seq2seq", "dim": 32, "num_layers": 1, "num_heads": 2, "max_positions": 64}
    greedy = {"translation": {"beams": 1, "max_new_tokens": 32}}
    recipe = recipe_of(tmp_path, None, data, model=shape, train={"metric": "score"}, evaluate=greedy)
    summary = stages.train(recipe)
    assert {line["counted"] for line in scores(tmp_path / "run")} == {"BLEU"}
    last = {"checkpoint": tmp_path / "run/checkpoints/step-000006"}
    found = stages.evaluate(recipe.model_copy(update=last))["translation"]
    assert summary.validation["score"] == pytest.approx(found["bleu"]["score"], abs=1e-6)


def test_the_best_checkpoint_is_that_of_the_best_score_and_patience_goes_by_it(tmp_path, byte_tokenizer):
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    still = {
        "metric": "score",
        "patience": 2,
        "steps": 60,
        "optimizer": {"kind": "adamw", "learning_rate": 1e-12},
    }
    recipe = recipe_of(tmp_path, base, labelled(tmp_path), train=still)
    summary = stages.train(recipe)
    assert (summary.completed, summary.steps) == (True, 6)
    chosen = best(tmp_path / "run/checkpoints")
    assert chosen is not None
    note = json.loads((chosen / "manifest.json").read_text())["note"]
    highest = max(line["score"] for line in scores(tmp_path / "run"))
    assert note["metric"] == 100 - highest
    assert figures_of_run(tmp_path / "run")["best_score"] == highest


def test_the_rule_fills_in_how_many_examples_are_scored(tmp_path, byte_tokenizer):
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    path = tmp_path / "short.yaml"
    data = {**labelled(tmp_path), "row_tokens": 64}
    path.write_text(json.dumps({"base": str(base), "data": data, "train": {"metric": "score"}}))
    assert recipes.load(path).evaluate.during_training == 64
    with pytest.raises(ConfigError, match=r"train\.metric is score; write evaluate\.during_training: 64"):
        recipes.load(path, ["evaluate.during_training=0"])


@pytest.mark.parametrize(
    ("data", "evaluate", "complaint"),
    [
        (preferred, {}, "here nothing is scored but by the figures of validation"),
        (answered, {}, r"say by evaluate\.written how answers are scored"),
        (answered, {"written": {"metric": "programs"}, "problems": "x"}, r"would choose by the problems"),
        (chats, {"written": WRITTEN}, "examples of the validation split, which has none"),
    ],
    ids=["preferences", "unwritten", "programs", "no-split"],
)
def test_what_has_no_score_is_refused_before_the_folder_is_claimed(
    tmp_path, byte_tokenizer, data, evaluate, complaint
):
    base = save_base(tmp_path / "base", DECODER, byte_tokenizer)
    with pytest.raises(ConfigError, match=complaint):
        stages.train(recipe_of(tmp_path, base, data(tmp_path), evaluate=evaluate))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("packed", ["model", "nf4"])
def test_an_adapter_is_scored_where_its_frozen_matrices_are_kept_small(tmp_path, byte_tokenizer, packed):
    base = save_base(tmp_path / "base", DECODER, byte_tokenizer)
    more = {"train": {"precision": "bf16"}, "evaluate": {"written": WRITTEN}}
    adapt = {"kind": "lora", "rank": 4, "base": packed}
    stages.train(recipe_of(tmp_path, base, answered(tmp_path), adapt=adapt, **more))
    assert [line["step"] for line in scores(tmp_path / "run")] == [0, 3, 6]


@pytest.mark.slow
def test_several_processes_stop_by_what_the_first_has_seen(tmp_path, byte_tokenizer):
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    adamw = {"kind": "adamw", "learning_rate": 1e-12}
    recipe_of(
        tmp_path,
        base,
        labelled(tmp_path),
        train={"metric": "score", "patience": 2, "steps": 60, "optimizer": adamw},
    )

    def train(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hasten", "train", "recipe.yaml", "device=cpu", *words]
        return subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)

    done = train("parallel.data=2")
    assert done.returncode == 0, done.stderr
    assert "trained 6 steps" in done.stdout
    spread = train("parallel.shard=2", "output=other")
    assert (
        spread.returncode and "which parallel.shard spreads over processes" in spread.stdout + spread.stderr
    )
