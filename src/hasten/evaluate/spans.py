"""Answers found in a text, and how they compare with people's: exact match and F1 of the official scripts.

The answer is the pair of places with the largest sum of scores, in order and not too far apart, over all
windows of the context (Devlin et al. 2019, 4.2 and 4.3).  Where questions may have no answer, that is given
if the score of [CLS] is above the best pair's by a threshold, which is fitted on other questions.

Letters in shapes: B rows, T tokens, E windows in a batch, S context tokens of the longest, L most tokens of
an answer.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.config import Config
from hasten.core.console import Progress
from hasten.core.errors import ConfigError
from hasten.data.tasks.packed import PackedRows, packed_rows
from hasten.data.tasks.protocol import Record, Setting
from hasten.data.tasks.spans import Reading, SpansConfig, Window, example
from hasten.evaluate.answers import AnswerScore, rule_of, score, score_answers
from hasten.evaluate.states import states
from hasten.model.shape import SPAN_CLASSES
from hasten.model.transformer import Transformer
from hasten.tokenizer.tokenizer import Tokenizer

LEAST = -math.inf


class ExtractionConfig(Config):
    """How answers are found, and what goes into evaluation.json beside the figures."""

    max_answer_tokens: Annotated[int, Field(ge=1)] = 64
    null_threshold: float | None = Field(
        None,
        description="no answer is given where its score is above the best answer's by more than this; null:"
        " fitted on the validation split, 0 where that is what is evaluated",
    )
    examples: Annotated[int, Field(ge=0)] = Field(8, description="questions kept in evaluation.json")


class Span(NamedTuple):
    """The best answer in a window: its first and last token in the context, its score, and that of none."""

    first: int
    last: int
    score: float
    null: float


@dataclass(frozen=True)
class Found:
    """The best answer to a question; `margin` is by how much no answer scores above it."""

    text: str
    score: float
    margin: float  # infinite for a question that could not be read
    start: int = 0  # of the text in the context, in characters

    def given(self, threshold: float) -> str:
        """The answer, empty where none scores better by more than `threshold`."""
        return "" if self.margin > threshold else self.text


@dataclass(frozen=True)
class AnswerExample:
    """A question, what the model answered, and what people did; judged in percent."""

    question: str
    context: str
    answer: str
    references: list[str]
    exact: float
    f1: float


@dataclass(frozen=True)
class SpansScore:
    """What a model's answers came to."""

    answers: AnswerScore
    left_out: int  # questions that could not be read (`too_long: drop`), and count as not answered
    null_threshold: float | None  # None: every question has an answer, and so one is always given
    fitted_on: int  # questions that the threshold was fitted on
    examples: list[AnswerExample]


@dataclass(frozen=True)
class AnswerFinder:
    """A model with what it takes to ask it."""

    model: Transformer
    tokenizer: Tokenizer
    task: SpansConfig
    row_tokens: int
    batch_tokens: int = 8192
    bf16: bool = False

    def __post_init__(self) -> None:
        config = self.model.config
        if config.head != "token_classes" or config.num_classes != len(SPAN_CLASSES):
            raise ConfigError(
                f"model.head is {config.head}, which does not say where an answer begins and ends; train one"
                " with data.task.kind=spans"
            )

    def find(self, records: Sequence[Record], most: int, *, aloud: bool = True) -> list[Found]:
        """The best answer of at most `most` tokens to each question; `aloud` with a live line."""
        setting = Setting(self.tokenizer, self.model.config.kind, self.width)
        readings = self.task.open(setting).read(records)
        held = [(n, window) for n, r in enumerate(readings) if isinstance(r, Reading) for window in r.windows]
        by_record: list[list[Span]] = [[] for _ in records]
        with Progress("answer", len(held), "windows") if aloud else nullcontext() as progress:
            spans = self.spans([window for _, window in held], most, progress)
        for (number, _), span in zip(held, spans, strict=True):
            by_record[number].append(span)
        return [best(*each) for each in zip(records, readings, by_record, strict=True)]

    @property
    def width(self) -> int:
        """Places in a row, as in training, as far as the model reads."""
        return min(self.row_tokens, self.model.config.max_positions)

    def spans(self, windows: Sequence[Window], most: int, progress: Progress | None = None) -> list[Span]:
        """The best answer in each window."""
        found: dict[int, Span] = {}
        examples = [example(window, None) for window in windows]
        for rows in packed_rows(examples, self.width, self.batch_tokens, self.tokenizer.pad_id):
            numbers = rows.numbers.tolist()
            best_ones = self.best_spans(rows, [windows[n] for n in numbers], most)
            found |= zip(numbers, best_ones, strict=True)
            if progress is not None:
                progress.update(len(found))
        return [found[number] for number in range(len(windows))]

    def best_spans(self, rows: PackedRows, windows: Sequence[Window], most: int) -> list[Span]:
        """The best answer in each window [E] of a batch."""
        scores = self.scores(rows.batch)  # [2, B, T]
        row, start = (x.to(scores.device) for x in (rows.rows, rows.starts))
        length = torch.tensor([window.length for window in windows], device=scores.device)
        place = start + torch.tensor([window.place for window in windows], device=scores.device)
        along = torch.arange(int(length.max()), device=scores.device)  # [S]
        there = along < length[:, None]
        at = (place[:, None] + along).clamp(max=scores.shape[-1] - 1)
        context = scores[:, row[:, None], at].masked_fill(~there, LEAST)  # [2, E, S]
        first, last, score = best_pairs(context[0], context[1], most)
        null = scores[:, row, start].sum(dim=0)
        numbers = torch.stack([first, last]).tolist()
        sums = torch.stack([score, null]).tolist()
        return [
            Span(window.first + a, window.first + b, top, none)
            for window, a, b, top, none in zip(windows, *numbers, *sums, strict=True)
        ]

    def scores(self, batch: Batch) -> Tensor:
        """Scores [2, B, T] of each place to be an answer's first and last, in float32."""
        hidden = states(self.model, batch, bf16=self.bf16)
        with torch.no_grad():
            # The head is small: whatever the layers were computed in, it is in float32.
            return self.model.logits(hidden.to(self.model.head_weight.dtype)).float().movedim(-1, 0)


def best_pairs(starts: Tensor, ends: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and last place and score [E] of the best answer of at most `most` tokens, by scores [E, S]."""
    ahead = torch.nn.functional.pad(ends, (0, most - 1), value=LEAST).unfold(1, most, 1)  # [E, S, L]
    score, at = (starts[..., None] + ahead).flatten(1).max(dim=1)
    first = at // most
    return first, first + at % most, score


def best(record: Record, reading: Reading | str, spans: Sequence[Span]) -> Found:
    """The best answer over all windows of a context."""
    if isinstance(reading, str):
        return Found("", LEAST, math.inf)
    span = max(spans, key=lambda span: span.score)
    start, end = reading.offsets[span.first, 0], reading.offsets[span.last, 1]
    null = min(span.null for span in spans)  # some window has the answer, if there is one
    text = record["context"][start:end]
    begin = int(start) + len(text) - len(text.lstrip())
    return Found(text.strip(), span.score, null - span.score, begin)


def score_spans(
    finder: AnswerFinder,
    records: Sequence[Record],
    config: ExtractionConfig | None = None,
    *,
    validation: Sequence[Record] = (),
    unanswerable: bool | None = None,
) -> SpansScore:
    """Compare answers with people's; `validation` are other questions, to fit the threshold on.

    `unanswerable`: whether training had questions without an answer; None: whether there are any here.
    Raises DataError where there is nothing to score.
    """
    config = config or ExtractionConfig()
    references = [record["answers"] for record in records]
    some = not all(references) if unanswerable is None else unanswerable
    fitting = validation if some and config.null_threshold is None else ()
    threshold = (config.null_threshold or 0.0) if some else None
    if fitting:
        threshold = fit_threshold(fitting, finder.find(fitting, config.max_answer_tokens))
    found = finder.find(records, config.max_answer_tokens)
    given = [each.given(math.inf if threshold is None else threshold) for each in found]
    return SpansScore(
        answers=score_answers(given, references),
        left_out=sum(each.score == LEAST for each in found),
        null_threshold=threshold,
        fitted_on=len(fitting),
        examples=examples_of(records, given)[: config.examples],
    )


def fit_threshold(records: Sequence[Record], found: Sequence[Found]) -> float:
    """The threshold with the largest sum of F1; of equal ones that nearest to 0.

    An answer is worth its F1, silence is worth 1 where there is no answer.  With questions sorted by their
    margins, a threshold answers all up to some place.
    """
    answered = f1_of_each(records, [each.text for each in found])
    silent = f1_of_each(records, [""] * len(found))
    margins = np.array([each.margin for each in found])
    read = np.append(margins[np.isfinite(margins)], 0.0)
    candidates = np.unique(np.append(read, np.nextafter(read.min(), -math.inf)))  # the last one answers none
    order = np.argsort(margins, kind="stable")
    gain = np.append(0.0, np.cumsum((answered - silent)[order]))  # of answering the first so many
    sums = gain[np.searchsorted(margins[order], candidates, side="right")]
    good = candidates[sums >= sums.max() - 1e-9]
    return float(good[np.abs(good).argmin()])


def f1_of_each(records: Sequence[Record], given: Sequence[str]) -> NDArray[np.float64]:
    """F1 of each answer, from 0 to 1."""
    return np.array([example.f1 / 100 for example in examples_of(records, given)])


def examples_of(records: Sequence[Record], given: Sequence[str]) -> list[AnswerExample]:
    """Each question with its answer and how it was judged."""
    rule = rule_of([record["answers"] for record in records])
    scores = [score(text, record["answers"], rule) for record, text in zip(records, given, strict=True)]
    return [
        AnswerExample(r["question"], r["context"], text, r["answers"], 100 * one.exact, 100 * one.f1)
        for r, text, one in zip(records, given, scores, strict=True)
    ]


def as_record(score: SpansScore, split: str) -> dict[str, Any]:
    """What evaluation.json holds of answers found in texts."""
    values = asdict(score)
    return {"split": split, **values.pop("answers"), **values}
