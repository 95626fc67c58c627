"""A decoder that is asked about a text begins with what it would say: classes are words of its own."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetune import DECODER, labelled, save_base

from hasten.assembly import assemble
from hasten.cli import main
from hasten.core.config import parse
from hasten.core.errors import DataError
from hasten.core.runtime import Runtime
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.wording import Wording, prompt_of
from hasten.defaults import filled
from hasten.evaluate.classifier import Classifier
from hasten.recipe import Recipe
from hasten.train.load import load_model
from hasten.train.restore import checkpoint_in

PROMPT = "Text: {text}\nKind:"
CLASSES = ["colour", "number"]


@pytest.fixture
def recipe(tmp_path: Path, byte_tokenizer: Any) -> Recipe:
    base = save_base(tmp_path / "base", DECODER.model_copy(update={"tied": True}), byte_tokenizer)
    given = {
        "output": str(tmp_path / "run"),
        "base": str(base),
        "device": "cpu",
        "data": {
            **labelled(tmp_path),
            "task": {"kind": "labelled", "prompt": PROMPT},
            "cache": str(tmp_path / "cache"),
            "row_tokens": 64,
            "waive": ["leak", "duplicates"],
        },
        "train": {"steps": 2, "batch_tokens": 256, "log_every": 1, "precision": "fp32"},
    }
    return parse(Recipe, filled(given), "recipe.yaml")


def test_before_the_first_step_it_says_what_the_decoder_says(recipe, tmp_path):
    run = assemble(recipe, Runtime(torch.device("cpu")), time.monotonic())
    decoder, tokenizer = load_model(tmp_path / "base")
    assert tokenizer is not None and isinstance(recipe.text.task, LabelledConfig)
    words = [torch.tensor(tokenizer.encode(f" {name}")) for name in CLASSES]
    texts = ["see red 0", "my six 4", "nothing of the kind"]
    asked = Classifier(run.model, tokenizer, recipe.text.task, CLASSES, 64)
    _, found = asked.asked([{"text": text} for text in texts])
    for text, own in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer.encode(PROMPT.format(text=text))])
        with torch.no_grad():
            logits = decoder.logits(decoder(ids))[0, -1]
        expected = torch.stack([logits[word].mean() for word in words]).log_softmax(0)
        assert torch.tensor(own).float() == pytest.approx(expected, abs=1e-5)
    assert run.fit().completed
    checkpoint = checkpoint_in(tmp_path / "run")
    assert prompt_of(checkpoint, ("text",)) == PROMPT
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "to=hf", f"output={out}"]) == 0
    said = tmp_path / "said.tsv"
    found = []
    for source in (tmp_path / "run", checkpoint, out):  # what has no recipe asks as well
        assert main(["classify", str(source), str(tmp_path / "texts.txt"), str(said)]) == 0
        found.append(said.read_text(encoding="utf-8"))
    assert found[0] == found[1] == found[2] and found[0].count("\n") == len(texts)
    assert load_model(tmp_path / "run")[0].config.class_names == tuple(CLASSES)


@pytest.mark.parametrize("written", ["Is {a}{{b}} so?", "{a}", "{{}}{a}: "])
def test_a_prompt_that_is_kept_is_the_one_that_was_given(written):
    wording = Wording.of(written, ("a",))
    assert Wording.of(wording.written(("text",)), ("text",)) == wording and wording.written(("a",)) == written


@pytest.mark.parametrize(
    "text", ["no text is named", "{text} {text}", "{other}", "{text", "{text}" + "x" * 100_001]
)
def test_a_prompt_of_a_folder_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"prompt\.txt: .*it should hold the prompt that the model"):
        prompt_of(tmp_path, ("text",))
