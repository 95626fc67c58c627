"""What a fine-tuned model is measured by, each kind of task in its own way, and evaluation.json."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hasten.core.errors import ConfigError, DataError
from hasten.data.config import DataConfig
from hasten.data.prepare import Prepared
from hasten.data.split import Split
from hasten.data.tasks.chat import ChatConfig, ChatEncoding
from hasten.data.tasks.corpus import TaskCorpus
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.patterns import Pattern
from hasten.data.tasks.preferences import PreferencesConfig
from hasten.data.tasks.protocol import Record, Setting
from hasten.data.tasks.spans import SpansConfig
from hasten.evaluate import classify, spans
from hasten.evaluate.classifier import Classifier, class_names
from hasten.evaluate.classify import score_labelled
from hasten.evaluate.programs import read_problems
from hasten.evaluate.run import EvaluateConfig, kept
from hasten.evaluate.sample import drawn
from hasten.evaluate.spans import AnswerFinder, score_spans
from hasten.evaluate.supervised import score_preferences, score_supervised
from hasten.evaluate.written import Asked, score_written
from hasten.generate.engine import check_vocabulary
from hasten.model.transformer import Transformer
from hasten.objective.preference import Preference
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import load_model


@dataclass(frozen=True)
class Subject:
    """A model with what it is measured on; `base` is the folder of the model that its training began with."""

    model: Transformer
    tokenizer: Tokenizer
    prepared: Prepared
    data: DataConfig
    config: EvaluateConfig
    base: Path | None = None
    objective: Preference | None = None
    most: int | None = None  # measure on so many records at most, drawn by the seed; None: on all

    @property
    def bf16(self) -> bool:
        """Whether products are rounded so."""
        return self.config.bf16(self.model)

    def begun(self, folder: Path) -> Transformer:
        """The model in a folder, where the one is that is measured."""
        return load_model(folder, next(self.model.parameters()).device)[0]

    def records(self, split: Split) -> list[Record]:
        """All records of a split; none where there is no such split."""
        return [record for _, record in self.prepared.records(split)] if split in self.prepared.splits else []

    @cached_property
    def held_out(self) -> list[Record]:
        """The records to measure on."""
        found = drawn(self.records(self.config.split), self.most, self.config.seed)
        if not found:
            raise DataError(
                f"there is no row in the {self.config.split} split to evaluate on; give data.split a share,"
                f" or sources of its own in data.split.{self.config.split}_sources"
            )
        return found

    def others(self) -> list[Record]:
        """The records of validation, to fit thresholds on; none where these are measured on."""
        return [] if self.config.split == "validation" else self.records("validation")

    def corpus(self) -> TaskCorpus:
        """The records to measure on, as rows."""
        assert self.held_out
        folder, split = self.prepared.folder, self.config.split
        return TaskCorpus(folder, split, self.data.row_tokens, self.config.seed, pad_id=self.tokenizer.pad_id)

    def setting(self) -> Setting:
        """What the task has to know."""
        reads, rows = self.model.config.kind, min(self.data.row_tokens, self.model.config.max_positions)
        return Setting(self.tokenizer, reads, rows, self.base, self.prepared.learnt)


def evaluate_task(
    subject: Subject, *, path: Path | None = None, checkpoint: str | None = None
) -> dict[str, Any]:
    """Measure a model on the `config.split` of its task; the result goes to `path` too, whole or not at all.

    Raises DataError where there is nothing to measure, ConfigError where the model is not made for the task.
    """
    began = time.monotonic()
    check_vocabulary(subject.model, subject.tokenizer)
    match subject.data.task:
        case LabelledConfig() as task:
            figures = classified(subject, task)
        case SpansConfig() as task:
            figures = extracted(subject, task)
        case PreferencesConfig():
            figures = preferred(subject)
        case ChatConfig() as task:
            figures = answered(subject, task)
        case None:
            raise ConfigError("the recipe has no data.task to evaluate")
    figures["bf16"] = subject.bf16
    return kept(figures, subject.tokenizer, subject.config, began, checkpoint=checkpoint, path=path)


def classified(subject: Subject, task: LabelledConfig) -> dict[str, Any]:
    """{"classification": ...}."""
    score = score_labelled(
        classifier_of(subject, task),
        subject.held_out,
        subject.config.classification,
        validation=subject.others(),
    )
    return {"classification": classify.as_record(score, subject.config.split)}


def classifier_of(subject: Subject, task: LabelledConfig) -> Classifier:
    """What tells the classes of the task apart."""
    names, sizes = class_names(subject.model, task), (subject.data.row_tokens, subject.config.batch_tokens)
    groups = subject.prepared.learnt.get("groups")
    return Classifier(subject.model, subject.tokenizer, task, names, *sizes, bf16=subject.bf16, groups=groups)


def extracted(subject: Subject, task: SpansConfig) -> dict[str, Any]:
    """{"answers": ...}."""
    score = score_spans(
        finder_of(subject, task),
        subject.held_out,
        subject.config.extraction,
        validation=subject.others(),
        unanswerable=bool(subject.prepared.learnt.get("unanswerable")),
    )
    return {"answers": spans.as_record(score, subject.config.split)}


def finder_of(subject: Subject, task: SpansConfig) -> AnswerFinder:
    """What finds answers."""
    sizes = subject.data.row_tokens, subject.config.batch_tokens
    return AnswerFinder(subject.model, subject.tokenizer, task, *sizes, bf16=subject.bf16)


def preferred(subject: Subject) -> dict[str, Any]:
    """{"preferences": ...}."""
    assert subject.objective is not None
    base = None
    if subject.objective.needs_reference:
        if subject.base is None:
            raise ConfigError(
                "preferences are measured from the model that training began with; write base: ..."
            )
        base = subject.begun(subject.base)
    score = score_preferences(subject.model, base, subject.corpus(), subject.objective, bf16=subject.bf16)
    return {
        "preferences": {"split": subject.config.split, "method": subject.objective.method, **asdict(score)}
    }


def answered(subject: Subject, task: ChatConfig) -> dict[str, Any]:
    """{"supervised": ..., "written": ...}: the loss of held-out answers, and answers that it writes."""
    corpus, base = subject.corpus(), {}
    score = score_supervised(subject.model, corpus, bf16=subject.bf16)
    if subject.base is not None:
        before = score_supervised(subject.begun(subject.base), corpus, bf16=subject.bf16)
        base = {"base": asdict(before)}
    result: dict[str, Any] = {"supervised": {"split": subject.config.split, **asdict(score), **base}}
    if subject.config.written is not None:
        result["written"] = score_written(
            subject.model, subject.tokenizer, questions(subject, task), subject.config.written
        )
    return result


def questions(subject: Subject, task: ChatConfig) -> list[Asked]:
    """What the model is to answer: the problems for programs, or the last turn of each held-out record."""
    encoding, config = task.open(subject.setting()), subject.config
    assert config.written is not None
    if config.written.metric == "programs":
        if config.problems is None:
            raise ConfigError(
                "evaluate.written.metric is programs; write evaluate.problems: a file of MBPP or HumanEval"
            )
        problems = read_problems(config.problems)
        prompts = prompts_of(encoding, [problem.chat_prompt() for problem in problems])
        return [Asked(tuple(ids), problem=problem) for ids, problem in zip(prompts, problems, strict=True)]
    records = subject.held_out[: config.max_rows]
    room = subject.model.config.max_positions - config.written.max_new_tokens
    found = zip(encoding.prompts(records, room), records, strict=True)
    return [Asked(tuple(ids), tuple(record["references"]), source_of(record, task)) for ids, record in found]


def prompts_of(encoding: ChatEncoding, texts: Sequence[str]) -> list[list[int]]:
    """What a model reads that is asked `texts`."""
    asked = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]}
        for text in texts
    ]
    return encoding.prompts(asked)


def source_of(record: Record, task: ChatConfig) -> str:
    """What was asked last, without the recipe's own words around it: the text that a summary is of."""
    text = str(record["messages"][-2]["content"]) if len(record["messages"]) > 1 else ""
    if task.prompt is None:
        return text
    (before, _), (behind, column) = Pattern.of(task.prompt).pieces[0], Pattern.of(task.prompt).pieces[-1]
    return text.removeprefix(before).removesuffix(behind if column is None else "")
