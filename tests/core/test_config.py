"""Recipes: strict, readable back, and every mistake answered with a sentence."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from hasten.core.config import Config, dump, load, override, parse, schema
from hasten.core.errors import ConfigError


class Adam(Config):
    kind: Literal["adam"] = "adam"
    learning_rate: float = 1e-3


class Muon(Config):
    kind: Literal["muon"] = "muon"
    momentum: float = 0.95


class Shape(Config):
    dim: int = 64
    num_heads: int = 4

    @model_validator(mode="after")
    def check_heads(self) -> "Shape":
        if self.num_heads and self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")
        return self


class Recipe(Config):
    name: str = "run"
    steps: int = 10
    weight: float = 1.0
    tied: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    folder: Path = Path("runs")
    sources: tuple[str, ...] = ()
    shares: dict[str, float] = Field(default_factory=dict)
    shape: Shape = Shape()
    teacher: Shape | None = None
    optimizer: Annotated[Adam | Muon, Field(discriminator="kind")] = Adam()
    stages: tuple[Annotated[Adam | Muon, Field(discriminator="kind")], ...] = ()


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return load(Recipe, path, overrides)


def complaint(tmp_path: Path, text: str, *overrides: str) -> str:
    """What `load` says about a recipe, without the file's name in front."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message.removesuffix("\n"), "one sentence, one line"
    return message.removeprefix(f"{tmp_path / 'r.yaml'}: ")


numbers = st.floats(allow_nan=False, allow_infinity=False)
shapes = st.builds(Shape, dim=st.integers(1, 9).map(lambda n: 4 * n), num_heads=st.just(4))
optimizers = st.builds(Adam, learning_rate=numbers) | st.builds(Muon, momentum=numbers)
recipes = st.builds(
    Recipe,
    name=st.text()
    | st.sampled_from(["on", "no", "1:30", "2e-4", "010", "null", "~", "1_0", ".5", "<<", "=", ""]),
    steps=st.integers(),
    weight=numbers,
    tied=st.booleans(),
    compile=st.sampled_from(["auto", "on", "off"]),
    folder=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1).map(Path),
    sources=st.lists(st.text()).map(tuple),
    shares=st.dictionaries(st.text(), numbers),
    shape=shapes,
    teacher=st.none() | shapes,
    optimizer=optimizers,
    stages=st.lists(optimizers, max_size=3).map(tuple),
)


@given(recipes)
def test_a_dumped_recipe_loads_as_an_equal_one(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(recipe), encoding="utf-8", newline="")
    assert load(Recipe, path) == recipe


def test_the_file_wins_over_defaults_and_the_command_line_over_the_file(tmp_path):
    recipe = read(tmp_path, "steps: 20\nshape: {dim: 32}\n", "shape.dim=128", "optimizer.kind=muon")
    assert (recipe.steps, recipe.shape.dim, recipe.weight) == (20, 128, 1.0)
    assert recipe.optimizer == Muon()


@pytest.mark.parametrize(
    "text, value",
    [("2e-4", 2e-4), ("1_000.5", 1000.5), (".5", 0.5), ("3", 3.0), ("-1.5E+3", -1500.0), ("1e3", 1000.0)],
)
def test_numbers_are_read_as_people_write_them(tmp_path, text, value):
    assert read(tmp_path, f"weight: {text}").weight == value


def test_on_and_off_are_words_and_not_booleans(tmp_path):
    assert read(tmp_path, "compile: on").compile == "on"
    assert read(tmp_path, "steps: 1", "compile=off").compile == "off"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "stpes: 3",
            "the recipe has no field 'stpes'. Did you mean 'steps'? Known: name, steps, weight, tied",
        ),
        ("shape: {dims: 3}", "shape has no field 'dims'. Did you mean 'dim'? Known: dim, num_heads"),
        ("teacher: {dims: 3}", "teacher has no field 'dims'. Did you mean 'dim'? Known: dim, num_heads"),
        (
            "optimizer: {kind: moun}",
            "optimizer.kind cannot be 'moun'. Did you mean 'muon'? Choose from adam, muon",
        ),
        ("optimizer: {momentum: 0.9}", "optimizer needs a `kind: ...`"),
        (
            "optimizer: {kind: adam, momentum: 1}",
            "optimizer has no field 'momentum'. Known: kind, learning_rate",
        ),
        ("stages: [{kind: muon}, {kind: muon, x: 1}]", "stages.1 has no field 'x'. Known: kind, momentum"),
        ("stages: [{kind: muon, momentum: no}]", "stages.0.momentum should be a valid number, got 'no'"),
        ("compile: of", "compile cannot be 'of'. Did you mean 'off'? Choose from 'auto', 'on' or 'off'"),
        ("steps: ten", "steps should be a valid integer, got 'ten'"),
        ("steps: 1.0", "steps should be a valid integer, got 1.0"),
        ("steps: 1:30", "steps should be a valid integer, got '1:30'"),
        ("steps: 010", "steps should be a valid integer, got '010'"),
        ("steps: true", "steps should be a valid integer, got True"),
        ("tied: 1", "tied should be a valid boolean, got 1"),
        ("weight: .inf", "weight should be a finite number, got inf"),
        ("weight: .nan", "weight should be a finite number, got nan"),
        ("sources: a", "sources should be a list, got 'a'"),
        ("sources: [1]", "sources.0 should be a valid string, got 1"),
        ("shape: [1]", "shape should be a mapping, got [1]"),
        ("shape: {dim: 65}", "shape: dim (65) must be a multiple of num_heads (4)"),
        ('name: "\\ud800"', "holds half of a surrogate pair, which is no text; write whole characters"),
        ("- steps", "should hold `key: value` lines, got list"),
        ("", "should hold `key: value` lines, got NoneType"),
        ("steps: 1\nsteps: 2", "line 2: 'steps' is given twice; keep one"),
        ("shape: {dim: 4, 'dim': 8}", "line 1: 'dim' is given twice; keep one"),
        ("? [a]\n: 1", "line 1: a key is a word, got a list; quote it"),
        ("!!binary aGk=: 1", "line 1: a key is a word, got a bytes; quote it"),
        ("steps: [", "line 1: not YAML: expected the node content, but found '<stream end>'"),
        ("\tsteps: 1", "line 1: not YAML: found character '\\t' that cannot start any token"),
        ("steps: 1" + "0" * 5000, "not YAML: Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_each_mistake_is_named_with_what_to_write_instead(tmp_path, text, message):
    assert complaint(tmp_path, text).startswith(message)


def test_a_missing_key_is_named():
    class Needy(Config):
        steps: int

    with pytest.raises(ConfigError, match=r"^here: steps is missing; add `steps: \.\.\.`$"):
        parse(Needy, {}, "here")


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml: there is no such file; `hasten recipes` lists"):
        load(Recipe, tmp_path / "no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8 text; give a YAML recipe"):
        load(Recipe, tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "item, message",
    [
        ("steps", "'steps': an override is written key=value, for example train.steps=200"),
        ("=3", "'=3': an override is written key=value, for example train.steps=200"),
        ("steps=[", "'steps=[': the value is not YAML; quote it: steps='\"...\"'"),
        ("steps=*a", "'steps=*a': the value is not YAML; quote it: steps='\"...\"'"),
        ("steps=" + "9" * 5000, "'steps=99999"),
    ],
)
def test_an_override_that_cannot_be_read_is_quoted_back(item, message):
    with pytest.raises(ConfigError) as caught:
        override({}, [item])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


def test_an_override_below_a_scalar_is_told_where_it_does_not_fit(tmp_path):
    assert complaint(tmp_path, "steps: 1", "steps.x=2") == "steps should be a valid integer, got {'x': 2}"


def test_overrides_leave_the_given_mapping_alone():
    data = {"shape": {"dim": 4}}
    assert override(data, ["shape.dim=8"]) == {"shape": {"dim": 8}}
    assert data == {"shape": {"dim": 4}}


BOMB = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "shape: &s {dim: 4}\nteacher: *s", "a: &a {b: *a}"])
def test_aliases_are_refused_before_they_multiply(tmp_path, text):
    message = "YAML aliases (*name) are not read in recipes; write the value out"
    assert complaint(tmp_path, text) == message


@pytest.mark.parametrize("text", ["steps: " + "[" * 3000, "steps: " + "{a: " * 900, "- " * 3000])
def test_bottomless_nesting_is_refused(tmp_path, text):
    assert "not YAML" in complaint(tmp_path, text)


def test_a_recipe_runs_no_code(tmp_path):
    canary = tmp_path / "canary"
    text = f"steps: !!python/object/apply:os.mkdir ['{canary}']"
    assert "could not determine a constructor for the tag" in complaint(tmp_path, text)
    assert not canary.exists()


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().steps = 3  # type: ignore[misc]


def test_the_schema_closes_every_object_to_unknown_keys():
    found = schema(Recipe)
    assert found["additionalProperties"] is False
    assert {d["additionalProperties"] for d in found["$defs"].values()} == {False}
    assert set(found["properties"]) == set(Recipe.model_fields)
