"""Scores of a classifier: written out by hand, the same packed and alone, those of a model that learnt."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_tasks
import torch

from hasten.core.batch import IGNORE
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.labelled import LabelledConfig
from hasten.evaluate.classifier import Answers, Classifier, class_names
from hasten.evaluate.classify import (
    ClassificationConfig,
    as_record,
    class_scores,
    confusion,
    macro_f1,
    score_labelled,
    wilson,
)
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.objective.cross_entropy import CrossEntropy

ANIMALS = ["bird", "cat", "dog"]
TASK = LabelledConfig()


def animal(text: str) -> str:
    return next(name for name in ANIMALS if name in text.split())


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"text": text, "label": animal(text)} for text in tiny_tasks.sentences(count, seed)]


def made(kind: str = "encoder", **changes: Any) -> Classifier:
    model = tiny_tasks.classifier(kind, ANIMALS)
    known = Classifier(model, tiny_tasks.tokenizer(), TASK, class_names(model, TASK), row_tokens=40)
    return replace(known, **changes)


class Said(Classifier):
    """A classifier whose scores are given."""

    def answers(self, records: Any) -> Answers:
        logits = np.array([record["logits"] for record in records], np.float64)
        labels = np.array([self.labels.index(record["label"]) for record in records])
        return Answers(list(records), logits, labels, 0)


def said(labels: list[str], logits: list[list[float]], names: list[str]) -> tuple[Said, list[dict[str, Any]]]:
    rows = [
        {"text": f"text {n}", "label": label, "logits": scores}
        for n, (label, scores) in enumerate(zip(labels, logits, strict=True))
    ]
    return Said(None, None, TASK, names, 40), rows  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@torch.no_grad()
def test_packed_texts_are_scored_as_each_alone(kind):
    classifier, rows = made(kind), records(23)
    answers = classifier.answers(rows)
    model, tokenizer = classifier.model, classifier.tokenizer
    for record, scores, label in zip(rows, answers.logits, answers.labels, strict=True):
        ids = tokenizer.inner.encode(record["text"]).ids
        hidden = model(torch.tensor([ids]))
        expected = model.logits(hidden[0, 0 if kind == "encoder" else -1])
        torch.testing.assert_close(torch.from_numpy(scores).float(), expected, rtol=1e-4, atol=1e-5)
        assert ANIMALS[label] == record["label"]


def test_two_texts_are_read_with_their_types():
    task = LabelledConfig(pair_field="other")
    rows = [
        {"text": a["text"], "pair": b["text"], "label": "cat"}
        for a, b in zip(records(9), records(9, 1), strict=True)
    ]
    classifier = made(task=task)
    model = classifier.model
    for record, scores in zip(rows, classifier.answers(rows).logits, strict=True):
        encoded = classifier.tokenizer.inner.encode(record["text"], record["pair"])
        with torch.no_grad():
            hidden = model(torch.tensor([encoded.ids]), token_types=torch.tensor([encoded.type_ids]))
            expected = model.logits(hidden[0, 0])
        torch.testing.assert_close(torch.from_numpy(scores).float(), expected, rtol=1e-4, atol=1e-5)


def test_precision_recall_f1_and_their_mean_are_those_counted_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    predicted = np.array([0, 0, 1, 1, 2, 2, 2, 2, 0])
    names = ["a", "b", "c", "never"]
    table = confusion(labels, predicted, 4)
    expected = np.zeros((4, 4), int)
    for true, guess in zip(labels, predicted, strict=True):
        expected[true, guess] += 1
    assert (table == expected).all()
    classes = class_scores(table, names)
    for number, each in enumerate(classes[:3]):
        right = sum((labels == number) & (predicted == number))
        precision, recall = right / sum(predicted == number), right / sum(labels == number)
        assert (each.precision, each.recall) == (precision, recall)
        assert each.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert (classes[3].f1, classes[3].examples, classes[3].predicted) == (0, 0, 0)
    # A class that neither occurs nor is predicted is not averaged over, as in scikit-learn.
    assert macro_f1(classes) == pytest.approx(np.mean([each.f1 for each in classes[:3]]))


def test_the_interval_solves_wilsons_equation():
    """Its ends are the shares whose own normal interval just reaches the share that was seen."""
    for right, total in [(0, 10), (7, 10), (10, 10), (871, 900), (1, 1)]:
        share = right / total
        low, high = wilson(right, total)
        assert 0 <= low <= share <= high <= 1
        for end in (low, high):
            if 0 < end < 1:
                distance = abs(share - end) / math.sqrt(end * (1 - end) / total)
                assert distance == pytest.approx(1.959964, rel=1e-6)


def test_everything_is_told_of_a_small_confusion():
    labels = ["a", "a", "b", "b", "b", "c"]
    logits = [[3.0, 0, 0], [0, 1, 0], [0, 2, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1]]
    classifier, rows = said(labels, logits, ["a", "b", "c"])
    score = score_labelled(classifier, rows, ClassificationConfig(mistakes=1))
    assert (score.examples, score.accuracy, score.majority) == (6, 4 / 6, 0.5)
    assert score.interval == wilson(4, 6)
    assert score.confusion == [[1, 1, 0], [1, 2, 0], [0, 0, 1]]
    assert score.majority_macro_f1 == pytest.approx((2 * 3 / (3 + 6)) / 3)
    (worst,) = score.mistakes
    assert (worst.text, worst.label, worst.predicted) == ("text 3", "b", "a")
    assert worst.confidence == pytest.approx(math.exp(4) / (math.exp(4) + 2))
    assert score.tempered is None
    assert score.calibration.nll == pytest.approx(
        -np.mean(
            [row[n] - np.log(np.exp(row).sum()) for row, n in zip(logits, [0, 0, 1, 1, 1, 2], strict=True)]
        )
    )
    json.dumps(as_record(score, "test"), allow_nan=False)


def test_a_temperature_fitted_on_validation_lowers_the_calibration_error_of_a_model_that_is_too_sure():
    draw = np.random.default_rng(0)

    def rows(count: int) -> tuple[Said, list[dict[str, Any]]]:
        plain = draw.normal(size=(count, 3))
        probs = np.exp(plain) / np.exp(plain).sum(axis=1, keepdims=True)
        labels = [ANIMALS[draw.choice(3, p=p)] for p in probs]
        return said(labels, (5 * plain).tolist(), ANIMALS)

    (classifier, tests), (_, validation) = rows(4000), rows(2000)
    score = score_labelled(classifier, tests, validation=validation)
    assert score.tempered is not None and score.tempered.fitted_on == 2000
    assert score.tempered.temperature == pytest.approx(5, rel=0.1)
    assert score.tempered.calibration.ece < 0.04 and score.calibration.ece > 0.2
    assert score.tempered.calibration.nll < score.calibration.nll


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_model_that_learns_from_the_examples_tells_the_classes_apart(kind):
    """From records to examples to the loss to the score, each by the code that training uses."""
    classifier, rows = made(kind), records(150)
    objective = CrossEntropy()
    setting = {"labels": ANIMALS}
    before = score_labelled(classifier, records(60, 1)).accuracy

    def supervised(packed, examples):
        targets = packed.batch.targets.clone()
        for row, start, example in zip(packed.rows, packed.starts, examples, strict=True):
            targets[row, start : start + len(example.tokens)] = torch.tensor(example.targets)
        scored = (targets.flatten() != IGNORE).nonzero().flatten()
        return replace(packed.batch, targets=targets, extra={"scored": scored})

    from hasten.data.tasks.protocol import Setting

    encoding = TASK.open(Setting(classifier.tokenizer, kind, 40, learnt=setting))
    examples = [units[0][0] for units in encoding.units(rows)]
    tiny_tasks.teach(classifier.model, examples, objective, supervised, 60)
    score = score_labelled(classifier, records(60, 1))
    assert score.accuracy > 0.95 > before


def test_texts_left_out_are_counted_and_not_scored():
    classifier = made(task=LabelledConfig(too_long="drop"), row_tokens=8)
    rows = records(30)
    score = score_labelled(classifier, rows)
    assert score.left_out == sum(len(record["text"].split()) > 6 for record in rows) > 0
    assert score.examples == 30 - score.left_out


def test_bf16_changes_scores_a_little_and_answers_hardly():
    rows = records(40)
    plain, half = made().answers(rows).logits, made(bf16=True).answers(rows).logits
    assert 0 < np.abs(plain - half).max() < 0.1 * np.abs(plain).max()


def test_the_names_of_classes_are_the_models_own_or_the_recipes_or_numbers():
    model = tiny_tasks.classifier("encoder", ANIMALS)
    assert class_names(model, LabelledConfig(labels=("x", "y", "z"))) == ANIMALS
    model.config = model.config.model_copy(update={"class_names": None})
    assert class_names(model, LabelledConfig(labels=("x", "y", "z"))) == ["x", "y", "z"]
    assert class_names(model, TASK) == ["0", "1", "2"]
    with pytest.raises(ConfigError, match="labels names 2 classes and the model has 3"):
        class_names(model, LabelledConfig(labels=("x", "y")))
    with pytest.raises(ConfigError, match=r"model.head is token_classes, which has no classes of texts"):
        class_names(tiny_tasks.answerer(), TASK)


def test_a_classifier_writes_no_text():
    model = tiny_tasks.classifier("decoder", ANIMALS)
    with pytest.raises(ConfigError, match=r"model.head is pooled_classes, which tells classes apart"):
        generate(model, tiny_tasks.tokenizer(), ["the cat"], GenerateConfig())


def test_nothing_to_score_and_unknown_labels_are_refused():
    with pytest.raises(DataError, match="no labelled text to evaluate on"):
        score_labelled(made(), [])
    with pytest.raises(DataError, match="label 'cow' is none of the 3 classes"):
        score_labelled(made(), [{"text": "the cow", "label": "cow"}])


GROUPS = {"bird": "wings", "cat": "legs", "dog": "legs"}


def test_groups_are_as_likely_as_their_labels_together():
    rows = [{**record, "group": GROUPS[record["label"]]} for record in records(40)]
    plain, grouped = made(), made(groups=GROUPS)
    fine, coarse = plain.answers(rows), grouped.answers(rows)
    probabilities = np.exp(fine.logits) / np.exp(fine.logits).sum(axis=1, keepdims=True)
    expected = np.stack([probabilities[:, [1, 2]].sum(axis=1), probabilities[:, 0]], axis=1)
    found = np.exp(coarse.logits) / np.exp(coarse.logits).sum(axis=1, keepdims=True)
    assert grouped.names == ["legs", "wings"] and np.allclose(found, expected, atol=1e-12)
    score = score_labelled(grouped, rows)
    right = [
        grouped.names[int(p.argmax())] == record["group"] for p, record in zip(expected, rows, strict=True)
    ]
    assert score.accuracy == np.mean(right) and len(score.confusion) == 2
    assert score.finer is not None
    assert (score.finer.labels, score.finer.accuracy) == (3, score_labelled(plain, rows).accuracy)
    json.dumps(as_record(score, "test"), allow_nan=False)


def test_a_label_without_a_group_or_of_two_is_refused():
    with pytest.raises(DataError, match="no training row says which group the label 'dog' is of"):
        made(groups={"bird": "wings", "cat": "legs"}).answers(records(3))
    with pytest.raises(DataError, match="is of the group 'legs' in one row and of 'wings'"):
        made(groups=GROUPS).answers([{"text": "the cat", "label": "cat", "group": "wings"}])
