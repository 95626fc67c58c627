"""How well a model tells classes of texts apart: accuracy and F1, what it confuses, and how sure it is.

Letters in shapes: N examples, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hasten.core.config import Config
from hasten.core.errors import DataError
from hasten.data.tasks.protocol import Record
from hasten.evaluate.calibration import Calibration, calibration, fit_temperature, log_softmax
from hasten.evaluate.classifier import Answers, Classifier, Finer
from hasten.evaluate.interval import NORMAL_95


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
