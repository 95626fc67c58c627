"""A teacher and its students by recipes: begun with its layers, taught, cached, evaluated; or refused."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_finetune import DECODER, ENCODER, chats, labelled, save_base
from torch.nn import functional

from hasten import stages
from hasten.assembly import assemble
from hasten.core.batch import IGNORE, UNKNOWN
from hasten.core.config import dump, parse
from hasten.core.errors import ConfigError, DataError
from hasten.core.runtime import Runtime
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.protocol import Setting
from hasten.defaults import filled
from hasten.evaluate.classifier import Classifier, class_names
from hasten.lookup import find, load
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build
from hasten.objective.distilled import LOGITS
from hasten.recipe import Recipe
from hasten.train.by_text import Reading
from hasten.train.load import load_model

PROMPT = "Text: {text}\nKind:"
STEPS = {"steps": 3, "batch_tokens": 256, "log_every": 1}


def texts(folder: Path) -> str:
    for n in range(40):
        words = " ".join(
            f"{first}{second}" for first in "abcdefg"[: 2 + n % 5] for second in "rstuvwxyz"[n % 4 :]
        )
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"{n}.txt").write_text(f"{words} {n}\n" * (1 + n % 7))
    return str(folder / "texts")


def recipe(tmp_path: Path, given: dict[str, Any]) -> Recipe:
    shared = {"output": str(tmp_path / "run"), "train": STEPS, "device": "cpu"}
    return parse(Recipe, filled({**shared, **given}), "recipe.yaml")


@pytest.fixture
def student(tmp_path: Path, byte_tokenizer: Any) -> dict[str, Any]:
    """A recipe of a student of text, of a teacher with four layers."""
    shape = DECODER.model_copy(update={"num_layers": 4})
    teacher = save_base(tmp_path / "teacher", shape, byte_tokenizer)
    data = {
        "sources": [texts(tmp_path)],
        "cache": str(tmp_path / "cache"),
        "row_tokens": 64,
        "clean": {"profile": "off"},
    }
    return {
        "base": str(teacher),
        "layers": "spread",
        "model": {"num_layers": 2},
        "data": {**data, "split": {"validation": 0.1, "test": 0.1}},
        "objective": {"kind": "distillation", "teacher": str(teacher)},
    }


def test_a_student_begins_with_layers_of_its_teacher_and_is_scored(student, tmp_path):
    made = recipe(tmp_path, student)
    begun = load_model(tmp_path / "teacher")[0]
    assert made.train.optimizer.kind == "muon" and made.shape.num_layers == 2 and made.staying == {"": [0, 3]}
    summary = stages.train(made)
    assert summary.completed and "bits_per_byte" in summary.validation
    ended, tokenizer = load_model(tmp_path / "run")
    assert ended.config.num_layers == 2 and tokenizer is not None
    for own, theirs in ((0, 0), (1, 3)):
        here, there = (m.layers[str(n)].attention.query.weight for m, n in ((ended, own), (begun, theirs)))
        assert torch.nn.functional.cosine_similarity(here.flatten(), there.flatten(), dim=0) > 0.5
    again = load(tmp_path / "run" / "recipe.yaml")
    assert again.identity() == made.identity() and again.shape == made.shape
    assert "bits_per_byte" in json.dumps(stages.evaluate(again))


def test_a_cached_teacher_serves_a_second_student_that_begins_with_nothing(student, tmp_path, capsys):
    cached = {**student, "objective": {**student["objective"], "cache": {"samples": 12}}}
    stages.train(recipe(tmp_path, {**cached, "train": {**STEPS, "steps": None, "epochs": 1}}))
    assert "targets x at most" in capsys.readouterr().out
    plain = {
        **cached,
        "base": None,
        "layers": None,
        "output": str(tmp_path / "second"),
        "train": {**STEPS, "seed": 7},
    }
    plain["model"] = {"num_layers": 1, "dim": 16, "num_heads": 2, "max_positions": 64}
    summary = stages.train(recipe(tmp_path, plain))
    assert summary.completed and "targets x at most" not in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "teachers").glob("*/complete.json"))) == 1
    assert load_model(tmp_path / "second")[0].config.dim == 16


def test_a_classifier_teaches_a_smaller_one(tmp_path, byte_tokenizer):
    base = save_base(tmp_path / "base", ENCODER, byte_tokenizer)
    data = {
        **labelled(tmp_path),
        "cache": str(tmp_path / "cache"),
        "row_tokens": 64,
        "waive": ["leak", "duplicates"],
    }
    teacher = {"output": str(tmp_path / "teacher"), "base": str(base), "data": data}
    stages.train(recipe(tmp_path, teacher))
    objective = {"kind": "distillation", "teacher": str(tmp_path / "teacher"), "labels": 0.3, "relations": {}}
    own = {"base": str(tmp_path / "teacher"), "layers": [1], "data": data, "objective": objective}
    own["evaluate"] = {"split": "validation"}
    made = recipe(tmp_path, own)
    assert made.train.optimizer.kind == "adamw" and made.train.metric == "validation_accuracy"
    assert stages.train(made).completed
    ended = load_model(tmp_path / "run")[0].config
    assert (ended.num_layers, ended.class_names) == (1, ("colour", "number"))
    assert "classification" in json.dumps(stages.evaluate(made))


@pytest.fixture
def spelt_otherwise(tmp_path: Path, byte_tokenizer: Any) -> dict[str, Any]:
    """A recipe of an encoder, whose teacher is a decoder that numbers its tokens otherwise, and is asked."""
    base = save_base(tmp_path / "decoder", DECODER, byte_tokenizer)
    data = {**labelled(tmp_path), "cache": str(tmp_path / "cache"), "waive": ["leak", "duplicates"]}
    shared = {"data": {**data, "row_tokens": 32}}
    prompted = {**shared["data"], "task": {"kind": "labelled", "prompt": PROMPT}}
    stages.train(recipe(tmp_path, {"data": prompted, "output": str(tmp_path / "teacher"), "base": str(base)}))
    own = tmp_path / "encoder"
    save_hugging_face(build(ENCODER, 0), own)
    byte_tokenizer("<pad>", "<s>", "</s>", "<|end|>").save(own)
    objective = {"kind": "distillation", "teacher": str(tmp_path / "teacher"), "cache": {"samples": "all"}}
    return {**shared, "base": str(own), "objective": {**objective, "temperature": 2.0, "labels": 0.5}}


def test_a_decoder_teaches_an_encoder_that_spells_otherwise(spelt_otherwise, tmp_path):
    exact = {**spelt_otherwise, "train": {**STEPS, "precision": "fp32"}}
    made = recipe(tmp_path, exact)
    run = assemble(made, Runtime(torch.device("cpu")), time.monotonic())
    folder = tmp_path / "teacher"
    teacher, tokenizer = load_model(folder)
    assert tokenizer is not None
    records = dict(made.prepared().records("train"))
    task = LabelledConfig(prompt=PROMPT)
    asked = Classifier(teacher, tokenizer, task, class_names(teacher, task), 128)
    own = {
        name: asked.answers([record]).logits[0] for name, record in records.items()
    }  # one at a time: nothing of another text is seen
    said = 0
    for batch in run.corpus.batches(0, rows=run.corpus.num_rows, micro_rows=run.corpus.num_rows):
        logits = batch.extra[LOGITS][batch.targets != IGNORE]
        expected = torch.tensor(np.array([own[name] for name in batch.documents]))
        assert torch.allclose(logits.double(), expected, atol=1e-5)
        said += len(logits)
    assert said == len(records) > 40
    assert run.fit().completed
    asked_again = recipe(tmp_path, {**exact, "output": str(tmp_path / "second")})
    assert stages.train(asked_again).completed
    assert len(list((tmp_path / "cache" / "teachers").glob("*/complete.json"))) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cache": None}, "it reads each text once, before the first step; write objective.cache"),
        ({"cache": None, "relations": {}}, "its places are not the student's; leave out objective.hidden"),
    ],
)
def test_a_teacher_that_spells_otherwise_is_asked_for_answers_alone(changes, said, spelt_otherwise, tmp_path):
    objective = {**spelt_otherwise["objective"], **changes}
    with pytest.raises(ConfigError, match=said):
        stages.train(recipe(tmp_path, {**spelt_otherwise, "objective": objective}))


def test_a_teacher_that_is_asked_otherwise_reads_the_texts_too(spelt_otherwise, tmp_path):
    like_the_teacher = {**spelt_otherwise, "base": str(tmp_path / "decoder")}
    assert stages.train(recipe(tmp_path, like_the_teacher)).completed
    not_cached = {**like_the_teacher["objective"], "cache": None}
    with pytest.raises(ConfigError, match="is asked otherwise than the student"):
        stages.train(recipe(tmp_path, {**like_the_teacher, "objective": not_cached, "output": "again"}))
    task = {**like_the_teacher["data"], "task": {"kind": "labelled", "prompt": PROMPT}}
    alike = {**like_the_teacher, "objective": not_cached, "data": task, "output": str(tmp_path / "alike")}
    assert stages.train(recipe(tmp_path, alike)).completed  # reads along, row for row


def test_texts_without_labels_are_learnt_from_the_teacher_alone(spelt_otherwise, tmp_path):
    more = [f"some red words {n}" for n in range(20)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in more))
    data, task = spelt_otherwise["data"], {"kind": "labelled", "unlabelled": "taught"}
    data = {**data, "task": task, "sources": [*data["sources"], str(tmp_path / "more.jsonl")]}
    given = {**spelt_otherwise, "data": data, "train": {**STEPS, "steps": 6, "precision": "fp32"}}
    made = recipe(tmp_path, given)
    run = assemble(made, Runtime(torch.device("cpu")), time.monotonic())
    (batch,) = run.corpus.batches(0, rows=run.corpus.num_rows, micro_rows=run.corpus.num_rows)
    asked = (batch.targets != IGNORE).flatten()
    targets = batch.targets.flatten()[asked]
    assert int((targets == UNKNOWN).sum()) == len(more)  # none of them is held out
    model = run.model.train()
    states = model(**run.objective.inputs(batch))
    loss = run.objective.loss(model, states, batch)
    own, theirs = model.logits(states.flatten(0, 1)[asked]), batch.extra[LOGITS].flatten(0, 1)[asked]
    p, log_q = (theirs / 2).softmax(-1), (own / 2).log_softmax(-1)
    apart, known = 4 * (p * (p.log() - log_q)).sum(-1), targets != UNKNOWN
    labels = functional.cross_entropy(own[known], targets[known], reduction="sum")
    expected = 0.5 * apart[known].sum() + 0.5 * labels + apart[~known].sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert run.fit().completed
    with pytest.raises(ConfigError, match="no teacher says what texts without a label are"):
        recipe(tmp_path, {**given, "objective": {}}).examples()


def test_a_text_that_a_teacher_cannot_read_is_named(byte_tokenizer):
    task = LabelledConfig(too_long="drop")
    setting = Setting(byte_tokenizer("</s>"), "decoder", 8, learnt={"labels": ["long", "short"]})
    records = {name: {"text": name * 2, "label": name} for name in ("long", "short")}
    reading = Reading(task.open(setting), records)
    assert len(reading.example("long").tokens) == 8
    with pytest.raises(DataError, match="short: the teacher finds this text too long, and reads 8 tokens"):
        reading.example("short")


def test_conversations_are_taught_from_a_cache(tmp_path, byte_tokenizer):
    base = save_base(tmp_path / "base", DECODER, byte_tokenizer)
    data = {**chats(tmp_path), "cache": str(tmp_path / "cache"), "row_tokens": 64}
    objective = {"kind": "distillation", "teacher": str(base), "cache": {"samples": 5}, "temperature": 2.0}
    given = {"base": str(base), "layers": "first", "model": {"num_layers": 1}, "data": data}
    train = {**STEPS, "steps": None, "epochs": 3}  # examples meet others in a row in each
    made = recipe(tmp_path, {**given, "objective": objective, "train": train})
    assert stages.train(made).completed
    assert list((tmp_path / "cache/teachers").glob("*/complete.json"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": None}, "layers are those of a base; write base: path/to/teacher"),
        (
            {"adapt": {"kind": "lora"}, "train": {**STEPS, "optimizer": {"kind": "adamw"}}},
            "adapt stands beside a whole model",
        ),
        ({"layers": [0, 3], "model": {"num_layers": 2}}, r"model\.num_layers is for a new model"),
        ({"layers": "middle"}, "layers"),
        ({"objective": {"kind": "distillation"}}, r"objective\.teacher is missing"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes, said, student, tmp_path):
    with pytest.raises(ConfigError, match=said):
        recipe(tmp_path, {**student, **changes})


def test_a_teacher_of_preferences_is_refused(student, tmp_path):
    task = {"kind": "preferences", "template": "plain"}
    made = recipe(
        tmp_path, {**student, "data": {**student["data"], "task": task}, "layers": None, "model": {}}
    )
    with pytest.raises(ConfigError, match="preferences is learnt by preference"):
        made.examples()


@pytest.mark.parametrize("name", ["distil", "distil-classify"])
def test_the_recipes_that_ship_load_and_are_read_back(name):
    made = load(find(name))
    assert made.objective.kind == "distillation" and made.layers is not None
    assert parse(Recipe, json.loads(json.dumps(made.model_dump(mode="json"))), name) == made
    assert "distillation" in dump(made)


def guide(name: str) -> str:
    return (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")


def test_the_guide_says_the_same_in_both_languages_and_its_recipes_load(tmp_path):
    texts = guide("distil.md"), guide("distil.zh-CN.md")
    found = [
        [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)] for text in texts
    ]
    assert found[0] == found[1] and len(found[0]) == 3
    for pattern in (r"^#+ ", r"^\|", r"^hasten \S+ \S+", r"\]\("):
        assert len({len(re.findall(pattern, text, re.M)) for text in texts}) == 1, pattern
    cells = [re.findall(r"`(\w+)", row) for row in re.findall(r"^\| (`.*?) \|", texts[0], re.M)]
    named = {name for row in cells for name in row} - {"divergence"}
    assert {"beta", "temperature", "labels", "hidden", "relations", "cache", "chunk_tokens"} <= named
    for given in found[0]:
        assert recipe(tmp_path, given).objective.teacher == "runs/teacher"
