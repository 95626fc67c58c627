"""What a text so far forbids its next token.  Letters in shapes: N texts, L their tokens, V vocabulary.

Scores are logits or log-probabilities [N, V]; what is forbidden becomes -inf.  A history [N, L] may begin
with NOTHING where a text is shorter than the others.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from hasten.generate.config import GenerateConfig

NOTHING = -1
"""Stands in a history where there is no token."""


def forbid_repeats(scores: Tensor, history: Tensor, size: int) -> Tensor:
    """Forbid each token that would end a run of `size` tokens which the text has already."""
    if history.shape[1] < size:
        return scores
    runs = history.unfold(1, size, 1)  # [N, L - size + 1, size]
    latest = history[:, history.shape[1] - size + 1 :]  # [N, size - 1]
    again = (runs[..., :-1] == latest[:, None]).all(-1) & (runs != NOTHING).all(-1)
    # A column of its own takes the runs that do not come again.
    ends = torch.where(again, runs[..., -1], scores.shape[-1])
    forbidden = scores.new_zeros(len(scores), scores.shape[-1] + 1, dtype=torch.bool)
    return scores.masked_fill(forbidden.scatter_(1, ends, True)[:, :-1], -torch.inf)


def forbid(scores: Tensor, tokens: Collection[int]) -> Tensor:
    """Forbid some tokens everywhere."""
    places = torch.tensor(sorted(tokens), dtype=torch.int64, device=scores.device)
    return scores.index_fill(-1, places, -torch.inf)


def constrained(
    scores: Tensor, history: Tensor, new_tokens: int, config: GenerateConfig, end_ids: Collection[int]
) -> Tensor:
    """`scores` without what `no_repeat_ngram` and `min_new_tokens` rule out after `new_tokens` tokens."""
    if new_tokens < config.min_new_tokens:
        scores = forbid(scores, end_ids)
    if config.no_repeat_ngram is not None:
        scores = forbid_repeats(scores, history, config.no_repeat_ngram)
    return scores


def left_padded(texts: list[list[int]]) -> Tensor:
    """Texts of unequal length as one history [N, L]."""
    longest = max(map(len, texts), default=0)
    return torch.tensor([[NOTHING] * (longest - len(ids)) + ids for ids in texts]).view(len(texts), longest)
