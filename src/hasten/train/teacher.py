"""A teacher beside a student: taken out of its folder, refused where the two do not fit, put to work."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer
from hasten.objective.distillation import Distillation
from hasten.objective.distilled import Distilled
from hasten.objective.inner import Inner
from hasten.parallel.apply import Beginning
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.by_text import Reading, Texts
from hasten.train.load import load_model
from hasten.train.restore import checkpoint_in


@dataclass(frozen=True)
class Teaching:
    """A distillation with the teacher that it names."""

    config: Distillation
    teacher: Transformer
    inner: Inner
    known: int  # tokens of the tokenizer of both, or classes
    reading: Reading | None = None  # texts, for a teacher that spells otherwise

    def beginning(self, start: Beginning) -> Beginning:
        """What a student begins with, and beside it what makes its states as wide as its teacher's."""

        def adapt(model: Transformer) -> None:
            start.adapt(model)
            self.inner.put_projections(model)

        return replace(start, adapt=adapt)

    def objective(self, student: Transformer, precision: str) -> Distilled:
        """The objective of the student; with a cache batches bring what the teacher said."""
        teacher = self.teacher if self.config.cache is None else None
        return Distilled(
            self.config, student, teacher, inner=self.inner, known=self.known, precision=precision
        )


def open_teaching(
    config: Distillation,
    folder: Path,
    student: ModelConfig,
    tokenizer: Tokenizer,
    *,
    row_tokens: int,
    device: torch.device | str = "cpu",
    texts: Texts | None = None,
) -> Teaching:
    """The teacher in `folder` for a student of this shape; ConfigError where the two do not fit.

    With `texts` it may spell otherwise than the student, or be of another kind, if it says their classes.
    """
    teacher, own = load_model(folder, device)
    if own is None:
        raise ConfigError(f"objective.teacher: {folder} has no tokenizer.json; put the teacher's own there")
    where = checkpoint_in(folder)
    alike = own.spells_like(tokenizer) and teacher.config.kind == student.kind
    alike = alike and (texts is None or texts.asks_alike(where))
    by_text = texts is not None and not alike and teacher.config.head == student.head == "pooled_classes"
    if by_text:
        check_answers(folder, config)
    else:
        check_vocabulary(folder, own, tokenizer)
        check_shapes(folder, teacher.config, student, row_tokens)
    if config.asks_logits:
        check_heads(folder, teacher.config, student)
    nn.Module.requires_grad_(teacher, False)
    classes = student.head != "vocabulary"
    known = student.head_rows if classes else tokenizer.vocab_size
    reading = None
    if texts is not None and by_text:
        reading = texts.read_by(where, teacher.config, own, row_tokens)
    return Teaching(config, teacher, Inner(config, student, teacher.config), known, reading)


def check_answers(folder: Path, config: Distillation) -> None:
    """Refuse to ask at each step a teacher whose answers alone can be compared with its student's."""
    if config.hidden is not None or config.relations is not None:
        raise ConfigError(
            f"objective.teacher: {folder} spells, is built or is asked otherwise than the student, so its"
            " places are not the student's; leave out objective.hidden and objective.relations"
        )
    if config.cache is None:
        raise ConfigError(
            f"objective.teacher: {folder} spells, is built or is asked otherwise than the student, so it"
            " reads each text once, before the first step; write objective.cache: {samples: all}"
        )


def check_vocabulary(folder: Path, teacher: Tokenizer, student: Tokenizer) -> None:
    """Refuse a teacher that numbers tokens in another way than its student."""
    if teacher.spells_like(student):
        return
    raise ConfigError(
        f"objective.teacher: {folder} has another vocabulary ({teacher.vocab_size:,} tokens) than the student"
        f" ({student.vocab_size:,}), so their distributions cannot be compared; write data.tokenizer:"
        f" {folder}, or train on texts that the teacher writes"
    )


def check_shapes(folder: Path, teacher: ModelConfig, student: ModelConfig, row_tokens: int) -> None:
    """Refuse a teacher that cannot read what its student reads."""
    if teacher.kind != student.kind:
        raise ConfigError(
            f"objective.teacher: {folder} is a model of kind {teacher.kind}, and the student is of kind"
            f" {student.kind}; take a teacher of the student's kind"
        )
    if row_tokens > teacher.max_positions:
        raise ConfigError(
            f"data.row_tokens ({row_tokens:,}) is more than the {teacher.max_positions:,} positions of the"
            f" teacher in {folder}; write data.row_tokens={teacher.max_positions}, or less"
        )
    if teacher.kind == "seq2seq" and teacher.start_id != student.start_id:
        raise ConfigError(
            f"objective.teacher: {folder} begins its targets with token {teacher.start_id}, and the student"
            f" with {student.start_id}; write model.start_id={teacher.start_id}"
        )


def check_heads(folder: Path, teacher: ModelConfig, student: ModelConfig) -> None:
    """Refuse a teacher that is asked one thing where its student is asked another."""
    if teacher.head != student.head:
        raise ConfigError(
            f"objective.teacher: {folder} has a head of kind {teacher.head}, and the student's is"
            f" {student.head}; take a teacher that was trained for this task, or write objective.labels=1"
            " with objective.hidden or objective.relations"
        )
    if teacher.class_names != student.class_names:
        theirs, own = (", ".join(shape.class_names or ("nameless classes",)) for shape in (teacher, student))
        raise ConfigError(
            f"objective.teacher: {folder} tells {theirs} apart, and the student {own}; take a teacher of the"
            " same classes in the same order"
        )
