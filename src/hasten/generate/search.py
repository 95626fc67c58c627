"""Beam search with a model: the prompts of a batch, all their beams in one forward pass a step.

Letters in shapes: S prompts, W beams, P prompt tokens, L tokens so far, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.generate.beam import Beams, Hypothesis, Rules
from hasten.generate.completion import Row
from hasten.generate.config import GenerateConfig
from hasten.generate.constraint import constrained, forbid, left_padded
from hasten.generate.prepared import Prepared, pad_left
from hasten.generate.sample import barred, penalize_repetition


def search(
    prepared: Prepared, groups: Sequence[Sequence[Row]], config: GenerateConfig, vocab_size: int, width: int
) -> None:
    """Give the rows of each group, which share a prompt, the best texts that `width` beams find.

    Where a narrow vocabulary has fewer texts than there are rows, the last comes again.
    """
    results = found_texts(prepared, [group[0] for group in groups], config, vocab_size, width)
    for group, found in zip(groups, results, strict=True):
        for rank, row in enumerate(group):
            hypothesis = found[min(rank, len(found) - 1)]
            row.take(hypothesis.tokens, hypothesis.score)


def found_texts(
    prepared: Prepared, rows: Sequence[Row], config: GenerateConfig, vocab_size: int, width: int
) -> list[list[Hypothesis]]:
    """The texts that a search finds for each row's prompt, the best first."""
    tokens, padding = pad_left([row.window for row in rows])
    model, device = prepared.model, prepared.model.device
    # As in sampling, one token may stand beyond the last position: it is chosen and never read.
    limits = [min(row.most_tokens, row.max_positions - len(row.window) + 1) for row in rows]
    ends = rows[0].end_ids if config.stop_at_end_of_text else frozenset[int]()
    rules = Rules(width, config.length_penalty, config.length_rule, config.early_stopping)
    beams, scorer = (
        Beams(torch.tensor(limits, device=device), tuple(ends), rules),
        Scorer(rows, config, device),
    )
    with prepared.cache(rows, padding, tokens.shape[1] + max(limits)) as cache:
        logits = model.logits(cache.read(tokens.to(device))[:, -1])
        while True:
            taken = beams.step(scorer.score(logits[:, :vocab_size], beams))
            if not beams.open:
                return beams.results
            cache.keep(taken.rows, taken.sources)
            logits = cache.follow(taken.tokens)


class Scorer:
    """Logits to the log-probabilities that a search adds up."""

    def __init__(self, rows: Sequence[Row], config: GenerateConfig, device: torch.device) -> None:
        self.config, self.first, self.never = config, [row.first for row in rows], rows[0].never
        self.ends = rows[0].end_ids
        self.prompts = left_padded([row.ids for row in rows]).to(device)  # [S, P]

    def score(self, logits: Tensor, beams: Beams) -> Tensor:
        """Logits [S * W, V] -> log-probabilities [S * W, V], -inf where a rule forbids the token."""
        scores, config = logits.float().log_softmax(-1), self.config
        if beams.length == 0 and any(first is not None for first in self.first):
            mask = barred(self.first, scores.shape[-1]).to(scores.device)
            scores = scores.masked_fill(mask, -torch.inf)
        if config.repetition_penalty != 1:
            scores = penalize_repetition(scores, self.seen(beams, scores), config.repetition_penalty)
        if self.never:
            scores = forbid(scores, self.never)
        return constrained(scores, self.history(beams), beams.length, config, self.ends)

    def history(self, beams: Beams) -> Tensor:
        """Prompt and text of each beam, [S * W, P + L]."""
        prompts = self.prompts[beams.sources].repeat_interleave(beams.width, 0)
        return torch.cat((prompts, beams.history), 1)

    def seen(self, beams: Beams, scores: Tensor) -> Tensor:
        """Which tokens each beam has had, bool [S * W, V]."""
        history = self.history(beams)
        marks = torch.zeros(len(scores), scores.shape[-1] + 1, dtype=torch.bool, device=scores.device)
        return marks.scatter_(1, history + 1, True)[:, 1:]  # what pads a history is -1
