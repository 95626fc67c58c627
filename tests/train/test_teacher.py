"""A teacher has to fit its student; what is learnt beside a student is kept for a resume alone."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CPU, ROW_TOKENS, Act, make_run, write_corpus

from hasten.core.errors import ConfigError
from hasten.data.corpus import Corpus
from hasten.model.config import ModelConfig
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build
from hasten.objective.distillation import Distillation
from hasten.objective.inner import Inner
from hasten.parallel.apply import Beginning, parallelize
from hasten.parallel.grid import Grid
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.config import TrainConfig
from hasten.train.load import load_model
from hasten.train.restore import read_tensors
from hasten.train.run import Run
from hasten.train.teacher import Teaching, open_teaching

SHAPE = {"vocab_size": 32, "dim": 16, "num_layers": 2, "num_heads": 2, "activation": "swiglu"}
STEPS = 6


@pytest.fixture
def teacher(tmp_path: Path, byte_tokenizer: Callable[..., Tokenizer]) -> Path:
    """A folder of the hub's layout, with a tokenizer of bytes."""
    shape = {**SHAPE, "vocab_size": 260, "max_positions": 64}
    save_hugging_face(build(ModelConfig.model_validate(shape), 0), tmp_path / "teacher")
    byte_tokenizer("<|end|>", "<s>", "</s>", "<pad>").save(tmp_path / "teacher")
    return tmp_path / "teacher"


def opened(
    folder: Path, tokenizer: Tokenizer, row_tokens: int = 32, config: Any = None, **fields: Any
) -> Teaching:
    student = ModelConfig.model_validate({**SHAPE, "vocab_size": 260, **fields})
    config = config or Distillation(teacher=str(folder))
    return open_teaching(config, folder, student, tokenizer, row_tokens=row_tokens)


def test_a_teacher_that_fits_is_frozen_and_in_evaluation_mode(teacher):
    found = opened(teacher, Tokenizer.load(teacher), dim=8)
    assert found.known == 260 and not found.teacher.training
    assert not any(parameter.requires_grad for parameter in found.teacher.parameters())


def test_a_teacher_with_another_vocabulary_is_refused(teacher, byte_tokenizer):
    said = r"vocabulary \(260 tokens\) than the student \(257\), so .*; write data\.tokenizer: .*teacher"
    with pytest.raises(ConfigError, match=said):
        opened(teacher, byte_tokenizer("</s>"))
    swapped = byte_tokenizer("<|end|>", "</s>", "<s>", "<pad>")  # as many tokens, and two have changed places
    with pytest.raises(ConfigError, match="has another vocabulary"):
        opened(teacher, swapped)


def test_a_teacher_without_a_tokenizer_is_refused(teacher, byte_tokenizer):
    tokenizer = Tokenizer.load(teacher)
    (teacher / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        opened(teacher, tokenizer)


@pytest.mark.parametrize(
    ("row_tokens", "fields", "said"),
    [
        (65, {}, r"data\.row_tokens \(65\) is more than the 64 positions of the teacher"),
        (32, {"kind": "encoder"}, "is a model of kind decoder, and the student is of kind encoder"),
        (
            32,
            {"head": "pooled_classes", "num_classes": 3},
            "has a head of kind vocabulary, and the student's is pooled",
        ),
    ],
)
def test_a_teacher_that_reads_or_says_something_else_is_refused(teacher, row_tokens, fields, said):
    with pytest.raises(ConfigError, match=said):
        opened(teacher, Tokenizer.load(teacher), row_tokens, **fields)


def test_a_teacher_of_other_classes_is_refused(tmp_path, byte_tokenizer):
    classes = {"head": "pooled_classes", "num_classes": 2, "max_positions": 64}
    shape = {**SHAPE, "vocab_size": 260, **classes, "class_names": ("bad", "good")}
    save_hugging_face(build(ModelConfig.model_validate(shape), 0), tmp_path)
    tokenizer = byte_tokenizer("<|end|>", "<s>", "</s>", "<pad>")
    tokenizer.save(tmp_path)
    with pytest.raises(
        ConfigError, match="tells bad, good apart, and the student good, bad; take a teacher of the same"
    ):
        opened(tmp_path, tokenizer, **classes, class_names=("good", "bad"))
    assert opened(tmp_path, tokenizer, **classes, class_names=("bad", "good")).known == 2


def student_run(folder: Path, data: Path, probes: tuple[Act, ...] = (), **fields: Any) -> Run:
    """A narrow student of a wide teacher: their states need a projection."""
    teacher = build(ModelConfig.model_validate({**SHAPE, "dim": 24, "num_layers": 3}), 1)
    shape = ModelConfig.model_validate({**SHAPE, "dropout": 0.2})
    config = Distillation.model_validate(
        {"teacher": "t", "hidden": {}, "relations": {"heads": 4}, "labels": 0.5}
    )
    taught = Teaching(config, teacher, Inner(config, shape, teacher.config), 32)
    model, arrangement = parallelize(shape, 0, Grid.make(CPU), "fp32", taught.beginning(Beginning()))
    given = {"steps": STEPS, "batch_tokens": 4 * ROW_TOKENS, "micro_batch_tokens": 2 * ROW_TOKENS, **fields}
    return Run(
        folder,
        TrainConfig.model_validate({"log_every": 2, "validate_every": 3, "checkpoint_every": 2, **given}),
        model=model,
        arrangement=arrangement,
        objective=taught.objective(model, "fp32"),
        corpus=Corpus(data, "train", ROW_TOKENS, 0),
        validation=Corpus(data, "validation", ROW_TOKENS, 0),
        runtime=CPU,
        probes=probes,
    )


def end_of(folder: Path) -> dict[str, list[Any]]:
    last = folder / "checkpoints" / f"step-{STEPS:06}"
    files = {name: read_tensors(last, name) for name in ("weights/model", "state/optimizer")}
    return {
        f"{file}/{key}": tensor.tolist() for file, group in files.items() for key, tensor in group.items()
    }


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_and_resumed_student_ends_as_a_straight_one_and_loads_without_projections(
    optimizer, tmp_path
):
    def stop(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    data, fields = write_corpus(tmp_path / "data"), {"optimizer": {"kind": optimizer}}
    student_run(tmp_path / "straight", data, **fields).fit()
    assert not student_run(tmp_path / "cut", data, (Act(1, stop),), **fields).fit().completed
    assert student_run(tmp_path / "cut", data, **fields).fit().completed
    ended = end_of(tmp_path / "straight")
    assert end_of(tmp_path / "cut") == ended
    beside = {name for name in ended if "projections" in name}
    assert {name for name in beside if name.endswith("/value")} == {
        f"state/optimizer/projections.layers_{n}.weight/value" for n in (0, 1)
    }
    assert not any(name.startswith("weights/") for name in beside)
    assert load_model(tmp_path / "straight")[0].config.dim == 16


def test_a_run_that_is_taught_is_validated_by_the_labels(tmp_path):
    data = write_corpus(tmp_path / "data")
    taught = student_run(tmp_path / "taught", data, steps=6, validate_every=6).fit().validation
    assert {"validation_loss", "validation_perplexity"} <= taught.keys()
    plain = make_run(tmp_path / "plain", data, steps=1).fit().validation
    assert plain["validation_targets"] == taught["validation_targets"]
    assert torch.tensor(taught["validation_loss"]).exp().item() == pytest.approx(
        taught["validation_perplexity"]
    )
