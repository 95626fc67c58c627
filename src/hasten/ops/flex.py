"""Attention inside documents on a GPU: FlexAttention (Dong et al. 2024), which skips what is masked.

A dense mask takes PyTorch's attention off its fast kernel and costs a whole square of scores; here tiles of
`BLOCK` x `BLOCK` positions that hold no visible pair are never touched.  Which tiles those are depends on the
documents alone: it is found out once a batch and shared by all layers.

FlexAttention rather than `torch.nn.attention.varlen`: that takes a list of document lengths, whose number
changes from batch to batch, knows no grouped heads before PyTorch 2.12, and is FlashAttention 2, which an
H100 does not run faster than FlexAttention's own kernels.

Letters in shapes: B rows, T positions, N = T / BLOCK tiles, H query heads, G key/value heads, K head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hasten.ops.attention import attend

BLOCK = 128
"""Positions along a tile's edges, the size that FlexAttention's kernels are made for."""
LAST = 2**40  # above every number of a document
NARROWEST_HEAD = 16


class DocumentAttention:
    """A place in the `attend` sockets of all layers, with one mask for all of them.

    with attention.over(segments):
        model(tokens, segments=segments)

    Within the block it attends by FlexAttention; what that cannot do (dropout, a cache's keys, narrow heads,
    encoders), and all that happens outside of it, goes to `ops.attend`.
    """

    def __init__(self) -> None:
        self.mask: BlockMask | None = None
        # Without a compiler FlexAttention writes out all scores; inside a compiled block this is inlined.
        self.kernel = torch.compile(flex_attention, dynamic=False)

    @contextmanager
    def over(self, segments: Tensor | None) -> Iterator[None]:
        """Attend within `segments` [B, T], forward and backward, until the block is left."""
        self.mask = None if segments is None else document_mask(segments)
        try:
            yield
        finally:
            self.mask = None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        segments: Tensor | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> Tensor:
        """As `ops.attend`: query [B, T, H, K], key and value [B, T, G, K] -> [B, T, H, K]."""
        mask = self.mask
        whole = query.shape[1] == key.shape[1] and query.shape[3] >= NARROWEST_HEAD
        if mask is None or segments is None or not causal or not whole or dropout or options:
            return attend(
                query, key, value, causal=causal, segments=segments, scale=scale, dropout=dropout, **options
            )
        out = self.kernel(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            block_mask=mask,
            scale=scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        assert isinstance(out, Tensor)
        return out.transpose(1, 2)


def document_mask(segments: Tensor) -> BlockMask:
    """Causal visibility inside the documents of `segments` [B, T], as FlexAttention takes it.

    A tile is empty where the numbers on its two edges do not overlap, and full where both are one and the
    same document and the keys come before the queries.  Rows whose numbers rise, with 0 for padding at the
    end, get exactly the tiles that they need; for others it may be more, never less.
    """

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (segments[b, q] == segments[b, k])

    length = segments.shape[1]
    numbers = segments.masked_fill(segments == 0, LAST)  # padding is the last document
    tiles = F.pad(numbers, (0, -length % BLOCK), value=LAST + 1).unflatten(1, (-1, BLOCK))  # [B, N, BLOCK]
    low, high = tiles.amin(dim=2), tiles.amax(dim=2)  # [B, N]
    at = torch.arange(low.shape[1], device=segments.device)
    before, here = at[None, :] < at[:, None], at[None, :] == at[:, None]  # [N, N]
    overlap = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    pure = (low == high)[:, :, None] & (low == high)[:, None, :]
    full = before & overlap & pure
    partial = (before | here) & overlap & ~full
    return BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(length, length)
    )


def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, N, N] as how many there are in each row, int32 [B, 1, N], and which, first, [B, 1, N, N]."""
    count = tiles.sum(dim=-1, dtype=torch.int32)
    which = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count[:, None], which[:, None].contiguous()
