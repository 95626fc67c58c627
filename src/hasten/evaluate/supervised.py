"""How well a model says what it was taught: the loss of held-out answers, and which answers it prefers.

Letters in shapes: B rows, M texts of a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import exp

import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.console import Progress
from hasten.data.tasks.corpus import TaskCorpus
from hasten.model.evaluating import evaluating
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.preference import REFERENCE, Preference

MICRO_TOKENS = 4096


@dataclass(frozen=True)
class SupervisedScore:
    """The mean loss of `targets` supervised tokens in nats, and how many of them are the likeliest token."""

    loss: float
    perplexity: float
    accuracy: float
    targets: int


@dataclass(frozen=True)
class PreferenceScore:
    """Of `pairs`, in how many the chosen answer's reward is the higher one, and by how much on average.

    A reward is β times the log-ratio to the model that training began with, where the method has one.
    """

    accuracy: float
    margin: float
    loss: float
    pairs: int


def score_supervised(model: Transformer, corpus: TaskCorpus, *, bf16: bool = False) -> SupervisedScore:
    """The loss of all answers in `corpus`, each after its prompt."""
    objective = CrossEntropy()

    def figures(batch: Batch) -> Tensor:
        hidden = model(**objective.inputs(batch))
        loss, correct = objective.loss(model, hidden, batch), objective.correct(model, hidden, batch)
        return torch.stack([loss.double(), correct.double(), objective.count(batch).double()])

    loss, correct, count = swept(model, corpus.sweep(rows_at_once(corpus)), figures, corpus.num_rows, bf16)
    return SupervisedScore(loss / count, exp(min(loss / count, 700.0)), correct / count, int(count))


def score_preferences(
    model: Transformer,
    base: Transformer | None,
    corpus: TaskCorpus,
    objective: Preference,
    *,
    bf16: bool = False,
) -> PreferenceScore:
    """How often `model` prefers what people do, measured from `base` where the method has a reference."""

    def figures(batch: Batch) -> Tensor:
        if base is not None:
            hidden = base(**objective.inputs(batch))
            batch.extra[REFERENCE] = objective.texts(base, hidden, batch).log_probs.float()
        hidden = model(**objective.inputs(batch))
        texts = objective.texts(model, hidden, batch)
        margin = objective.margin(texts, batch)  # 0 beyond a row's pairs
        loss, correct = objective.loss_of(texts, batch), objective.correct_of(margin, batch)
        return torch.stack(
            [value.double() for value in (loss, correct, margin.sum(), objective.count(batch))]
        )

    batches = corpus.sweep(rows_at_once(corpus))
    loss, correct, margin, count = swept(model, batches, figures, corpus.num_rows, bf16)
    return PreferenceScore(correct / count, objective.strength * margin / count, loss / count, int(count))


def rows_at_once(corpus: TaskCorpus) -> int:
    """Rows of one forward pass."""
    return max(MICRO_TOKENS // corpus.row_tokens, 1)


def swept(
    model: Transformer,
    batches: Iterable[Batch],
    figures: Callable[[Batch], Tensor],
    num_rows: int,
    bf16: bool,
) -> list[float]:
    """The sum of `figures` over all batches."""
    device = model.device
    total: Tensor | None = None
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    with evaluating(model), autocast(), Progress("evaluate", num_rows, "rows") as progress:
        for done, batch in enumerate(batches, 1):
            found = figures(batch.to(device))
            total = found if total is None else total + found
            progress.update(min(done * batch.tokens.shape[0], num_rows))
    assert total is not None, "a corpus is never empty"
    return [float(number) for number in total.tolist()]
