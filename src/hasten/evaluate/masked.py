"""How well an encoder finds hidden tokens of text it has not seen, beside guesses from counts.

Every chosen token is shown as the mask token, whatever training did: nothing is left to copy.  The guesses
are told the true neighbours of a hidden token even where those are hidden from the model.
Letters in shapes: B rows, T tokens, N hidden tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hasten.core.batch import IGNORE, Batch
from hasten.core.console import Progress
from hasten.data.masked import MaskedCorpus
from hasten.data.shards import Shards
from hasten.evaluate.language import ratio_stderr, score_targets
from hasten.evaluate.neighbours import Guesses, counted
from hasten.model.evaluating import evaluating
from hasten.model.transformer import Transformer
from hasten.tokenizer.tokenizer import Tokenizer

ROWS = 8


@dataclass(frozen=True)
class MaskedScore:
    """A model's score on hidden tokens; `stderr` is the accuracy's over rows, None for fewer than two."""

    accuracy: float  # share of hidden tokens that the model thinks likeliest
    stderr: float | None
    loss: float  # nats per hidden token
    perplexity: float
    tokens: int  # hidden ones
    share: float  # of the text's tokens that were hidden
    baselines: dict[str, float]  # the accuracy of each guess
    counted_tokens: int  # of the training text, for the guesses


def score_masked(
    model: Transformer,
    tokenizer: Tokenizer,
    corpus: MaskedCorpus,
    training: Mapping[str, Shards],
    *,
    bf16: bool = False,
    rows: int | None = None,
) -> MaskedScore:
    """Score `model` on `rows` rows of a held-out `corpus`, by default all; `training` is what is counted."""
    guesses = Guesses(counted(training), tokenizer.vocab_size, tokenizer.special_ids)
    tallies = []  # a row each: hidden tokens, log-probability, correct, and what each guess got right
    with Progress("evaluate", min(rows or corpus.num_rows, corpus.num_rows), "rows") as progress:
        for batch in corpus.sweep(ROWS, rows=rows):
            tallies += score_batch(model, tokenizer, batch, guesses, bf16)
            progress.update(min(len(tallies), corpus.num_rows))
    hidden, log_probs, correct, *guessed = np.array(tallies).T
    total, names = hidden.sum(), ("unigram", "bigram", "both_neighbours")
    return MaskedScore(
        accuracy=float(correct.sum() / total),
        stderr=ratio_stderr(correct, hidden),
        loss=float(-log_probs.sum() / total),
        perplexity=math.exp(min(-log_probs.sum() / total, 700.0)),  # e^700 is about the largest float
        tokens=int(total),
        share=corpus.masking.config.share,
        baselines={name: float(right.sum() / total) for name, right in zip(names, guessed, strict=True)},
        counted_tokens=guesses.num_tokens,
    )


def score_batch(
    model: Transformer, tokenizer: Tokenizer, batch: Batch, guesses: Guesses, bf16: bool
) -> list[list[float]]:
    """The tally of each row [B] that has hidden tokens."""
    asked = batch.targets != IGNORE  # [B, T]
    device = next(model.parameters()).device
    here = batch.to(device)
    tokens = torch.where(asked, batch.targets, batch.tokens).numpy()
    log_probs, correct = np.zeros(tokens.shape), np.zeros(tokens.shape, bool)
    with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        hidden = model(here.tokens, positions=here.positions, segments=here.segments)
        scores = score_targets(model, hidden[asked.to(device)], here.targets[asked.to(device)])
    where = asked.numpy()
    log_probs[where], correct[where] = scores[0].cpu().numpy(), scores[1].cpu().numpy()
    left, right = neighbours(tokens, batch, tokenizer)
    found = guesses.guess(left[where], right[where])
    right_guesses = [np.zeros(tokens.shape, bool) for _ in found]
    for mark, guess in zip(right_guesses, found.values(), strict=True):
        mark[where] = guess == tokens[where]
    sums = (where, log_probs, correct, *right_guesses)
    return [row for row in np.stack([each.sum(axis=1) for each in sums], axis=1).tolist() if row[0]]


def neighbours(tokens: np.ndarray, batch: Batch, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The tokens on both sides of each of [B, T]: beyond a text's ends stand those that begin and end it."""
    assert batch.segments is not None
    segments = batch.segments.numpy()
    same = segments[:, 1:] == segments[:, :-1]
    left, right = np.full_like(tokens, tokenizer.bos_id), np.full_like(tokens, tokenizer.eot_id)
    left[:, 1:] = np.where(same, tokens[:, :-1], tokenizer.bos_id)
    right[:, :-1] = np.where(same, tokens[:, 1:], tokenizer.eot_id)
    return left, right
