"""The score of a task while it is learnt: early stopping and the best checkpoint may go by it.

Texts are written from the model as it stands between two steps, and nothing of it is changed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hasten.core.console import Progress
from hasten.core.errors import ConfigError
from hasten.data.pairs import pair_of
from hasten.data.tasks.chat import ChatConfig
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.spans import SpansConfig
from hasten.evaluate.classify import ClassificationConfig, score_labelled
from hasten.evaluate.sample import drawn
from hasten.evaluate.spans import ExtractionConfig, score_spans
from hasten.evaluate.tasks import Subject, classifier_of, finder_of, questions
from hasten.evaluate.translation import TranslationConfig, bleu, words_of
from hasten.evaluate.written import judge, write
from hasten.generate.engine import generate
from hasten.model.transformer import Seq2Seq, Transformer
from hasten.train.horizon import Every
from hasten.train.look import SCORE

Score = Callable[[Transformer], float]


@dataclass(frozen=True)
class Scoring:
    """A look during training (`train/look.py`): the task's score of 100, and what was counted."""

    of: Score
    counted: str
    every: Every
    bf16: bool = False
    name: str = SCORE

    def __call__(self, model: Transformer, step: int) -> dict[str, float | str]:
        """The score of the model as it is now."""
        # An adapter's frozen matrices may be kept in bf16, so the rest meets them as in training.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self.bf16):
            return {"score": self.of(model), "counted": self.counted}


def scoring(subject: Subject, every: Every, *, bf16: bool) -> Scoring:
    """The score of the subject's task on its `most` records of the validation split.

    Macro-F1 of labels, F1 of answers in texts, BLEU of pairs, of conversations what evaluate.written counts.
    Raises ConfigError where a task has no score beside the figures of validation.
    """
    config = subject.config.model_copy(update={"split": "validation"})
    of, counted = score_of(replace(subject, config=config))
    return Scoring(of, counted, every, bf16)


def score_of(subject: Subject) -> tuple[Score, str]:
    """The score of the subject's task as a function of the model, and its name."""
    match subject.data.task:
        case LabelledConfig() as task:
            return labels(subject, task), "macro-F1"
        case SpansConfig() as task:
            return answers(subject, task), "F1"
        case ChatConfig() as task if subject.config.written is not None:
            return conversations(subject, task), subject.config.written.metric
        case None if subject.data.is_pairs:
            return translations(subject), "BLEU"
    raise ConfigError(
        "evaluate.during_training: here nothing is scored but by the figures of validation; leave it out, and"
        " train.metric=score, or say by evaluate.written how answers are scored"
    )


def labels(subject: Subject, task: LabelledConfig) -> Score:
    """Macro-F1, in percent."""
    classifier, records = classifier_of(subject, task), subject.held_out
    quiet = ClassificationConfig(mistakes=0)
    return lambda model: 100 * score_labelled(replace(classifier, model=model), records, quiet).macro_f1


def answers(subject: Subject, task: SpansConfig) -> Score:
    """F1 of answers in texts, in percent."""
    finder, records = finder_of(subject, task), subject.held_out
    quiet = ExtractionConfig(examples=0)
    return lambda model: score_spans(replace(finder, model=model), records, quiet).answers.f1


def conversations(subject: Subject, task: ChatConfig) -> Score:
    """What `evaluate.written` counts of answers that the model writes."""
    config = subject.config.written
    assert config is not None
    if config.metric == "programs":
        raise ConfigError(
            "evaluate.during_training would choose by the problems that evaluate.problems scores the finished"
            " model with; leave it out, and train.metric=score"
        )
    asked = questions(subject, task)

    def score(model: Transformer) -> float:
        with Progress(SCORE, len(asked), "texts") as progress:
            written = write(model, subject.tokenizer, asked, config, progress.add)
        return judge([completion.text for completion in written], asked, config).score

    return score


def translations(subject: Subject) -> Score:
    """BLEU of the likeliest tokens, without beams."""
    config = (subject.config.translation or TranslationConfig()).model_copy(update={"beams": 1})
    documents = list(subject.prepared.texts("validation"))
    pairs = [pair_of(document) for document in drawn(documents, subject.most, subject.config.seed)]
    sources, references = [pair.source for pair in pairs], [pair.target for pair in pairs]
    words = words_of(references) if config.words == "auto" else config.words

    def score(model: Transformer) -> float:
        assert isinstance(model, Seq2Seq)
        with Progress(SCORE, len(sources), "texts") as progress:
            written = generate(
                model,
                subject.tokenizer,
                sources,
                config.settings(),
                on_done=lambda rows: progress.add(len(rows)),
            )
        return bleu([completion.text for completion in written], references, words).score

    return score
