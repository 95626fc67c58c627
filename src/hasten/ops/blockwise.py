"""Attention as plain matrix products over blocks of queries.  Letters in shapes as in `attention.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, MOST_BLOCKS = 128, 8
"""Queries scored together: few enough to skip most of the hidden half, enough for full-rate products.

Longer rows get larger blocks: each is unrolled in a compiled graph.
"""
LONGEST_IN_BLOCKS, LONGEST_IN_EAGER_BLOCKS = 2048, 512


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
