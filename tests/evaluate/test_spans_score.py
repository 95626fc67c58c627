"""Answers found in texts: against a search written out, over windows, with and without an answer."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import tiny_tasks
import torch

from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.protocol import Setting
from hasten.data.tasks.spans import SpansConfig
from hasten.evaluate.spans import (
    AnswerFinder,
    ExtractionConfig,
    Found,
    as_record,
    best_pairs,
    fit_threshold,
    score_spans,
)
from hasten.objective.spans import Spans

TASK = SpansConfig(stride_tokens=4)
QUESTIONS = ["who ?", "what sat ?"]


def record(text: str, question: str = "who ?") -> dict[str, Any]:
    animal = next((word for word in text.split() if word in ("cat", "dog", "bird")), None)
    answers = [] if animal is None else [animal]
    starts = [text.index(word) for word in answers]
    return {"question": question, "context": text, "answers": answers, "starts": starts}


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [record(text) for text in tiny_tasks.sentences(count, seed)]


@pytest.fixture
def finder() -> AnswerFinder:
    return AnswerFinder(tiny_tasks.answerer(), tiny_tasks.tokenizer(), TASK, row_tokens=16)


@torch.no_grad()
def searched(finder: AnswerFinder, one: dict[str, Any], most: int) -> tuple[str, float, float]:
    """The best answer, its score and none's, by trying all pairs in all windows, each window read alone."""
    encoding = TASK.open(Setting(finder.tokenizer, "encoder", finder.width))
    (reading,) = encoding.read([one])
    best, nulls = ("", -np.inf), []
    for window in reading.windows:
        hidden = finder.model(torch.tensor([window.tokens]), token_types=torch.tensor([window.types]))
        starts, ends = finder.model.logits(hidden)[0].T.tolist()
        nulls.append(starts[0] + ends[0])
        own = range(window.place, window.place + window.length)
        for first, last in itertools.product(own, own):
            if first <= last < first + most and starts[first] + ends[last] > best[1]:
                shift = window.first - window.place
                a, b = reading.offsets[first + shift, 0], reading.offsets[last + shift, 1]
                best = one["context"][a:b], starts[first] + ends[last]
    return *best, min(nulls)


@pytest.mark.parametrize("most", [1, 3, 64])
def test_the_best_answer_is_that_of_a_search_written_out(finder, most):
    rows = [record(text, question) for text in tiny_tasks.sentences(25) for question in QUESTIONS]
    windows = 0
    for one, found in zip(rows, finder.find(rows, most), strict=True):
        text, score, null = searched(finder, one, most)
        assert found.text == text
        assert found.score == pytest.approx(score, abs=1e-4)
        assert found.margin == pytest.approx(null - score, abs=1e-4)
        windows += len(one["context"].split()) > 16 - 5 - 2
    assert windows > 5, "some contexts take several windows"


def test_pairs_are_in_order_and_no_longer_than_allowed():
    generator = torch.Generator().manual_seed(0)
    starts, ends = torch.randn(2, 6, 11, generator=generator)
    starts[:, 9:] = ends[:, 9:] = -torch.inf
    for most in (1, 4, 20):
        for row, (first, last, score) in enumerate(zip(*best_pairs(starts, ends, most), strict=True)):
            pairs = [(i, j) for i in range(9) for j in range(i, min(i + most, 9))]
            expected = max(pairs, key=lambda pair: starts[row, pair[0]] + ends[row, pair[1]])
            assert (int(first), int(last)) == expected
            assert score == starts[row, expected[0]] + ends[row, expected[1]]


def test_a_model_that_learns_from_the_examples_finds_answers(finder):
    """From records to windows to the loss to the score, each by the code that training uses."""
    rows, objective = records(120), Spans()
    encoding = TASK.open(Setting(finder.tokenizer, "encoder", 16))
    examples = [unit[0] for units in encoding.units(rows) for unit in units]

    def placed(packed, some):
        most = max(int(packed.batch.segments.max()), 1)
        for end in ("start", "end"):
            places = torch.full((len(packed.batch.tokens), most), -1)
            for row, start, example in zip(packed.rows, packed.starts, some, strict=True):
                segment = int(packed.batch.segments[row, start]) - 1
                places[row, segment] = start + example.places[end]
            packed.batch.extra[end] = places
        return packed.batch

    before = score_spans(finder, records(40, 1)).answers
    tiny_tasks.teach(finder.model, examples, objective, placed, 60)
    score = score_spans(finder, records(40, 1))
    assert score.answers.exact > 95 > before.exact
    assert score.null_threshold is None and score.fitted_on == 0
    assert len(score.examples) == 8 and score.examples[0].references == records(40, 1)[0]["answers"]
    json.dumps(as_record(score, "test"), allow_nan=False)


def test_where_questions_may_have_no_answer_a_threshold_decides(finder):
    rows = [*records(20), record("the mat sat on a red mat"), record("the old . blue mat")]
    never = score_spans(finder, rows, ExtractionConfig(null_threshold=-1e9))
    assert [example.answer for example in never.examples] == [""] * 8
    assert never.answers.correct_without_answer == 100 and never.answers.exact_with_answer == 0
    always = score_spans(finder, rows, ExtractionConfig(null_threshold=1e9))
    assert all(example.answer for example in always.examples)
    assert always.answers.correct_without_answer == 0
    assert score_spans(finder, rows).null_threshold == 0
    told = score_spans(finder, rows, unanswerable=False)
    assert told.null_threshold is None and told.answers.correct_without_answer == 0


def test_the_threshold_is_that_of_the_largest_f1_on_other_questions(finder):
    draw = np.random.default_rng(0)
    for _ in range(20):
        rows = [record("the cat sat") if draw.random() < 0.6 else record("the mat sat") for _ in range(12)]
        found = [Found(str(draw.choice(["cat", "mat", "the cat"])), 0.0, float(draw.normal())) for _ in rows]

        def total(threshold: float, rows=rows, found=found) -> float:
            given = [each.given(threshold).replace("the ", "").split() for each in found]
            return float(sum(words == one["answers"] for words, one in zip(given, rows, strict=True)))

        best = max(total(t) for t in [-10.0, 0.0, 10.0, *(each.margin for each in found)])
        chosen = fit_threshold(rows, found)
        assert total(chosen) == best
    rows = [*records(20), record("the mat sat on a red mat")]
    fitted = score_spans(finder, rows, validation=rows)
    assert fitted.fitted_on == len(rows)
    others = [
        score_spans(finder, rows, ExtractionConfig(null_threshold=threshold)).answers.f1
        for threshold in (-1e9, -1.0, 0.0, 1.0, 1e9)
    ]
    assert fitted.answers.f1 >= max(others) - 1e-9


def test_a_question_that_cannot_be_read_counts_as_not_answered():
    task = SpansConfig(stride_tokens=4, too_long="drop")
    finder = AnswerFinder(tiny_tasks.answerer(), tiny_tasks.tokenizer(), task, row_tokens=16)
    rows = [*records(3), record("the cat sat", "who " * 30)]
    score = score_spans(finder, rows)
    assert score.left_out == 1 and score.answers.questions == 4
    assert score.examples[3].answer == ""


def test_other_heads_and_nothing_to_score_are_refused(finder):
    model = tiny_tasks.classifier("encoder", ["a", "b"])
    with pytest.raises(
        ConfigError, match=r"model.head is pooled_classes, which does not say where an answer"
    ):
        AnswerFinder(model, tiny_tasks.tokenizer(), TASK, 16)
    with pytest.raises(DataError, match="no question"):
        score_spans(finder, [])
