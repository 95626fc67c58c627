"""How well a model tells classes of texts apart: accuracy and F1, what it confuses, and how sure it is.

Letters in shapes: N examples, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from hasten.core.config import Config
from hasten.core.console import Progress
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.labelled import LabelledConfig, check_group, pooled_place
from hasten.data.tasks.packed import PackedRows, packed_rows
from hasten.data.tasks.protocol import Example, Record, Setting
from hasten.evaluate.calibration import Calibration, calibration, fit_temperature, log_softmax
from hasten.evaluate.interval import NORMAL_95
from hasten.evaluate.states import states
from hasten.model.transformer import Transformer
from hasten.tokenizer.tokenizer import Tokenizer


class ClassificationConfig(Config):
    """What of a classification goes into evaluation.json beside the figures."""

    bins: Annotated[int, Field(ge=1)] = Field(15, description="of confidence, for the calibration error")
    mistakes: Annotated[int, Field(ge=0)] = Field(12, description="the most confident ones are kept")


@dataclass(frozen=True)
class ClassScore:
    """One class: of its `examples` and of the `predicted` ones, how many are right."""

    name: str
    precision: float  # 0 for a class that is never predicted
    recall: float
    f1: float
    examples: int
    predicted: int


@dataclass(frozen=True)
class Mistake:
    """A text, the class that it has and the one that the model thinks likeliest."""

    text: str
    pair: str | None
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Tempered:
    """Calibration after logits are divided by a temperature, fitted on other examples."""

    temperature: float
    fitted_on: int
    calibration: Calibration


@dataclass(frozen=True)
class Finer:
    """How well the labels are told apart of which the classes that are scored are groups."""

    labels: int
    accuracy: float


@dataclass(frozen=True)
class ClassificationScore:
    """What a model made of `examples` texts.

    `macro_f1` is the mean over classes that occur or are predicted.  `majority` is the share of the commonest
    class, which is the best that a constant answer can do.
    """

    examples: int
    left_out: int  # records that `too_long: drop`, or no token, left out
    accuracy: float
    interval: tuple[float, float]  # 95%, Wilson 1927
    macro_f1: float
    majority: float
    majority_macro_f1: float
    classes: list[ClassScore]
    confusion: list[list[int]]  # [C][C] true classes down, predicted ones across
    calibration: Calibration
    tempered: Tempered | None
    finer: Finer | None
    mistakes: list[Mistake]


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
        config = self.model.config
        row_tokens = min(self.row_tokens, config.max_positions)
        setting = Setting(self.tokenizer, config.kind, row_tokens, learnt={"labels": list(self.labels)})
        found = self.task.open(setting).units(records)
        kept = [record for record, units in zip(records, found, strict=True) if not isinstance(units, str)]
        examples = [unit[0] for units in found if not isinstance(units, str) for unit in units]
        places = [pooled_place(example) for example in examples]
        labels = [example.targets[place] for example, place in zip(examples, places, strict=True)]
        logits = self.logits(examples, np.array(places, np.int64), row_tokens)
        return self.grouped(Answers(kept, logits, np.array(labels, np.int64), len(records) - len(kept)))

    def grouped(self, answers: Answers) -> Answers:
        """Answers of groups for those of labels."""
        if self.groups is None:
            return answers
        places = self.places
        for record in answers.records:
            check_group(record, self.groups[record["label"]])
        right = answers.logits.argmax(axis=1) == answers.labels
        members = [answers.logits[:, places == group] for group in range(len(self.names))]
        logits = np.stack([np.logaddexp.reduce(some, axis=1) for some in members], axis=1)
        finer = Finer(len(self.labels), float(right.mean()) if len(right) else 0.0)
        return replace(answers, logits=logits, labels=places[answers.labels], finer=finer)

    def logits(
        self, examples: Sequence[Example], places: NDArray[np.int64], row_tokens: int
    ) -> NDArray[np.float64]:
        """Scores [N, C] at a place of each example [N]."""
        result, at, done = np.empty((len(examples), len(self.labels))), torch.from_numpy(places), 0
        with Progress("classify", len(examples), "texts") as progress:
            for rows in packed_rows(examples, row_tokens, self.batch_tokens, self.tokenizer.pad_id):
                result[rows.numbers.numpy()] = self.scores(rows, rows.starts + at[rows.numbers])
                done += len(rows.numbers)
                progress.update(done)
        return result

    def scores(self, rows: PackedRows, places: torch.Tensor) -> NDArray[np.float64]:
        """Scores [E, C] at one place of each example [E] of a batch."""
        hidden = states(self.model, rows.batch, bf16=self.bf16)
        pooled = hidden[rows.rows.to(hidden.device), places.to(hidden.device)]
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


def score_labelled(
    classifier: Classifier,
    records: Sequence[Record],
    config: ClassificationConfig | None = None,
    *,
    validation: Sequence[Record] = (),
) -> ClassificationScore:
    """Score a classifier on `records`; a temperature is fitted on `validation`, which are others.

    Raises DataError where there is nothing to score.
    """
    config = config or ClassificationConfig()
    answers = classifier.answers(records)
    if not len(answers.labels):
        raise DataError("there is no labelled text to evaluate on; give data.split a share for it")
    labels, predicted, names = answers.labels, answers.logits.argmax(axis=1), classifier.names
    table = confusion(labels, predicted, len(names))
    right, total = int(np.trace(table)), len(labels)
    classes = class_scores(table, names)
    constant = np.full_like(labels, table.sum(axis=1).argmax())
    fitted = classifier.answers(validation) if len(validation) else None
    return ClassificationScore(
        examples=total,
        left_out=answers.left_out,
        accuracy=right / total,
        interval=wilson(right, total),
        macro_f1=macro_f1(classes),
        majority=float((constant == labels).mean()),
        majority_macro_f1=macro_f1(class_scores(confusion(labels, constant, len(table)), names)),
        classes=classes,
        confusion=table.tolist(),
        calibration=calibration(log_softmax(answers.logits), labels, config.bins),
        tempered=tempered(answers, fitted, config.bins) if fitted and len(fitted.labels) else None,
        finer=answers.finer,
        mistakes=mistakes(answers, names)[: config.mistakes],
    )


def tempered(answers: Answers, fitted: Answers, bins: int) -> Tempered:
    """Calibration at the temperature that suits other answers best."""
    temperature = fit_temperature(fitted.logits, fitted.labels)
    after = calibration(log_softmax(answers.logits / temperature), answers.labels, bins)
    return Tempered(temperature, len(fitted.labels), after)


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """How often each class [C] was taken for each [C]."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_scores(table: NDArray[np.int64], names: Sequence[str]) -> list[ClassScore]:
    """Precision, recall and F1 of each class of a confusion matrix [C, C]; 0 where they divide by 0."""
    found = []
    for number, name in enumerate(names):
        right, examples, predicted = (
            int(x) for x in (table[number, number], table[number].sum(), table[:, number].sum())
        )
        precision, recall = right / max(predicted, 1), right / max(examples, 1)
        f1 = 2 * right / max(examples + predicted, 1)
        found.append(ClassScore(name, precision, recall, f1, examples, predicted))
    return found


def macro_f1(classes: Sequence[ClassScore]) -> float:
    """The mean F1 of the classes that occur or are predicted."""
    return float(np.mean([each.f1 for each in classes if each.examples or each.predicted]))


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share of independent trials (Wilson 1927): never beyond 0 and 1."""
    share, z2 = right / total, NORMAL_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # Rounding may leave an end that is the share itself, 0 or 1, a little beside it.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def mistakes(answers: Answers, names: Sequence[str]) -> list[Mistake]:
    """The texts that the model gets wrong, those first of which it is surest."""
    probs = np.exp(log_softmax(answers.logits))
    predicted = probs.argmax(axis=1)
    confidence = probs.max(axis=1)
    wrong = np.flatnonzero(predicted != answers.labels)
    found = []
    for number in wrong[np.argsort(-confidence[wrong], kind="stable")].tolist():
        record, label = answers.records[number], names[int(answers.labels[number])]
        guess, sure = names[int(predicted[number])], float(confidence[number])
        found.append(Mistake(record["text"], record.get("pair"), label, guess, sure))
    return found


def as_record(score: ClassificationScore, split: str) -> dict[str, Any]:
    """What evaluation.json holds of a classification."""
    return {"split": split, **asdict(score)}
