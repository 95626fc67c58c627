"""How far a model is from the one that it was made from: divergence, top-1 agreement, what each is worth.

Both read the same text, and each figure comes with half of its 95% interval.  Changes are paired: the two
are drawn together, so that what is hard for both cancels (Efron & Tibshirani 1993, 15).
Letters in shapes: U units (documents, windows or rows), N targets, B rows, T tokens, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError, DataError
from hasten.evaluate.interval import draws, half_width
from hasten.evaluate.language import CHUNK_TARGETS, Windows, batches, cut, lay_out
from hasten.model.evaluating import evaluating
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy
from hasten.tokenizer.tokenizer import Tokenizer

COLUMNS = ("targets", "kl", "same", "loss", "reference_loss", "correct", "reference_correct")
"""What is summed for each unit."""
FEWEST_DOCUMENTS = 20
"""With fewer, windows are the units: of one document nothing can be drawn."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Estimate:
    """A mean, and half the width of its 95% interval; None where there are fewer than two units."""

    value: float
    interval: float | None


@dataclass(frozen=True)
class Agreement:
    """A model beside its reference on the same `targets`; a change is the model's less the reference's."""

    kl: Estimate  # nats a target, KL(reference ‖ model)
    same: Estimate  # share of targets for which both think the same likeliest
    loss: Estimate  # nats a target
    loss_change: Estimate
    accuracy: Estimate
    accuracy_change: Estimate
    bits_per_byte: Estimate | None  # of texts whose bytes are known
    bits_change: Estimate | None
    targets: int
    units: int


@dataclass(frozen=True)
class Tally:
    """Sums of COLUMNS for each unit [U, 7], and bytes of text [U], 0 where nobody counted them."""

    sums: np.ndarray
    sizes: np.ndarray

    def agreement(self) -> Agreement:
        """What the sums come to."""
        if not self.sums[:, 0].sum():
            raise DataError("there is no target to compare two models on; give a split with some text")
        column = {name: self.sums[:, i] for i, name in enumerate(COLUMNS)}
        targets, nats = column["targets"], self.sizes * math.log(2)
        mean = partial(ratio, denominators=targets)
        bits = partial(ratio, denominators=nats) if nats.sum() else None
        change = column["loss"] - column["reference_loss"]
        return Agreement(
            kl=mean(column["kl"]),
            same=mean(column["same"]),
            loss=mean(column["loss"]),
            loss_change=mean(change),
            accuracy=mean(column["correct"]),
            accuracy_change=mean(column["correct"] - column["reference_correct"]),
            bits_per_byte=bits(column["loss"]) if bits else None,
            bits_change=bits(change) if bits else None,
            targets=int(targets.sum()),
            units=len(targets),
        )


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """A ratio of sums over units [U], and half of its interval when units are drawn with replacement."""
    value = float(numerators.sum() / denominators.sum())
    if len(numerators) < 2:
        return Estimate(value, None)
    drawn = [
        (numerators[some].sum(axis=1), denominators[some].sum(axis=1)) for some in draws(len(numerators))
    ]
    above, below = (np.concatenate(side) for side in zip(*drawn, strict=True))
    return Estimate(value, half_width(above[below > 0] / below[below > 0]))


def compare_texts(
    reference: Transformer,
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    windows: Windows,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> Tally:
    """Both on the same windows of `texts`, as `language.score_texts` cuts them, ends included.

    ConfigError where the two do not score the same tokens.
    """
    check_alike(reference, model)
    documents = [
        np.array([tokenizer.bos_id, *ids, tokenizer.eot_id], np.int64)
        for ids in tokenizer.encode_batch(list(texts))
    ]
    bounds = np.cumsum([0, *(len(ids) - 1 for ids in documents)])
    pieces = cut(bounds, windows)
    by_document = len(documents) >= FEWEST_DOCUMENTS
    sums = np.zeros((len(documents) if by_document else len(pieces), len(COLUMNS)))
    number, done = 0, 0
    with evaluating(reference), evaluating(model):
        for batch in batches(pieces, windows.batch_tokens):
            tokens, targets, counted = map(torch.from_numpy, lay_out(documents, batch))
            rows = (
                [window.document for window in batch] if by_document else range(number, number + len(batch))
            )
            asked = Batch(tokens, targets.masked_fill(~counted, IGNORE))
            np.add.at(sums, list(rows), row_sums(reference, model, asked, bf16))
            number, done = number + len(batch), done + sum(window.scored for window in batch)
            if progress:
                progress(done, int(bounds[-1]))
    return Tally(sums, sizes_of(texts, sums, by_document))


def sizes_of(texts: Sequence[str], sums: np.ndarray, by_document: bool) -> np.ndarray:
    """Bytes [U] of each document; a window's share of all of them is that of its targets."""
    sizes = np.array([len(text.encode()) for text in texts], np.float64)
    return sizes if by_document else sizes.sum() * sums[:, 0] / max(sums[:, 0].sum(), 1)


def compare_rows(
    reference: Transformer,
    model: Transformer,
    found: Iterable[Batch],
    *,
    bf16: bool = False,
) -> Tally:
    """Both on the places of batches that have a target: hidden tokens, answers, classes; units are rows."""
    check_alike(reference, model)
    with evaluating(reference), evaluating(model):
        sums = [row_sums(reference, model, batch, bf16) for batch in found]
    rows = np.concatenate(sums) if sums else np.zeros((0, len(COLUMNS)))
    rows = rows[rows[:, 0] > 0]
    return Tally(rows, np.zeros(len(rows)))


def check_alike(reference: Transformer, model: Transformer) -> None:
    """Refuse two models that score different things."""
    one, other = reference.config, model.config
    if (one.kind, one.head, one.head_rows) != (other.kind, other.head, other.head_rows):
        raise ConfigError(
            f"a model of kind {other.kind} with {other.head_rows:,} scores cannot be compared with one of"
            f" kind {one.kind} with {one.head_rows:,}; name the model that it was made from"
        )


def row_sums(reference: Transformer, model: Transformer, batch: Batch, bf16: bool) -> np.ndarray:
    """COLUMNS of each row [B, 7] of a batch."""
    asked = batch.targets != IGNORE  # [B, T]
    device, objective = model.device, CrossEntropy()
    here = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        states = [each(**objective.inputs(here))[asked.to(device)] for each in (reference, model)]  # [N, D]
        pieces = zip(
            *(s.split(CHUNK_TARGETS) for s in (*states, here.targets[here.targets != IGNORE])), strict=True
        )
        found = [
            chunk_figures(reference.logits(one), model.logits(other), targets)
            for one, other, targets in pieces
        ]
    result = np.zeros((len(asked), len(COLUMNS)))
    if found:
        np.add.at(result, asked.nonzero()[:, 0].numpy(), torch.cat(found).cpu().numpy())
    return result


def chunk_figures(reference: Tensor, model: Tensor, targets: Tensor) -> Tensor:
    """Scores [N, V] of both and targets [N] -> COLUMNS of each target, float64 [N, 7]."""
    one, other = (scores.float().log_softmax(-1) for scores in (reference, model))
    kl = (one.exp() * (one - other)).sum(-1)
    best, chosen = one.argmax(-1), other.argmax(-1)
    losses = [-side.gather(-1, targets[:, None]).squeeze(-1) for side in (other, one)]
    hits = [best == chosen, chosen == targets, best == targets]
    columns = [torch.ones_like(kl), kl, hits[0], *losses, *hits[1:]]
    return torch.stack([column.double() for column in columns], dim=-1)
