"""A model that tells classes of texts apart, as something that can be asked about records.

Letters in shapes: N texts, C classes, G groups, E texts in a batch, D model width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.core.console import Progress
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.labelled import LabelledConfig, check_group
from hasten.data.tasks.pooled import pooled_place, pooled_states
from hasten.data.tasks.protocol import Example, Record, Setting
from hasten.evaluate.calibration import log_softmax
from hasten.evaluate.states import states
from hasten.model.transformer import Transformer
from hasten.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Finer:
    """How well the labels are told apart of which the classes that are scored are groups."""

    labels: int
    accuracy: float


@dataclass(frozen=True)
class Answers:
    """A model's scores of all classes for some records."""

    records: list[Record]
    logits: NDArray[np.float64]  # [N, C]
    labels: NDArray[np.int64]  # [N]
    left_out: int
    finer: Finer | None = None


@dataclass(frozen=True)
class Classifier:
    """A model with what it takes to ask it; `labels` are the names of its classes, in order.

    With `groups`, {label: group}, its answers are those of the groups: each as likely as its labels together.
    """

    model: Transformer
    tokenizer: Tokenizer
    task: LabelledConfig
    labels: Sequence[str]
    row_tokens: int
    batch_tokens: int = 8192
    bf16: bool = False
    groups: Mapping[str, str] | None = None

    @property
    def names(self) -> list[str]:
        """What texts are told apart as: the groups, or the labels themselves."""
        return list(self.labels) if self.groups is None else sorted(set(self.groups.values()))

    @property
    def places(self) -> NDArray[np.int64]:
        """The place in `names` of each label."""
        groups, places = self.groups or {}, {name: place for place, name in enumerate(self.names)}
        for label in self.labels:
            if self.groups is not None and label not in groups:
                raise DataError(
                    f"no training row says which group the label {label!r} is of; leave it out of"
                    " data.task.labels, or give a row with it"
                )
        return np.array([places[groups.get(label, label)] for label in self.labels], np.int64)

    def answers(self, records: Sequence[Record]) -> Answers:
        """What the model says to each record; DataError for a label that is none of its classes."""
        numbers, examples = self.read(records)
        kept = [records[number] for number in numbers]
        labels = [example.targets[pooled_place(example)] for example in examples]
        with Progress("classify", len(examples), "texts") as progress:
            logits = self.logits(examples, progress.add)
        return self.grouped(Answers(kept, logits, np.array(labels, np.int64), len(records) - len(kept)))

    def asked(self, records: Sequence[Record]) -> tuple[list[int], NDArray[np.float64]]:
        """Which of some records it could read, and the log-probabilities [N, C] of `names` for those."""
        numbers, examples = self.read(records)
        logits = self.logits(examples)
        return numbers, log_softmax(logits if self.groups is None else self.of_groups(logits))

    def read(self, records: Sequence[Record]) -> tuple[list[int], list[Example]]:
        """Which records a row has room for, and their examples."""
        setting = Setting(
            self.tokenizer, self.model.config.kind, self.room, learnt={"labels": list(self.labels)}
        )
        found = self.task.open(setting).units(records)
        numbers = [number for number, units in enumerate(found) if not isinstance(units, str)]
        return numbers, [unit[0] for units in found if not isinstance(units, str) for unit in units]

    @property
    def room(self) -> int:
        """Tokens of a row."""
        return min(self.row_tokens, self.model.config.max_positions)

    def grouped(self, answers: Answers) -> Answers:
        """Answers of groups for those of labels."""
        if self.groups is None:
            return answers
        places = self.places
        for record in answers.records:
            check_group(record, self.groups[record["label"]])
        right = answers.logits.argmax(axis=1) == answers.labels
        finer = Finer(len(self.labels), float(right.mean()) if len(right) else 0.0)
        logits = self.of_groups(answers.logits)
        return replace(answers, logits=logits, labels=places[answers.labels], finer=finer)

    def of_groups(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of groups [N, G] for those of labels [N, C]."""
        places = self.places
        members = [logits[:, places == group] for group in range(len(self.names))]
        return np.stack([np.logaddexp.reduce(some, axis=1) for some in members], axis=1)

    def logits(
        self, examples: Sequence[Example], on_done: Callable[[int], object] = lambda number: None
    ) -> NDArray[np.float64]:
        """Scores [N, C] at each example's place of its label; `on_done` hears how many more there are."""
        result = np.empty((len(examples), len(self.labels)))
        read = partial(states, self.model, bf16=self.bf16)
        sizes = {"row_tokens": self.room, "batch_tokens": self.batch_tokens}
        for numbers, pooled in pooled_states(read, examples, pad_id=self.tokenizer.pad_id, **sizes):
            result[numbers.numpy()] = self.scores(pooled)
            on_done(len(numbers))
        return result

    def scores(self, pooled: Tensor) -> NDArray[np.float64]:
        """Scores [E, C] of states [E, D]."""
        with torch.no_grad():
            # The head is small: whatever the layers were computed in, it is in float32.
            scores = self.model.logits(pooled.to(self.model.head_weight.dtype))
        numbers: NDArray[np.float64] = scores.double().cpu().numpy()
        return numbers


def class_names(model: Transformer, task: LabelledConfig) -> list[str]:
    """The names of a model's classes: its own, or those of the recipe, or numbers.

    Raises ConfigError for a model without classes of texts, or where the recipe names others.
    """
    config = model.config
    if config.head != "pooled_classes" or config.num_classes is None:
        raise ConfigError(
            f"model.head is {config.head}, which has no classes of texts; train one with"
            " data.task.kind=labelled"
        )
    if config.class_names is not None:
        return list(config.class_names)
    if task.labels is None:
        return [str(number) for number in range(config.num_classes)]
    if len(task.labels) != config.num_classes:
        raise ConfigError(
            f"data.task.labels names {len(task.labels)} classes and the model has {config.num_classes}; name"
            " each, in the model's order"
        )
    return list(task.labels)
