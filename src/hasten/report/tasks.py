"""What evaluation.json tells of a fine-tuned model: answers found, answers learnt, texts, preferences.

Scores of answers and texts are in percent, as their official scripts have them; shares are from 0 to 1.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from hasten.report.records import Overlap, Record

VERDICTS = "verdicts"
"""Beside pass@k, the name of how many programs came to each end."""


@dataclass(frozen=True)
class Scored:
    """One score of a table: the key of its words, its value, and half of its 95% interval."""

    key: str
    score: float
    interval: float | None = None
    signature: str = ""  # where each score has its own


class AnswerExample(Record):
    """A question, what the model answered, and what people did; judged in percent."""

    question: str
    context: str
    answer: str
    references: list[str]
    exact: float
    f1: float


class AnswerFigures(Record):
    """Exact match and F1 of answers (`evaluate/answers.py`)."""

    exact: float
    exact_interval: float | None = None
    f1: float
    f1_interval: float | None = None
    questions: int
    without_answer: int = 0
    exact_with_answer: float | None = None
    f1_with_answer: float | None = None
    correct_without_answer: float | None = None
    signature: str

    @property
    def scores(self) -> list[Scored]:
        """F1, and exact match beside it."""
        return [
            Scored("f1", self.f1, self.f1_interval),
            Scored("exact_match", self.exact, self.exact_interval),
        ]


class FoundAnswers(AnswerFigures):
    """Answers found in texts (`evaluate/spans.py`)."""

    split: str
    left_out: int = 0
    null_threshold: float | None = None
    fitted_on: int = 0
    examples: tuple[AnswerExample, ...] = ()


class SupervisedFigures(Record):
    """The loss of answers in nats per token, each after its prompt (`evaluate/supervised.py`)."""

    loss: float
    perplexity: float
    accuracy: float
    targets: int


class Supervised(SupervisedFigures):
    """The same of the model that training began with is `base`."""

    split: str
    base: SupervisedFigures | None = None

    @property
    def fall(self) -> float | None:
        """The share by which the loss fell; below 0 where it rose."""
        return 1 - self.loss / self.base.loss if self.base and self.base.loss > 0 else None


class Preferences(Record):
    """How often the chosen answer's reward is the higher one (`evaluate/supervised.py`)."""

    split: str
    method: str
    accuracy: float
    margin: float
    loss: float
    pairs: int


class Mean(Record):
    """A mean of all texts with half of its 95% interval."""

    score: float
    interval: float | None = None


class RougeFigures(Record):
    """ROUGE of summaries (`evaluate/rouge.py`)."""

    rougeL: Mean  # noqa: N815 (its name everywhere)
    rouge1: Mean
    rouge2: Mean
    rougeLsum: Mean  # noqa: N815

    @property
    def scores(self) -> list[Scored]:
        """ROUGE-L, then the others."""
        means = {key: getattr(self, key) for key in type(self).model_fields}
        return [Scored(key, mean.score, mean.interval) for key, mean in means.items()]


class Lead(Record):
    """What the first sentences of the sources come to as summaries."""

    name: str
    score: float
    interval: float | None = None
    figures: RougeFigures


class OverlapFigures(Record):
    """sacreBLEU's scores."""

    bleu: Overlap
    chrf: Overlap

    @property
    def scores(self) -> list[Scored]:
        """BLEU, and chrF beside it."""
        named = (("bleu", self.bleu), ("chrf", self.chrf))
        return [Scored(key, found.score, found.interval, found.signature) for key, found in named]


class Passed(Record):
    """How often one of `k` programs is right, from 0 to 1 (`evaluate/pass_at_k.py`)."""

    k: int
    score: float
    interval: float | None = None
    problems: int
    samples: int

    @property
    def scored(self) -> Scored:
        """The same in percent."""
        interval = None if self.interval is None else 100 * self.interval
        return Scored(f"pass@{self.k}", 100 * self.score, interval)


class WrittenExample(Record):
    """What was asked, what the model wrote, and what is good."""

    prompt: str
    text: str
    references: tuple[str, ...] = ()
    stopped_by: str | None = None


class WrittenTexts(Record):
    """Answers that a model wrote (`evaluate/written.py`), beside the baseline of the metric."""

    asked: int
    signature: str
    tokens_per_second: float | None = None
    unfinished: int = 0
    baseline: Lead | None = None
    examples: tuple[WrittenExample, ...] = ()


class ComparedTexts(WrittenTexts):
    """By scores of which its figures tell all."""

    figures: RougeFigures | OverlapFigures | AnswerFigures

    @property
    def scores(self) -> list[Scored]:
        """The main one first."""
        return self.figures.scores


class Summaries(ComparedTexts):
    """By ROUGE."""

    metric: Literal["rouge"]
    figures: RougeFigures


class Translations(ComparedTexts):
    """By BLEU and chrF."""

    metric: Literal["bleu"]
    figures: OverlapFigures


class WrittenAnswers(ComparedTexts):
    """By F1 and exact match."""

    metric: Literal["answers"]
    figures: AnswerFigures


class ExactTexts(WrittenTexts):
    """By the share that is a reference letter by letter."""

    metric: Literal["exact"]
    score: float
    interval: float | None = None

    @property
    def scores(self) -> list[Scored]:
        """The share, in percent."""
        return [Scored("exact_match", self.score, self.interval)]


class Programs(WrittenTexts):
    """By running them: pass@k for each k, and how many programs came to what."""

    metric: Literal["programs"]
    figures: dict[str, Annotated[Passed | dict[str, int], Field(union_mode="left_to_right")]]

    @property
    def scores(self) -> list[Scored]:
        """pass@k for each k."""
        return [found.scored for found in self.figures.values() if isinstance(found, Passed)]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many programs came to each end."""
        found = self.figures.get(VERDICTS, {})
        return found if isinstance(found, dict) else {}


Written = Annotated[
    Summaries | Translations | WrittenAnswers | ExactTexts | Programs, Field(discriminator="metric")
]
