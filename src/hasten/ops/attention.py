"""Scaled dot-product attention (Vaswani et al. 2017) behind one signature.

Letters in shapes: B rows, T query positions, S key positions (cached and new), H query heads, G key/value
heads, R = H / G query heads that share a key, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.ops.kernels.attention import kernel_attends, kernel_attention

BLOCK, MOST_BLOCKS = 128, 8
"""Queries scored together: few enough to skip most of the hidden half, enough for full-rate products.

Longer rows get larger blocks: each is unrolled in a compiled graph.
"""
LONGEST_IN_BLOCKS, LONGEST_IN_EAGER_BLOCKS = 2048, 512


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
    if kernel_attends(query, key, value, scale, dropout):
        return kernel_attention(query, key, value, causal=causal, segments=segments, scale=scale)
    kernel = blockwise_attention if causal and blocks_win(query, key, segments) else fused_attention
    return kernel(query, key, value, causal=causal, segments=segments, scale=scale, dropout=dropout)


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` by PyTorch's own kernels, which are the fastest on GPUs."""
    mask = visible(query.shape[1], key.shape[1], causal=causal, segments=segments, device=query.device)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None and query.shape[1] > 1,
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


def blocks_win(query: Tensor, key: Tensor, segments: Tensor | None) -> bool:
    """Whether `blockwise_attention` is faster than `fused_attention` on these causal rows, as measured.

    Forward and backward, one thread of an AVX-512 CPU with bfloat16, 6 heads of 64, 2,048 tokens, in ms,
    fused against blocks (compiled; eager), and the same with segments in brackets:

        bfloat16, T  256   45 / 20; 29   (50 / 25; 29)
        bfloat16, T  512   74 / 35; 51   (77 / 36; 52)
        bfloat16, T 1024  100 / 81; 106  (138 / 83; 109)
        bfloat16, T 2048  162 / 131; 197 (324 / 132; 192)
        float32,  T  512   76 / 63; 80   (81 / 63; 78)

    In eager mode that matters where `kernel_attends` says no, which would beat both.  Blocks keep their
    weights for the backward pass, which is quadratic in T: hence the bound.
    """
    tokens = query.shape[1]
    if query.device.type != "cpu" or not 1 < tokens == key.shape[1] <= LONGEST_IN_BLOCKS:
        return False
    if torch.compiler.is_compiling():
        return query.dtype in (torch.bfloat16, torch.float32)
    return query.dtype == torch.bfloat16 and (tokens <= LONGEST_IN_EAGER_BLOCKS or segments is not None)


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal `attend` as plain matrix products over blocks of queries, each with the keys up to its end.

    On a CPU the products run at the full bfloat16 rate, which PyTorch's kernel does not reach, and a compiler
    fuses all that lies between them.
    """
    assert causal
    tokens, width = query.shape[1], query.shape[3]
    offset, size = key.shape[1] - tokens, block_size(tokens)
    query = query * (width**-0.5 if scale is None else scale)
    key, value = key.transpose(1, 2), value.transpose(1, 2)  # [B, G, S, K]
    out = []
    for start, block in zip(range(0, tokens, size), query.split(size, dim=1), strict=True):
        end = offset + start + block.shape[1]
        out.append(attend_block(block, key[:, :, :end], value[:, :, :end], segments, dropout))
    return torch.cat(out, dim=1)


def block_size(num_queries: int) -> int:
    """How many queries to score together: a multiple of `BLOCK` that makes at most `MOST_BLOCKS`."""
    return BLOCK * -(-num_queries // (BLOCK * MOST_BLOCKS))


def attend_block(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor | None, dropout: float
) -> Tensor:
    """The last T of S positions look back: query [B, T, H, K], key and value [B, G, S, K] -> [B, T, H, K]."""
    (rows, num_queries, heads, width), (groups, num_keys) = query.shape, key.shape[1:3]
    shared = (rows, groups, heads // groups, num_queries)  # [B, G, R, T]
    # The R heads that share a key stand below each other in one product: no key is copied.
    stacked = query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(rows, groups, -1, width)
    scores = (stacked @ key.transpose(-1, -2)).view(*shared, num_keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    hidden = hidden_positions(num_queries, num_keys, segments, query.device)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1).to(value.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    mixed = weights.view(rows, groups, -1, num_keys) @ value
    return mixed.view(*shared, width).permute(0, 3, 1, 2, 4).reshape(query.shape)


def hidden_positions(
    num_queries: int, num_keys: int, segments: Tensor | None, device: torch.device
) -> Tensor:
    """Where the last T of S positions may not look: bool [T, S] or [B, 1, 1, T, S]."""
    key_at = torch.arange(num_keys, device=device)
    hidden = key_at > key_at[num_keys - num_queries :, None]
    if segments is None:
        return hidden
    mine = segments[:, num_keys - num_queries : num_keys, None]
    return (hidden | (mine != segments[:, None, :num_keys]))[:, None, None]


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attend` written out from the formula, in the precision of its inputs: the oracle of all fast paths."""
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
