"""Which data goes with which model: decided by the model's kind, and refused where they do not fit."""

from pathlib import Path
from typing import Any

import pytest

from hasten import stages
from hasten.core.config import parse
from hasten.core.errors import ConfigError
from hasten.overview import costs
from hasten.recipe import Recipe

TEXT = {"paths": ["a.txt"]}
PAIRS = {"paths": ["a.tsv"], "source_field": "en", "target_field": "de"}


def recipe(kind: str, source: dict[str, Any], data: dict[str, Any] | None = None, **model: Any) -> Recipe:
    given = {
        "data": {"sources": [source], "row_tokens": 64, **(data or {})},
        "model": {"kind": kind, "vocab_size": 100, **model},
    }
    return parse(Recipe, given, "recipe.yaml")


@pytest.mark.parametrize(
    ("kind", "source", "examples"),
    [("decoder", TEXT, "language_model"), ("encoder", TEXT, "masked"), ("seq2seq", PAIRS, "pairs")],
)
def test_a_models_kind_says_what_it_learns_from(kind, source, examples):
    assert recipe(kind, source).examples() == examples
    assert recipe(kind, source, {"examples": examples}).examples() == examples


@pytest.mark.parametrize(
    ("kind", "source", "data", "complaint"),
    [
        ("decoder", TEXT, {"examples": "masked"}, "learns from language_model; write model.kind=encoder"),
        ("encoder", TEXT, {"examples": "language_model"}, "learns from masked; write model.kind=decoder"),
        ("seq2seq", TEXT, {}, "learns from pairs; data.sources are texts; name two columns"),
        ("encoder", PAIRS, {}, "data.sources are pairs and model.kind is encoder"),
        ("decoder", PAIRS, {}, "write model.kind=seq2seq, or text_field"),
    ],
)
def test_data_that_a_model_cannot_learn_from_are_refused(kind, source, data, complaint):
    with pytest.raises(ConfigError, match=complaint):
        recipe(kind, source, data).examples()


def test_a_head_that_predicts_no_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"model\.head is none"):
        recipe("encoder", TEXT, head="none").examples()


class Fake:
    """A tokenizer as far as the architecture needs one."""

    vocab_size, bos_id = 90, 7


def test_rows_of_sources_have_to_fit_the_positions_and_targets_begin_with_the_text_token():
    made = recipe("seq2seq", PAIRS, {"source_row_tokens": 96})
    assert made.architecture(Fake()).start_id == 7
    assert recipe("seq2seq", PAIRS, start_id=3).architecture(Fake()).start_id == 3
    with pytest.raises(ConfigError, match=r"data.source_row_tokens \(96\) is more than model.max_positions"):
        recipe("seq2seq", PAIRS, {"source_row_tokens": 96}, max_positions=64).architecture(Fake())


@pytest.mark.parametrize(
    ("kind", "source", "said"),
    [
        ("encoder", TEXT, "rows of 64 tokens, 15% of them through the head"),
        ("seq2seq", PAIRS, "rows of 64 source and 64 target tokens, per target token"),
    ],
)
def test_show_prices_what_the_kind_computes(kind: str, source: dict[str, Any], said: str) -> None:
    lines = costs(recipe(kind, source))
    assert any(line.startswith("FLOPs per token") and line.endswith(said) for line in lines)
    assert any(line.startswith("key/value cache") for line in lines) == (kind != "encoder")


def test_the_pairs_recipe_runs_from_rows_to_a_checkpoint(tmp_path: Path) -> None:

    rows = "".join(
        f"{'red old tall house'[: 3 + n % 14]} {n}\t{n} {'rot alt hoch'[: 3 + n % 9]}\n" for n in range(150)
    )
    (tmp_path / "talk.tsv").write_text("en\tde\n" + rows)
    given = {
        "output": str(tmp_path / "run"),
        "data": {
            "sources": [{**PAIRS, "paths": [str(tmp_path / "talk.tsv")]}],
            "cache": str(tmp_path / "cache"),
            "tokenizer": {"vocab_size": 270},
            "row_tokens": 64,
            "split": {"validation": 0.1, "test": 0.1},
        },
        "model": {"kind": "seq2seq", "dim": 16, "num_layers": 1, "num_heads": 2},
        "train": {"steps": 2, "batch_tokens": 128},
    }
    summary = stages.train(parse(Recipe, given, "recipe.yaml"))
    assert summary.completed and summary.validation["validation_loss"] > 0
    model, tokenizer, _ = stages.loaded(parse(Recipe, given, "recipe.yaml"))
    assert model.config.kind == "seq2seq" and model.config.start_id == tokenizer.bos_id
