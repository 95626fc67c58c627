"""The guides of fine-tuning say what is so: recipes load, names are all there, the README's commands run."""

import io
import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml
from tiny_finetune import DECODER, ENCODER, save_base

from hasten import lookup as recipes
from hasten.cli import main
from hasten.core.config import dump
from hasten.data.config import Task
from hasten.data.tasks.findings import NAMES
from hasten.evaluate.tasks import source_of
from hasten.lookup import find, shipped
from hasten.model.heads import with_spans
from hasten.objective.preference import BETAS

ROOT = Path(__file__).parents[2]
GUIDES = ["finetune.md", "finetune.zh-CN.md", "tasks.md", "tasks.zh-CN.md"]
SECTIONS = {"README.md": "## Fine-tune", "README.zh-CN.md": "## 微调"}
SMALL = ["data.row_tokens=64", "train.batch_tokens=128", "train.steps=2"]
SMALL += ["train.epochs=null", "train.minutes=null"]


def guide(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, kind: str) -> list[str]:
    """What stands in fences of a kind."""
    return [body for word, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if word == kind]


def first_cells(text: str) -> set[str]:
    """The words in code in the first column of all tables."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.M)
    return {word for row in rows for word in re.findall(r"`([\w-]+)`", row)}


@pytest.mark.parametrize("name", GUIDES)
def test_every_recipe_of_a_guide_loads(name, tmp_path):
    found = blocks(guide(name), "yaml")
    assert len(found) >= 2
    for block in found:
        given = {"base": "path/to/model", "train": {"epochs": 1}, **yaml.safe_load(block)}
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(given), encoding="utf-8")
        assert recipes.load(path).base == given["base"]


@pytest.mark.parametrize("name", GUIDES)
def test_every_command_of_a_guide_can_be_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(guide(name), "") for line in block.splitlines()]
    for line in lines:
        words = shlex.split(re.split(r"\s{3,}", line)[0])
        assert words[0] == "hasten" and main([words[1], "--help"]) == 0


@pytest.mark.parametrize("page", ["finetune", "tasks"])
def test_both_languages_of_a_guide_have_the_same_recipes_tables_and_sections(page):
    english, chinese = guide(f"{page}.md"), guide(f"{page}.zh-CN.md")
    recipes_of = [[yaml.safe_load(block) for block in blocks(text, "yaml")] for text in (english, chinese)]
    assert recipes_of[0] == recipes_of[1]
    assert first_cells(english) == first_cells(chinese)
    for pattern in (r"^#+ ", r"^\|", r"^- ", r"\]\("):
        assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, chinese, re.M)), pattern


def test_the_guide_names_every_check_and_every_method():
    assert {*NAMES, *BETAS} <= first_cells(guide("finetune.md"))


def test_the_guide_names_every_kind_of_task_and_every_recipe_of_one():
    kinds = [get_args(task.model_fields["kind"].annotation)[0] for task in get_args(get_args(Task)[0])]
    table = guide("tasks.md").split("\n## ")[0]
    assert all(f"`{kind}`" in table for kind in kinds)
    own = [name for name, path in shipped().items() if (data := recipes.load(path).data) and data.task]
    assert own and all(f"`{name}`" in table for name in own)


@pytest.mark.parametrize("name", ["recipes.md", "recipes.zh-CN.md"])
def test_the_table_of_recipes_has_all_that_ship(name):
    assert set(shipped()) <= first_cells(guide(name))


@pytest.mark.parametrize("name", SECTIONS)
def test_the_fine_tuning_commands_of_the_readme_run_one_after_the_other(
    name, tmp_path, monkeypatch, byte_tokenizer
):
    section = (ROOT / name).read_text(encoding="utf-8").split(SECTIONS[name], 1)[1]
    commands = [line.split("  #")[0] for line in blocks(section, "bash")[0].splitlines()]
    monkeypatch.chdir(tmp_path)
    save_base(Path("path/to/encoder"), ENCODER, byte_tokenizer)
    long = ENCODER.model_copy(update={"max_positions": 512})
    save_base(Path("runs/answers"), with_spans(long), byte_tokenizer)
    Path("handbook.txt").write_text("Who says ab is heard.\n")
    save_base(Path("path/to/model"), DECODER, byte_tokenizer)
    words = [f"{first}{second}" for first in "abcdefgh" for second in "stuvwxyz"]
    Path("reviews.csv").write_text(
        "text,label\n" + "".join(f"it is {word},{'good' if word < 'e' else 'bad'}\n" for word in words)
    )
    Path("new.csv").write_text("text\nit is as\n")
    rows = [{"prompt": f"say {word}", "completion": word * 2} for word in words]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"journey": SMALL, "chat": ["generate.max_new_tokens=3"]}
    for command in commands:
        verb, *rest = shlex.split(command)[1:]
        monkeypatch.setattr("sys.stdin", io.StringIO("say ab\n"))
        assert main([verb, *rest, *more.get(verb, [])]) == 0, command
    assert Path("runs/classify/report.html").is_file() and Path("runs/instruct/report.html").is_file()
    assert Path("models/mine/model.yaml").is_file()
    assert json.loads(Path("said.jsonl").read_text())["predicted"] in ("good", "bad")


def test_a_runs_folder_stands_for_its_recipe_where_that_has_a_base(tmp_path, monkeypatch):
    """The kept recipe names every field, and the tokenizer is the base's all the same."""
    monkeypatch.chdir(tmp_path)
    Path("base/checkpoints").mkdir(parents=True)
    given = recipes.load(find("classify"), ["base=base"])
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(given), encoding="utf-8")
    monkeypatch.setattr("hasten.recipe.checkpoint_in", lambda path: path)
    assert recipes.read(str(folder), []).text.tokenizer == given.text.tokenizer == Path("base")


def test_what_a_recipe_says_of_a_section_leaves_the_rest_to_the_rules():
    train = recipes.load(find("classify"), ["train.optimizer.learning_rate=3e-5"]).train
    assert (train.optimizer.kind, train.optimizer.learning_rate) == ("adamw", 3e-5)
    assert train.optimizer.betas == (0.9, 0.999) and train.schedule.kind == "linear"
    assert recipes.load(find("classify"), ["train.optimizer.kind=muon"]).train.optimizer.kind == "muon"


def test_the_lead_is_of_the_text_and_not_of_what_the_recipe_asks():
    task = recipes.load(find("titles-zh")).data.task
    record = task.record({"document": "本文研究词元。其余略去。", "summary": "词元"})
    assert source_of(record, task) == "本文研究词元。其余略去。"
