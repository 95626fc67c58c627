"""Scaled dot-product attention behind one signature.

Letters in shapes: B rows, T query positions, S key positions (cached and new), H query heads, G key/value
heads, R = H / G query heads that share a key, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale query key^T) value: query [B, T, H, K], key and value [B, S, G, K] -> [B, T, H, K].

    The queries are the last T of the S positions.  `causal` hides what comes after a query; `segments` [B, S]
    hides every position with another number.  `scale` is 1 / sqrt(K) by default; `dropout` drops
    probabilities.
    """
    mask = visible(query.shape[1], key.shape[1], causal=causal, segments=segments, device=query.device)
    square = causal and mask is None and query.shape[1] > 1
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=square,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return out.transpose(1, 2)


def visible(
    num_queries: int, num_keys: int, *, causal: bool, segments: Tensor | None, device: torch.device
) -> Tensor | None:
    """Which keys each query may see, bool [B or 1, 1, T, S]; None if all, or if it is the plain triangle."""
    mask = None
    if causal and num_queries > 1 and (segments is not None or num_queries < num_keys):
        offset = num_keys - num_queries  # the queries are the last positions
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(offset)[None, None]
    if segments is not None:
        same = segments[:, None, -num_queries:, None] == segments[:, None, None, :]
        mask = same if mask is None else mask & same
    return mask


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attend` written out from the formula, in the precision of its inputs: the oracle of every fast path."""
    heads, shared, width = query.shape[2], key.shape[2], query.shape[3]
    key, value = (x.repeat_interleave(heads // shared, dim=2) for x in (key, value))
    scores = torch.einsum("bthk,bshk->bhts", query, key) * (width**-0.5 if scale is None else scale)
    query_at = torch.arange(key.shape[1] - query.shape[1], key.shape[1], device=query.device)[:, None]
    key_at = torch.arange(key.shape[1], device=query.device)
    if causal:
        scores = scores.masked_fill(key_at > query_at, float("-inf"))
    if segments is not None:
        other = segments[:, query_at] != segments[:, None, :]  # [B, T, S]
        scores = scores.masked_fill(other[:, None], float("-inf"))
    return torch.einsum("bhts,bshk->bthk", scores.softmax(dim=-1), value)
