"""The documents say what is so: functions exist, commands load, figures are those of the result file."""

import ast
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten import lookup as recipes
from hasten.cli import VERBS, main
from hasten.lookup import find, shipped
from hasten.model.config import ModelConfig
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build
from hasten.tokenizer.train import TokenizerConfig, train
from hasten.verbs.stages import with_target

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
    blocks = [b for path in READMES for b in re.findall(r"```bash\n(.*?)```", path.read_text("utf-8"), re.S)]
    return [line.split("  #")[0].strip() for b in blocks for line in re.findall(r"^hasten .*$", b, re.M)]


USED = ("import", "export", "translate", "classify", "answer", "embed", "inspect", "plan", "job")
"""Verbs with options of their own beside a recipe's, or none of a recipe's."""
TINY = {"vocab_size": 258, "dim": 32, "num_layers": 2, "num_heads": 4, "max_positions": 64}
LLAMA = {"preset": "smollm2-135m", "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 64}
BERT = {"kind": "encoder", "norm": "layer", "norm_place": "after", "position": "learned", "head": "none"}
BERT |= {"embedding_norm": "learned", "num_token_types": 2, "pooler": "tanh"}
BERT |= {"attention_bias": True, "out_bias": True, "ffn_bias": True}
T5 = {"kind": "seq2seq", "position": "relative", "attention_scale": 1.0, "activation": "relu", "tied": True}
T5 |= {"logit_scale": 32**-0.5, "start_id": 1}


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """A tiny random model with a tokenizer of bytes, as Hugging Face lays it out."""
    tokenizer = train(["a"], TokenizerConfig(vocab_size=258), progress=False)
    save_hugging_face(build(ModelConfig(**{**TINY, **shape}), seed=0), folder)
    tokenizer.save(folder)


@pytest.mark.parametrize("command", sorted({c for c in commands() if c.split()[1] in USED}))
def test_every_command_of_the_readme_that_takes_a_model_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = {"path/to/model": LLAMA, "runs/demo": LLAMA, "path/to/encoder": BERT, "runs/translate-en-de": T5}
    models["runs/classify"] = BERT | {"head": "pooled_classes", "num_classes": 2, "head_bias": True}
    places = {
        "head": "token_classes",
        "pooler": None,
        "num_classes": 2,
        "head_bias": True,
        "max_positions": 512,
    }
    models["runs/answers"] = BERT | places
    monkeypatch.setattr("sys.stdin", io.StringIO("Who keeps the keys?\n"))
    (tmp_path / "handbook.txt").write_text("The caretaker keeps the keys.\n")
    for folder, shape in models.items():
        write_model(tmp_path / folder, shape)
    (tmp_path / "talk.en").write_text("A dog runs.\nA cat.\n")
    (tmp_path / "new.csv").write_text("text,stars\nA joy.,5\n")
    (tmp_path / "my.yaml").write_text(find("demo").read_text(encoding="utf-8"), encoding="utf-8")
    if "runs/model to" in command:
        assert main(["import", "path/to/model", "output=runs/model"]) == 0
    assert main([*shlex.split(command)[1:], *["generate.max_new_tokens=3"] * ("translate" in command)]) == 0


@pytest.mark.parametrize("command", sorted({c for c in commands() if c.split()[1] not in USED}))
def test_every_command_of_the_readme_can_be_given(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(
        find("demo").read_text(encoding="utf-8").replace("minutes: 4.75", "minutes: 5")
    )
    for run in ("runs/demo", "runs/demo-1", "runs/instruct", "runs/text", "path/to/model"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").write_text((tmp_path / "my.yaml").read_text())
    _, verb, *words = shlex.split(command)
    words = with_target(words)
    assert verb == "VERB" or verb in VERBS
    overrides = [word for word in words if "=" in word]
    for name in (word for word in words if "=" not in word and not word.startswith("-")):
        assert recipes.load(find(name), overrides).journey


@pytest.mark.parametrize("path", READMES, ids=lambda p: p.name)
def test_the_recipe_in_the_readme_loads(path, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    (tmp_path / "r.yaml").write_text(block, encoding="utf-8")
    assert recipes.load(tmp_path / "r.yaml").train.minutes == 30


@pytest.mark.parametrize("name", ["recipes.md", "recipes.zh-CN.md"])
def test_the_data_section_of_the_guide_loads(name, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.S)
    (tmp_path / "r.yaml").write_text(
        block.replace("books/**/*.txt.gz", "{paths: books, weight: 1}"), encoding="utf-8"
    )
    assert len(recipes.load(tmp_path / "r.yaml").text.sources) == 3


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
    about = recipes.load(find(name)).about
    assert about.purpose and about.hardware and about.time
