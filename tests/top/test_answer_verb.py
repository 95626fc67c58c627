"""`hasten answer`: each row or line that asks keeps its place and gets what stands in the text."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_finetune import ENCODER, lines, save_base, spans

from hasten import stages
from hasten.cli import main
from hasten.core.config import parse
from hasten.defaults import filled
from hasten.recipe import Recipe


@pytest.fixture
def run(tmp_path: Path, byte_tokenizer: Any) -> Path:
    """A run that has learnt a little of where answers stand."""
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    given = {"cache": str(tmp_path / "cache"), "row_tokens": 128, "waive": ["leak", "duplicates"]}
    settings = {"output": str(tmp_path / "run"), "base": str(base), "device": "cpu"}
    steps = {"steps": 3, "batch_tokens": 256, "log_every": 1}
    data = spans(tmp_path)
    data["split"]["test_sources"] = data["sources"]
    stages.train(
        parse(Recipe, filled({**settings, "data": {**data, **given}, "train": steps}), "recipe.yaml")
    )
    return tmp_path / "run"


def said_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(tmp_path: Path) -> list[dict[str, Any]]:
    texts = ["  the cat is red and the dog is blue", "北京的天空是蓝色的，海也是。", "six"]
    rows = [{"question": f"what is {n}?", "context": text, "extra": n} for n, text in enumerate(texts)]
    lines(tmp_path / "asked.jsonl", rows)
    return rows


def test_rows_keep_their_columns_and_get_what_the_evaluation_saw(run, tmp_path, capsys):
    rows = asked(tmp_path)
    assert main(["answer", str(run), str(tmp_path / "asked.jsonl"), str(tmp_path / "said.jsonl")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "answered 3, (no answer) 0" in captured.err
    said = said_in(tmp_path / "said.jsonl")
    for row, own in zip(rows, said, strict=True):
        assert {name: own[name] for name in row} == row and own["predicted"]
        assert row["context"][own["start"] :].startswith(own["predicted"])


def test_what_is_found_is_what_the_evaluation_scored(run, tmp_path):
    assert main(["evaluate", str(run)]) == 0
    found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["answers"]
    rows = [{"question": one["question"], "context": one["context"]} for one in found["examples"]]
    lines(tmp_path / "again.jsonl", rows)
    assert main(["answer", str(run), str(tmp_path / "again.jsonl"), str(tmp_path / "said.jsonl")]) == 0
    said = [row["predicted"] or "" for row in said_in(tmp_path / "said.jsonl")]
    assert said == [one["answer"] for one in found["examples"]] and len(said) > 2


def test_a_text_is_asked_line_by_line(run, tmp_path, capsys, monkeypatch):
    rows = asked(tmp_path)
    assert main(["answer", str(run), str(tmp_path / "asked.jsonl"), str(tmp_path / "said.jsonl")]) == 0
    (tmp_path / "text.txt").write_text(rows[0]["context"], encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("what is 0?\n\n  what is 0? \n"))
    capsys.readouterr()
    assert main(["answer", str(run), str(tmp_path / "text.txt")]) == 0
    captured = capsys.readouterr()
    first, second = [line.split("\t") for line in captured.out.splitlines()]
    assert first == second and first[2] == "what is 0?" and "answered 2" in captured.err
    assert first[0] == " ".join(said_in(tmp_path / "said.jsonl")[0]["predicted"].split())


def test_no_answer_is_given_beyond_the_threshold_of_the_recipe_or_of_the_evaluation(run, tmp_path, capsys):
    asked(tmp_path)
    words = ["answer", str(run), str(tmp_path / "asked.jsonl"), str(tmp_path / "said.jsonl")]
    assert main([*words, "evaluate.extraction.null_threshold=-1e9"]) == 0
    assert [row["predicted"] for row in said_in(tmp_path / "said.jsonl")] == [None] * 3
    assert all(
        row["start"] is None and row["above_none"] is not None for row in said_in(tmp_path / "said.jsonl")
    )
    assert main(["evaluate", str(run)]) == 0
    path = run / "evaluation.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["answers"]["null_threshold"] = -1e9
    path.write_text(json.dumps(found), encoding="utf-8")
    assert main(words) == 0
    assert [row["predicted"] for row in said_in(tmp_path / "said.jsonl")] == [None] * 3
    path.write_text(json.dumps({**found, "checkpoint": "of/another/model"}), encoding="utf-8")
    assert main(words) == 0
    assert all(row["predicted"] for row in said_in(tmp_path / "said.jsonl"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a file: questions.jsonl, or text.txt"),
        (["rows.jsonl", "said.csv"], "said.csv: is neither .jsonl nor .tsv"),
        (["other.jsonl", "said.jsonl"], "other.jsonl:1: has no column 'context'"),
        (["empty.txt"], "empty.txt: holds no text to look for answers in"),
        (["text.txt"], "standard input: holds no question"),
        (["gone.txt"], "gone.txt: cannot be read as UTF-8 text"),
    ],
)
def test_what_cannot_be_answered_is_told(words, said, run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    lines(Path("other.jsonl"), [{"question": "red"}])
    Path("empty.txt").write_text("\n", encoding="utf-8")
    Path("text.txt").write_text("a text", encoding="utf-8")
    assert main(["answer", str(run), *words]) == 2 or "holds no question" in said
    assert said in capsys.readouterr().err


def test_a_model_that_says_no_places_says_so(tmp_path, byte_tokenizer, capsys):
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    asked(tmp_path)
    assert main(["answer", str(base), str(tmp_path / "asked.jsonl")]) == 2
    assert "does not say where an answer begins and ends" in capsys.readouterr().err
