"""Scaled dot-product attention (Vaswani et al. 2017) behind one signature.

Letters in shapes: B rows, T query positions, S key positions (cached and new), H query heads, G key/value
heads, R = H / G query heads that share a key, K head width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.ops.blockwise import blocks_win, blockwise_attention
from hasten.ops.kernels.attention import kernel_attends, kernel_attention
from hasten.ops.sight import Sight

Bias = Tensor | Callable[[int, int], Tensor]
"""What is added to the scores, [H, T, S], or how to make it from T and S."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
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
    """softmax(scale query key^T + bias) value: query [B, T, H, K], key, value [B, S, G, K] -> [B, T, H, K].

    The queries are the last T of the S positions.  `causal` hides what comes after a query, and `window` all
    but so many up to the query itself; `segments` [B, S] hides every position with another number.  With
    `key_segments` [B, S] the keys are another sequence, and `segments` [B, T] are the queries'; one that
    finds no key gives 0.  `scale` is 1 / sqrt(K) by default; `bias` is [H, T, S] in float32, or makes it from
    T and S; `soft_cap` squeezes scores into (-cap, cap) before all that; `dropout` drops probabilities.
    """
    window = None if window is None or window >= key.shape[1] else window
    sight: dict[str, Any] = {
        "causal": causal, "segments": segments, "key_segments": key_segments, "window": window
    }  # fmt: skip
    if kernel_attends(query, key, value, **sight, scale=scale, dropout=dropout):
        added = None if bias is None else made(bias, query, key)
        return kernel_attention(
            query, key, value, **sight, scale=scale, dropout=dropout, bias=added, soft_cap=soft_cap
        )
    plain = key_segments is None and bias is None and window is None and soft_cap is None
    if plain and causal and blocks_win(query, key, segments):
        return blockwise_attention(
            query, key, value, causal=causal, segments=segments, scale=scale, dropout=dropout
        )
    return fused_attention(
        query,
        key,
        value,
        **sight,
        scale=scale,
        dropout=dropout,
        bias=bias,
        soft_cap=soft_cap,
    )


def made(bias: Bias, query: Tensor, key: Tensor) -> Tensor:
    """The bias [H, T, S] for these heads."""
    return bias(query.shape[1], key.shape[1]) if callable(bias) else bias


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
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
    """`attend` by PyTorch's own kernels, which are the fastest on GPUs; they have no soft cap."""
    sight = Sight(causal, segments, key_segments, window)
    if soft_cap is not None:
        return written_attention(
            query, key, value, sight, scale=scale, dropout=dropout, bias=bias, soft_cap=soft_cap
        )
    mask = sight.mask(query.shape[1], key.shape[1], query.device)
    triangle = causal and mask is None and query.shape[1] > 1
    if bias is not None:
        bias = made(bias, query, key)
        mask = biased(bias, sight.triangle(query.shape[1], key.shape[1], mask, query.device)).to(query.dtype)
        triangle = False
    blind = None if key_segments is None or mask is None else find_blind(mask)
    if blind is not None and mask is not None:
        mask = mask | blind if mask.dtype == torch.bool else mask.masked_fill(blind, 0.0)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=triangle,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return (out if blind is None else out.masked_fill(blind, 0.0)).transpose(1, 2)


def find_blind(mask: Tensor) -> Tensor:
    """Which queries see no key: mask [B, 1 or H, T, S] -> bool [B, 1 or H, T, 1]."""
    seen = mask if mask.dtype == torch.bool else mask > float("-inf")
    return ~seen.any(dim=-1, keepdim=True)


def biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    """The bias [H, T, S] where a query sees, and -inf elsewhere: [1 or B, H, T, S]."""
    return bias[None] if mask is None else bias[None].masked_fill(~mask, float("-inf"))


def written_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sight: Sight,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    bias: Bias | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """`attend` written out from the formula, for what no kernel does."""
    weights = attention_weights(query, key, sight, scale=scale, bias=bias, soft_cap=soft_cap)
    weights = F.dropout(weights, dropout, training=dropout > 0).to(value.dtype)
    value = value.repeat_interleave(query.shape[2] // value.shape[2], dim=2)
    return torch.einsum("bhts,bshk->bthk", weights, value)


def attention_weights(
    query: Tensor,
    key: Tensor,
    sight: Sight,
    *,
    scale: float | None = None,
    bias: Bias | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """The probabilities that `attend` mixes values with: [B, H, T, S], in float32 at least.

    Arguments as there, with `sight` for who sees whom; a query that sees no key has zeros.
    """
    heads, shared, width = query.shape[2], key.shape[2], query.shape[3]
    bias = None if bias is None else made(bias, query, key)
    key = key.repeat_interleave(heads // shared, dim=2)
    scores = torch.einsum("bthk,bshk->bhts", query, key) * (width**-0.5 if scale is None else scale)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    mask = sight.mask(query.shape[1], key.shape[1], query.device)
    mask = sight.triangle(query.shape[1], key.shape[1], mask, query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """`attend` pair by pair from its definition, in the precision of its inputs: the oracle of all paths."""
    heads, shared, width = query.shape[2], key.shape[2], query.shape[3]
    num_queries, num_keys = query.shape[1], key.shape[1]
    key, value = (x.repeat_interleave(heads // shared, dim=2) for x in (key, value))
    scores = torch.einsum("bthk,bshk->bhts", query, key) * (width**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    query_at = torch.arange(num_keys - num_queries, num_keys, device=query.device)[:, None]
    key_at = torch.arange(num_keys, device=query.device)
    hidden = torch.zeros(len(query), 1, num_queries, num_keys, dtype=torch.bool, device=query.device)
    if causal:
        hidden = hidden | (key_at > query_at)
    if window is not None:
        hidden = hidden | (key_at <= query_at - window)
    if segments is not None:
        own, theirs = segments[:, -num_queries:], segments if key_segments is None else key_segments
        hidden = hidden | (own[:, :, None] != theirs[:, None, :])[:, None]
    blind = hidden.all(dim=-1, keepdim=True)
    weights = scores.masked_fill(hidden & ~blind, float("-inf")).softmax(dim=-1).masked_fill(blind, 0)
    return torch.einsum("bhts,bshk->bthk", weights, value)
