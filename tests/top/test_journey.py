"""From a folder of text to a report, and again: what is redone and what is kept."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from tiny_finetune import DECODER, ENCODER, WORDS, like_its_own, save_base

from hasten import lookup as recipes
from hasten.cli import main
from hasten.core.config import dump
from hasten.lookup import find, shipped
from hasten.model.heads import with_classes
from hasten.recipe import Recipe
from hasten.train.horizon import Moment
from hasten.train.restore import best, latest
from hasten.train.run import Run

SUMMARY = {
    "parameters",
    "tokens",
    "seconds",
    "val_loss",
    "test_loss",
    "test_bits_per_byte",
    "test_accuracy",
    "parse_rate",
    "lzma_bits_per_byte",
    "lzma_stream_bits_per_byte",
    "report",
}
"""Of a decoder's journey with Python in its text."""


def stages_run(out: str) -> list[str]:
    """The stages that a journey's output says were done, not kept."""
    return [line.split()[1].rstrip(":") for line in out.splitlines() if ": done in " in line]


def weights(run: Path) -> bytes:
    folder = latest(run / "checkpoints")
    assert folder is not None
    return (folder / "weights/model.safetensors").read_bytes()


def test_a_journey_leaves_all_its_files_and_every_figure(recipe, tmp_path, capsys):
    assert main(["journey", str(recipe)]) == 0
    run = tmp_path / "run"
    out = capsys.readouterr().out
    assert stages_run(out) == ["prepare", "train", "evaluate", "generate", "report"]
    assert "Test loss" in out and "LZMA, each file" in out, "the table"
    assert all(line in out for line in ("the cat", "a dog")), "the samples"
    assert out.endswith(f"report: {run / 'report.html'}\n")
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() == SUMMARY, "and nothing of other kinds of models"
    assert summary["tokens"] == 4 * 128 and summary["test_bits_per_byte"] > 0
    assert Path(summary["report"]).read_text().startswith("<!doctype html>")
    assert [s["prompt"] for s in json.loads((run / "samples.json").read_text())] == ["the cat", "a dog"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["test"]["loss"] == summary["test_loss"]
    assert evaluation["checkpoint"] == str(best(run / "checkpoints")), "an artefact names its parent"
    resolved = recipes.load(run / "recipe.yaml")
    assert dump(resolved) == (run / "recipe.yaml").read_text()


def test_run_again_it_keeps_everything_but_the_report(recipe, tmp_path, capsys):
    main(["journey", str(recipe)])
    before = weights(tmp_path / "run")
    capsys.readouterr()
    assert main(["journey", str(recipe)]) == 0
    assert stages_run(capsys.readouterr().out) == ["report"]
    assert weights(tmp_path / "run") == before


@pytest.mark.parametrize(
    "change, redone",
    [
        ("generate.seed=5", ["generate", "report"]),
        ("evaluate.max_bytes=1000", ["evaluate", "report"]),
        ("train.seed=1", ["train", "evaluate", "generate", "report"]),
        ("data.tokenizer.vocab_size=290", ["prepare", "train", "evaluate", "generate", "report"]),
    ],
)
def test_a_change_redoes_what_it_reaches_and_nothing_else(recipe, tmp_path, change, redone, capsys):
    main(["journey", str(recipe)])
    capsys.readouterr()
    assert main(["journey", str(recipe), change]) == 0
    assert stages_run(capsys.readouterr().out) == redone
    # A training that begins anew leaves the earlier run beside it.
    assert (tmp_path / "run-1/checkpoints").exists() == ("train" in redone)


def test_a_changed_file_is_noticed(recipe, text_files, tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(text_files, own)
    words = [str(recipe), f"data.sources=[{own}]", "journey=[prepare, train]"]
    main(["journey", *words])
    (own / "story-00.txt").write_text("a new story about a cat and a dog in the old house. " * 20)
    capsys.readouterr()
    assert main(["journey", *words]) == 0
    assert stages_run(capsys.readouterr().out) == ["prepare", "train"]


def test_text_without_python_goes_the_same_way_without_a_parse_rate(recipe, text_files, tmp_path, capsys):
    assert main(["journey", str(recipe), f"data.sources=['{text_files}/*.txt']"]) == 0
    assert "no parse rate" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/summary.json").read_text()).keys() == SUMMARY - {"parse_rate"}


def test_training_again_says_that_it_is_done_and_changes_nothing(recipe, tmp_path):
    assert main(["train", str(recipe)]) == 0
    before, lines = weights(tmp_path / "run"), (tmp_path / "run/metrics.jsonl").read_bytes()
    assert main(["train", str(recipe)]) == 0
    assert weights(tmp_path / "run") == before
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == lines


def test_a_folder_that_holds_another_run_is_refused_by_the_first_difference(recipe, tmp_path, capsys):
    main(["train", str(recipe)])
    before = weights(tmp_path / "run")
    assert main(["train", str(recipe), "train.seed=7"]) == 2
    assert "holds another run (train.seed is 0 there and 7 here)" in capsys.readouterr().err
    assert weights(tmp_path / "run") == before


def stop_after(monkeypatch, steps: int) -> None:
    """Let a training be asked to stop, as by SIGTERM, once it has taken so many steps."""
    advance = Run.advance

    def advance_and_stop(self: Run, moment: Moment) -> None:
        advance(self, moment)
        if self.state.step == steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Run, "advance", advance_and_stop)


def test_a_stopped_journey_goes_on_where_it_was_and_ends_as_if_undisturbed(
    recipe, tmp_path, monkeypatch, capsys
):
    assert main(["journey", str(recipe), f"output={tmp_path / 'undisturbed'}"]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert main(["journey", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "stopped and saved; give the same command to go on" in out
    assert not (tmp_path / "run/evaluation.json").exists()
    assert main(["journey", str(recipe)]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")
    assert not (tmp_path / "run-1").exists()


def test_a_stopped_journey_whose_recipe_then_changes_begins_anew_beside_it(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        main(["journey", str(recipe)])
    assert main(["journey", str(recipe), "train.seed=3"]) == 0
    assert latest(tmp_path / "run-1/checkpoints") == tmp_path / "run-1/checkpoints/step-000002"
    assert (tmp_path / "run/summary.json").exists()


SMALL = (
    "model.dim=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "data.row_tokens=32",
    "train.batch_tokens=64",
)


def texts_for(recipe: Recipe, text_files: Path, pairs_file: Path) -> list[str]:
    """Texts, or pairs of them, in place of a recipe's own."""
    pairs = f"{{paths: {pairs_file}, source_field: en, target_field: de}}"
    source = pairs if recipe.model.kind == "seq2seq" else text_files
    clean = "data.clean={near_duplicates: null, repetition: false}"
    words = [] if recipe.base else ["data.tokenizer.vocab_size=300"]
    return [f"data.sources=[{source}]", clean, *words]


def rows_for(recipe: Recipe, tmp_path: Path) -> list[str]:
    """Rows of the recipe's task in place of its own."""
    rows = [f"data.{name}={json.dumps(value)}" for name, value in like_its_own(recipe, tmp_path).items()]
    return rows if recipe.base else [*rows, "data.tokenizer.vocab_size=260"]


def beginning_for(recipe: Recipe, tmp_path: Path, byte_tokenizer) -> list[str]:
    """A small base of the kind that the recipe's task asks for."""
    task = recipe.data.task if recipe.data else None
    encodes = task is not None and task.kind in ("labelled", "spans")
    shape, teaches = ENCODER if encodes else DECODER, recipe.objective.kind == "distillation"
    if encodes and teaches:
        shape = with_classes(shape, sorted(set(WORDS.values())))
    base = save_base(tmp_path / "base", shape, byte_tokenizer)
    stride = ["data.task.stride_tokens=16"] if task is not None and task.kind == "spans" else []
    taught = [f"objective.teacher={base}", "layers=[1]", "model={}"] if teaches else []
    return [f"base={base}", "data.row_tokens=128", "train.batch_tokens=256", *stride, *taught]


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_that_ships_trains_saves_and_resumes_bit_for_bit(
    name, text_files, pairs_file, tmp_path, byte_tokenizer
):
    """Two steps and two more are the same as four at once, with the recipe's own model made small."""
    own = recipes.load(find(name))
    data = rows_for(own, tmp_path) if own.data and own.data.task else texts_for(own, text_files, pairs_file)
    common = [
        *(beginning_for(own, tmp_path, byte_tokenizer) if own.base else SMALL),
        *data,
        f"data.cache={tmp_path / 'data'}",
        "train.minutes=null",
        "train.tokens=null",
        "train.epochs=null",
        "data.split={validation: 0.2, test: 0.2}",
        "train.steps=4",
        "train.validate_every=2",
        "train.validation_tokens=128",
    ]
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    assert main(["train", name, *common, f"output={straight}", "train.checkpoint_every=2"]) == 0
    assert main(["train", name, *common, f"output={halves}", "train.checkpoint_every=2"]) == 0
    shutil.rmtree(halves / "checkpoints/step-000004")
    assert main(["train", name, *common, f"output={halves}", "train.checkpoint_every=2"]) == 0
    assert weights(straight) == weights(halves)
    assert best(straight / "checkpoints") is not None
