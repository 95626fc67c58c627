"""What a journey of fine-tuning shows at its end: its task's figures, in the terminal and on the page."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_finetune import DECODER, ENCODER, chats, labelled, preferred, save_base, spans

from hasten.cli import main
from hasten.model.config import ModelConfig

COMMON = {"parameters", "tokens", "seconds", "report"}
ADAPTED = COMMON | {"trained_parameters", "rank"}
LORA = "adapt={kind: lora, rank: 4}"


@dataclass(frozen=True)
class Case:
    """A task, and what is told of it."""

    task: Callable[[Path], dict[str, Any]]
    shape: ModelConfig
    settings: tuple[str, ...]
    keys: set[str]  # of summary.json
    rows: tuple[str, ...]  # of the table
    sections: tuple[str, ...]  # of the page


CASES = {
    "chat": Case(
        chats,
        DECODER,
        (LORA, "evaluate.written={metric: exact, max_new_tokens: 4}"),
        ADAPTED | {"test_loss", "base_test_loss", "test_loss_fall", "test_accuracy", "exact_match"},
        ("Trained parameters", "Test loss before fine-tuning", "Fall of the test loss", "Exact match"),
        ("Written answers", "Loss of answers", "template-drift", "of them trained"),
    ),
    "preferences": Case(
        preferred,
        DECODER,
        (LORA,),
        ADAPTED | {"val_loss", "preference_accuracy", "preference_margin"},
        ("Preferred answers found", "Reward margin"),
        ("Preferences", "Validation accuracy", "template-drift", "of them trained"),
    ),
    "spans": Case(
        spans,
        ENCODER,
        (),
        COMMON | {"f1", "exact_match"},
        ("F1", "Exact match"),
        ("Answers found in texts", "the whole model"),
    ),
    "labelled": Case(
        labelled,
        ENCODER,
        ("evaluate.split=validation",),
        COMMON | {"val_loss", "class_accuracy", "macro_f1"},
        ("Accuracy", "Macro-F1"),
        ("Confusion matrix", "Validation accuracy", "the whole model"),
    ),
}


def recipe_for(case: Case, tmp_path: Path, base: Path) -> str:
    """A recipe file of two steps."""
    recipe = {
        "output": str(tmp_path / "run"),
        "base": str(base),
        "data": {**case.task(tmp_path), "row_tokens": 64, "cache": str(tmp_path / "cache")},
        "train": {"steps": 2, "batch_tokens": 128, "log_every": 1},
        "journey": ["prepare", "train", "evaluate", "report"],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_fine_tuning_ends_with_the_figures_of_its_task(case, tmp_path, byte_tokenizer, capsys):
    base = save_base(tmp_path / "base", case.shape, byte_tokenizer)
    assert main(["journey", recipe_for(case, tmp_path, base), "evaluate.split=test", *case.settings]) == 0
    out = capsys.readouterr().out
    for row in case.rows:
        assert f"\n{row} " in out, row
    assert json.loads((tmp_path / "run/summary.json").read_text()).keys() == case.keys
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    for words in (
        *case.sections,
        "Checks before the first step",
        "Samples as the model reads them",
        str(base),
    ):
        assert words in page, words
