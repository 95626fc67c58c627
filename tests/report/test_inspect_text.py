"""The look as text and as JSON, and the verb that shows it."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from inspected import model_of, word_tokenizer
from rich.cells import cell_len

from hasten.cli import main
from hasten.model.config import ModelConfig
from hasten.report.inspect.config import InspectConfig
from hasten.report.inspect.look import look
from hasten.report.inspect.text import WIDTH, as_json, as_text, strongest

TOKENIZER = word_tokenizer("the", "cat", "catches", "mice", "猫捉老鼠猫捉老鼠", "a" * 60)
STORIES = Path(__file__).parents[2] / "../shared/data/models/stories260K"
TEXTS = {
    "decoder": {"text": "the cat catches mice"},
    "encoder": {"text": "the cat [MASK] mice"},
    "seq2seq": {"source": "the cat", "target": "catches mice"},
}


@pytest.mark.parametrize("kind", TEXTS)
def test_the_text_has_a_line_for_each_head_and_place_and_fits_the_terminal(kind):
    seen = look(model_of(kind, TOKENIZER), TOKENIZER, InspectConfig(**TEXTS[kind]))
    lines = as_text(seen, "tiny").splitlines()
    assert max(cell_len(line) for line in lines) <= WIDTH
    heads = [line for line in lines if line[:6].strip().replace(".", "").isdigit() and "." in line[:6]]
    assert len(heads) == sum(len(view.layers) * 4 for view in seen.views)
    places = [line for line in lines if line[:5].strip().isdigit()]
    assert [int(line[:5]) for line in places] == [entry.place for entry in seen.expected]


def test_wide_and_long_tokens_keep_the_columns():
    text = "猫捉老鼠猫捉老鼠 " + "a" * 60 + " cat"
    lines = as_text(
        look(model_of("decoder", TOKENIZER), TOKENIZER, InspectConfig(text=text)), "t"
    ).splitlines()
    assert max(cell_len(line) for line in lines) <= WIDTH
    rows = [line for line in lines if line[:5].strip().isdigit()]
    assert "猫捉老鼠" in rows[0] and "aaa" in rows[1]
    assert all(len(line.split("  ")) > 3 for line in rows)


def test_the_strongest_links_are_the_largest_that_say_something():
    weights = torch.tensor([[1.0, 0, 0, 0], [0.6, 0.4, 0, 0], [0.1, 0.7, 0.2, 0], [0, 0.3, 0.6, 0.1]])
    assert [(query, key) for _, query, key in strongest(weights, "decoder")] == [(2, 1), (3, 2)]
    assert strongest(weights, "cross")[0] == (1.0, 0, 0)
    around = torch.full((4, 4), 0.25)
    assert {key for _, _, key in strongest(around, "encoder")} <= {1, 2}


@pytest.mark.parametrize("kind", TEXTS)
def test_json_has_all_numbers(kind):
    seen = look(model_of(kind, TOKENIZER), TOKENIZER, InspectConfig(**TEXTS[kind]))
    data = json.loads(json.dumps(as_json(seen, "tiny"), allow_nan=False))
    assert data["model"] == "tiny" and data["kind"] == kind
    for view, found in zip(seen.views, data["views"], strict=True):
        torch.testing.assert_close(torch.tensor(found["attention"]), view.weights, rtol=0, atol=6e-6)
        assert [token["id"] for token in found["keys"]] == [piece.id for piece in view.keys]
        assert set(found["figures"]) == set(view.figures)
    for entry, found in zip(seen.expected, data["expected"], strict=True):
        assert found["bits"] == entry.bits and found["candidates"][0]["id"] == entry.candidates[0].piece.id


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny GPT-2 in a Hugging Face folder, with our tokenizer."""
    from hasten.model.interop import save_hugging_face

    changes = ModelConfig(preset="gpt2", dim=32, num_layers=2, num_heads=4).model_dump(
        exclude={"preset", "kind", "max_positions", "vocab_size"}
    )
    model = model_of("decoder", TOKENIZER, **changes)
    save_hugging_face(model, tmp_path / "tiny")
    TOKENIZER.save(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tiny"


def test_the_verb_writes_a_page_and_prints_text_and_json(checkpoint, capsys):
    assert main(["inspect", "tiny", "the cat catches mice", "report.lang=zh"]) == 0
    assert "runs/tiny/inspect.html" in capsys.readouterr().out
    assert '<html lang="zh">' in Path("runs/tiny/inspect.html").read_text(encoding="utf-8")
    assert main(["inspect", "tiny", "the cat", "page=elsewhere/page.html"]) == 0
    assert "elsewhere/page.html" in capsys.readouterr().out and Path("elsewhere/page.html").is_file()
    assert main(["inspect", "tiny", "the cat catches mice", "format=text", "output=nowhere"]) == 0
    assert "2 layers of 4 heads, 5 tokens" in capsys.readouterr().out
    assert main(["inspect", "tiny", "text=the cat", "format=json", "layers=[1]"]) == 0
    assert json.loads(capsys.readouterr().out)["views"][0]["layers"] == [1]
    assert not Path("nowhere").exists(), "what is only printed leaves no folder"


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["tiny"], "needs a text"),
        (["tiny", "the", "cat"], "there are two texts"),
        (["tiny", "source=the cat"], "kind decoder and has no `source`"),
        (["tiny", "the " * 70], "shorten it"),
        (["nowhere", "the cat"], "'nowhere' is no recipe file"),
        ([], "needs a text"),
    ],
)
def test_a_mistake_ends_in_one_sentence(checkpoint, capsys, words, complaint):
    assert main(["inspect", *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


@pytest.mark.skipif(not STORIES.exists(), reason="shared/data/models/stories260K is not here")
def test_a_trained_model_expects_its_own_story(tmp_path, monkeypatch, capsys):
    """The text is the model's own greedy one: after `<s>` each token is its favourite."""
    monkeypatch.chdir(tmp_path)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    assert main(["inspect", str(STORIES), text, "format=json"]) == 0
    data = json.loads(capsys.readouterr().out)
    ranks = [entry["rank"] for entry in data["expected"] if entry["rank"] is not None]
    assert len(ranks) > 20 and set(ranks) == {1}
    assert max(max(row) for row in data["views"][0]["figures"]["previous"]) > 0.6, "a previous-token head"


@pytest.mark.parametrize("name", ["inspect.md", "inspect.zh-CN.md"])
def test_every_command_of_the_guide_can_be_given(name):
    from hasten.recipe import Recipe
    from hasten.report.inspect.config import from_words

    guide = (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
    commands = [line.split("  #")[0] for line in guide.splitlines() if line.startswith("hasten inspect ")]
    assert len(commands) == 6
    for command in commands:
        _, others = from_words(shlex.split(command)[3:], Recipe.model_fields)
        assert not others
