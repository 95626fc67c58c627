"""The guide of compression says what is so: its recipe loads, its commands can be given, its keys exist."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml

from hasten import lookup as recipes
from hasten.cli import VERBS
from hasten.compression.config import CompressConfig, Step
from hasten.core.config import parse
from hasten.lookup import find, shipped
from hasten.verbs.stages import with_target

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ["compress.md", "compress.zh-CN.md"]
KINDS = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(Step)[0])}


def guide(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, kind: str) -> list[str]:
    """What stands in fences of a kind."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", guide(name), re.M | re.S)
    return [body for word, body in found if word == kind]


@pytest.mark.parametrize("name", GUIDES)
def test_the_recipe_of_a_guide_loads(name):
    for block in blocks(name, "yaml"):
        section = parse(CompressConfig, yaml.safe_load(block)["compress"], name)
        assert [step.kind for step in section.steps] == ["depth", "distil", "quantize"]


@pytest.mark.parametrize("name", GUIDES)
def test_the_commands_of_a_guide_can_be_given(name):
    lines = [re.split(r"\s{3,}", line)[0] for block in blocks(name, "") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if re.match(r"hasten \w+ ", line)]
    assert len(commands) == 5
    for verb, what, *words in commands:
        assert verb in VERBS
        place = find(what) if what in shipped() else find("demo")
        assert recipes.load(place, with_target(words)).compress


@pytest.mark.parametrize("name", GUIDES)
def test_every_step_has_its_line_and_every_key_exists(name):
    lines = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", guide(name), re.M))
    del lines["kind"]
    assert lines.keys() == KINDS.keys()
    for kind, line in lines.items():
        told = set(re.findall(r"`(\w+)(?:: [\w:]+)?`", line.rpartition("|")[2]))
        assert told and told <= KINDS[kind].model_fields.keys(), kind


def test_both_guides_have_the_same_words_in_code():
    english, chinese = (set(re.findall(r"`[^`\n]+`", guide(name))) for name in GUIDES)
    assert english == chinese


@pytest.mark.parametrize("name", ["demo", "compress"])
def test_what_ships_ends_in_integers(name):
    recipe = recipes.load(shipped()[name])
    assert "compress" in recipe.journey and recipe.compress.steps[-1].kind == "quantize"
    assert json.loads(json.dumps(recipe.compress.model_dump(mode="json")))["steps"][0]["kind"] == "depth"
