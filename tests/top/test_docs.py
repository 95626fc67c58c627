"""The documents say what is so: functions exist, commands load, figures are those of the result file."""

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest

import hasten
from hasten.cli import VERBS
from hasten.core import config
from hasten.recipe import Recipe, find, shipped

PACKAGE = Path(hasten.__file__).parent
ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
NAMED = re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / "docs/batch.md").read_text(encoding="utf-8"))


def definitions(path: Path) -> set[str]:
    """`function`, `Class` and `Class.method` of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("file, name", NAMED)
def test_every_function_of_the_batchs_day_exists(file, name):
    assert name in definitions(PACKAGE / file)


def commands() -> list[str]:
    """Every `hasten ...` line in the READMEs' blocks."""
    texts = [path.read_text(encoding="utf-8") for path in READMES]
    return [line.split("  #")[0].strip() for text in texts for line in re.findall(r"^hasten .*$", text, re.M)]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_of_the_readme_can_be_given(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(
        find("demo").read_text(encoding="utf-8").replace("minutes: 4.75", "minutes: 5")
    )
    for run in ("runs/demo", "runs/demo-1"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").write_text((tmp_path / "my.yaml").read_text())
    _, verb, *words = shlex.split(command)
    assert verb == "VERB" or verb in VERBS
    overrides = [word for word in words if "=" in word]
    for name in (word for word in words if "=" not in word and not word.startswith("-")):
        assert config.load(Recipe, find(name), overrides).journey


@pytest.mark.parametrize("path", READMES, ids=lambda p: p.name)
def test_the_recipe_in_the_readme_loads(path, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    (tmp_path / "r.yaml").write_text(block, encoding="utf-8")
    assert config.load(Recipe, tmp_path / "r.yaml").train.minutes == 30


@pytest.mark.parametrize("name", ["recipes.md", "recipes.zh-CN.md"])
def test_the_data_section_of_the_guide_loads(name, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.S)
    (tmp_path / "r.yaml").write_text(
        block.replace("books/**/*.txt.gz", "{paths: books, weight: 1}"), encoding="utf-8"
    )
    assert len(config.load(Recipe, tmp_path / "r.yaml").text.sources) == 3


@pytest.mark.parametrize("name", ["demo", "speed"])
@pytest.mark.parametrize("path", READMES, ids=lambda p: p.name)
def test_the_figures_of_the_readme_are_those_of_the_result_files(path, name):
    made = runpy.run_path(str(ROOT / "bench/readme.py"))["block"](path, name)
    assert made in path.read_text(encoding="utf-8"), "run python bench/readme.py"


def test_both_languages_have_the_same_commands_and_links():
    english, chinese = (path.read_text(encoding="utf-8") for path in READMES)
    assert re.findall(r"^hasten \S+", english, re.M) == re.findall(r"^hasten \S+", chinese, re.M)
    assert english.count("](") == chinese.count("](")


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_that_ships_says_what_it_is_for(name):
    about = config.load(Recipe, find(name)).about
    assert about.purpose and about.hardware and about.time
