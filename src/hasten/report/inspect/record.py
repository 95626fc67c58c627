"""What the heads of a model look at: their probabilities, as the model itself uses them.

Letters in shapes: B rows, T queries, S keys, H query heads, G key/value heads, K head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hasten.model.attention import Attention
from hasten.ops.attention import Bias, made
from hasten.ops.sight import Sight


class Record:
    """An attention function for the `attend` socket that keeps the probabilities that it mixes with."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None  # [H, T, S] of the only row, float32

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """`ops.attention.attend` by its formula: query [B, T, H, K], key and value [B, S, G, K]."""
        weights = probabilities(query, key, **options)
        self.weights = weights[0].float()
        shared = value.repeat_interleave(query.shape[2] // value.shape[2], dim=2)
        return torch.einsum("bhts,bshk->bthk", weights.to(value.dtype), shared)


@contextmanager
def recording(attentions: Sequence[Attention]) -> Iterator[list[Record]]:
    """A `Record` in each socket; afterwards what was there before."""
    records, before = [Record() for _ in attentions], [attention.attend for attention in attentions]
    try:
        for attention, record in zip(attentions, records, strict=True):
            attention.attend = record
        yield records
    finally:
        for attention, function in zip(attentions, before, strict=True):
            attention.attend = function


def probabilities(
    query: Tensor,
    key: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    bias: Bias | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """softmax of the scores, [B, H, T, S] in float32 or wider; arguments as in `ops.attention.attend`."""
    assert dropout == 0.0, "a model is looked at in evaluation mode"
    key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.einsum("bthk,bshk->bhts", query.to(wide), key.to(wide))
    scores = scores * (query.shape[3] ** -0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * (scores / soft_cap).tanh()
    if bias is not None:
        scores = scores + made(bias, query, key)
    sight = Sight(causal, segments, key_segments, window)
    size = query.shape[1], key.shape[1]
    mask = sight.triangle(*size, sight.mask(*size, query.device), query.device)
    if mask is None:
        return scores.softmax(dim=-1)
    blind = ~mask.any(dim=-1, keepdim=True)  # a query that finds no key gives 0
    return scores.masked_fill(~mask & ~blind, float("-inf")).softmax(dim=-1).masked_fill(blind, 0.0)
