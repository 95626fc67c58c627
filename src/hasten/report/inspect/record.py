"""What the heads of a model look at: their probabilities, as the model itself uses them.

Letters in shapes: B rows, T queries, S keys, H query heads, G key/value heads, K head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hasten.model.attention import Attention
from hasten.ops.attention import attention_weights
from hasten.ops.sight import Sight


class Record:
    """An attention function for the `attend` socket that keeps the probabilities that it mixes with."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None  # [H, T, S] of the only row, float32

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        segments: Tensor | None = None,
        key_segments: Tensor | None = None,
        window: int | None = None,
        dropout: float = 0.0,
        **scoring: Any,
    ) -> Tensor:
        """`ops.attention.attend` by its formula: query [B, T, H, K], key and value [B, S, G, K]."""
        assert dropout == 0.0, "a model is looked at in evaluation mode"
        sight = Sight(causal, segments, key_segments, window)
        weights = attention_weights(query, key, sight, **scoring)
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
