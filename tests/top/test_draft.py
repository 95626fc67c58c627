"""A smaller model that guesses ahead, from the command line."""

import json

import pytest

from hasten.cli import main


@pytest.fixture
def trained(recipe):
    """A run of a few steps, as its folder."""
    words = ["generate.temperature=0", "journey=[prepare,train]"]
    assert main(["journey", str(recipe), *words]) == 0
    return recipe.parent / "run"


def samples(run):
    found = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    return [(one["prompt"], one["tokens"]) for one in found], found


def test_a_draft_writes_the_same_texts_and_tells_how_often_it_was_right(trained, capsys):
    words = [str(trained), "generate.temperature=0", "generate.max_new_tokens=24"]
    assert main(["generate", *words]) == 0
    alone, _ = samples(trained)
    capsys.readouterr()
    assert main(["generate", *words, f"generate.draft={trained}", "generate.draft_tokens=3"]) == 0
    together, found = samples(trained)
    assert together == alone
    assert all(one["accepted"] == one["guessed"] > 0 for one in found), "it is the same model"
    assert "guesses of the smaller model were kept" in capsys.readouterr().out


def test_a_draft_that_spells_in_another_way_is_refused(trained, recipe, tmp_path, capsys):
    other = tmp_path / "other"
    words = [f"output={other}", "data.tokenizer.vocab_size=290", "journey=[prepare,train]"]
    assert main(["journey", str(recipe), *words]) == 0
    assert main(["generate", str(trained), f"generate.draft={other}"]) == 2
    assert "another vocabulary than the model" in capsys.readouterr().err
