"""`hasten classify`: each line or row keeps its place and gets what the model says of it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_finetune import ENCODER, labelled, lines, save_base

from hasten import stages
from hasten.cli import main
from hasten.core.config import parse
from hasten.defaults import filled
from hasten.recipe import Recipe


@pytest.fixture
def run(tmp_path: Path, byte_tokenizer: Any) -> Path:
    """A run that has learnt a little of which words are colours."""
    train(tmp_path, byte_tokenizer, labelled(tmp_path))
    return tmp_path / "run"


def train(tmp_path: Path, byte_tokenizer: Any, data: dict[str, Any]) -> Recipe:
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    given = {"cache": str(tmp_path / "cache"), "row_tokens": 64, "waive": ["leak", "duplicates"]}
    settings = {
        "output": str(tmp_path / "run"),
        "base": str(base),
        "device": "cpu",
        "data": {**data, **given},
    }
    steps = {"steps": 3, "batch_tokens": 256, "log_every": 1}
    recipe = parse(
        Recipe, filled({**settings, "train": steps, "evaluate": {"split": "validation"}}), "recipe.yaml"
    )
    stages.train(recipe)
    return recipe


def said_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_keep_their_columns_and_get_what_the_evaluation_saw(run, tmp_path, capsys):
    held_out = tmp_path / "held-out.jsonl"
    assert main(["classify", str(run), str(held_out), str(tmp_path / "said.jsonl")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "6 rows" in captured.err
    rows, said = said_in(held_out), said_in(tmp_path / "said.jsonl")
    assert [{name: row[name] for name in ("text", "label")} for row in said] == rows
    for row in said:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["probabilities"][row["predicted"]] == row["probability"] >= 0.5
        assert list(row["probabilities"].values()) == sorted(row["probabilities"].values(), reverse=True)
    assert main(["evaluate", str(run)]) == 0
    found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["classification"]
    right = sum(row["predicted"] == row["label"] for row in said)
    assert found["accuracy"] == pytest.approx(right / 6)


def test_lines_come_out_as_columns_whatever_other_lines_there_are(run, tmp_path, capsys, monkeypatch):
    texts = ["all the red", "", "six\ttabs", "my blue"]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{text}\n" for text in texts)))
    assert main(["classify", str(run)]) == 0
    captured = capsys.readouterr()
    found = [line.split("\t") for line in captured.out.splitlines()]
    assert [columns[2] for columns in found] == ["all the red", "", "six tabs", "my blue"]
    assert found[1][:2] == ["", ""] and "(no answer) 1" in captured.err
    for text, (predicted, probability, _) in zip(texts, found, strict=True):
        if text:
            (tmp_path / "alone.txt").write_text(text, encoding="utf-8")
            assert main(["classify", str(run), str(tmp_path / "alone.txt"), str(tmp_path / "alone.tsv")]) == 0
            alone = (tmp_path / "alone.tsv").read_text(encoding="utf-8").split("\t")
            assert alone[0] == predicted and float(alone[1]) == pytest.approx(float(probability), abs=0.01)


def test_groups_are_told_where_finer_labels_were_learnt(tmp_path, byte_tokenizer):
    rows = [
        {"text": f"{filler} {word}", "fine": word, "coarse": group}
        for word, group in {"red": "colour", "blue": "colour", "one": "number"}.items()
        for filler in ("see", "a", "this is", "take", "my", "no", "the", "such")
    ]
    task = {"kind": "labelled", "label_field": "fine", "group_field": "coarse"}
    split = {"validation": 0, "test": 0, "validation_sources": [lines(tmp_path / "held-out.jsonl", rows[:4])]}
    data = {"task": task, "sources": [lines(tmp_path / "rows.jsonl", rows)], "split": split}
    train(tmp_path, byte_tokenizer, data)
    unknown = lines(tmp_path / "unknown.jsonl", [{"text": "all the red"}])
    assert main(["classify", str(tmp_path / "run"), unknown, str(tmp_path / "said.jsonl")]) == 0
    (row,) = said_in(tmp_path / "said.jsonl")
    assert set(row["probabilities"]) == {"colour", "number"}
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.jsonl", "b.jsonl", "c.jsonl"], "takes one input and one output"),
        (["rows.jsonl", "said.csv"], "said.csv: is neither .jsonl nor .tsv"),
        (["other.jsonl", "said.jsonl"], "other.jsonl:1: has no column 'text'"),
        (["empty.txt"], "holds no text to classify"),
        (["gone.txt"], "gone.txt: cannot be read as UTF-8 text"),
        (["long.txt"], "has 102 tokens and a row 64"),
    ],
)
def test_what_cannot_be_answered_is_told(words, said, run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    lines(Path("other.jsonl"), [{"review": "red"}])
    Path("empty.txt").write_text("", encoding="utf-8")
    Path("long.txt").write_text("a" * 100 + "\n", encoding="utf-8")
    assert main(["classify", str(run), *words]) == 2 or "holds no text" in said
    assert said in capsys.readouterr().err


def test_a_model_without_classes_says_so(tmp_path, byte_tokenizer, capsys):
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    (tmp_path / "texts.txt").write_text("a text\n", encoding="utf-8")
    assert main(["classify", str(base), str(tmp_path / "texts.txt")]) == 2
    assert "has no classes of texts; train one with data.task.kind=labelled" in capsys.readouterr().err
