"""Attention inside documents on a GPU: FlexAttention (Dong et al. 2024), which skips what is masked.

A dense mask takes PyTorch's attention off its fast kernel and costs a whole square of scores; here tiles of
`BLOCK` x `BLOCK` positions that hold no visible pair are never touched.  Which tiles those are depends on the
documents alone: it is found out once a batch and shared by all layers.

FlexAttention rather than `torch.nn.attention.varlen`: that takes a list of document lengths, whose number
changes from batch to batch, knows no grouped heads before PyTorch 2.12, and is FlashAttention 2, which an
H100 does not run faster than FlexAttention's own kernels.

Letters in shapes: B rows, T queries, S keys, N and M tiles of BLOCK of them, H query heads, G key/value
heads, K head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hasten.ops.attention import attend
from hasten.ops.sight import Sight

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

    Rows whose numbers rise, with 0 for padding at the end, get exactly the tiles that they need; for others
    it may be more, never less.
    """
    length = segments.shape[1]
    return tile_mask(Sight(True, segments), length, length, segments.device)


def tile_mask(sight: Sight, num_queries: int, num_keys: int, device: torch.device) -> BlockMask:
    """Who sees whom, as FlexAttention takes it, for T queries and S keys; T = S if causal or in a window.

    A tile is empty where no place or no number on its two edges lets a pair see, and full where all do.
    """
    causal, window, segments = sight.causal, sight.window, sight.segments
    theirs = segments if sight.key_segments is None else sight.key_segments

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = k >= 0
        if causal:
            seen = seen & (q >= k)
        if window is not None:
            seen = seen & (k > q - window)
        if segments is not None and theirs is not None:
            seen = seen & (segments[b, q] == theirs[b, k])
        return seen

    some, every = (tiles[None] for tiles in placed_tiles(sight, num_queries, num_keys, device))
    if segments is not None and theirs is not None:
        overlap, same = numbered_tiles(segments, theirs)
        some, every = some & overlap, every & same
    return BlockMask.from_kv_blocks(
        *listed(some & ~every),
        *listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(num_queries, num_keys),
    )


def placed_tiles(
    sight: Sight, num_queries: int, num_keys: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """In which tiles some, and every, pair sees as far as places go: bool [N, M] each."""
    query = torch.arange(0, num_queries, BLOCK, device=device)[:, None]  # the first of each tile
    key = torch.arange(0, num_keys, BLOCK, device=device)[None, :]
    last_query, last_key = query + BLOCK - 1, key + BLOCK - 1
    every = (last_query < num_queries) & (last_key < num_keys)
    some = torch.ones_like(every)
    if sight.causal:
        some, every = some & (key <= last_query), every & (last_key <= query)
    if sight.window is not None:
        nearest = last_key.clamp(max=num_keys - 1)
        some, every = some & (nearest > query - sight.window), every & (key > last_query - sight.window)
    return some, every


def numbered_tiles(segments: Tensor, key_segments: Tensor) -> tuple[Tensor, Tensor]:
    """In which tiles the numbers overlap, and are all one: segments [B, T], [B, S] -> bool [B, N, M] each."""
    (low, high), (key_low, key_high) = edges(segments), edges(key_segments)
    overlap = (low[:, :, None] <= key_high[:, None, :]) & (key_low[:, None, :] <= high[:, :, None])
    return overlap, overlap & (low == high)[:, :, None] & (key_low == key_high)[:, None, :]


def edges(segments: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number of each tile, padding being the last document: [B, N] each."""
    numbers = segments.masked_fill(segments == 0, LAST)
    tiles = F.pad(numbers, (0, -segments.shape[1] % BLOCK), value=LAST + 1).unflatten(1, (-1, BLOCK))
    return tiles.amin(dim=2), tiles.amax(dim=2)


def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, N, M] as how many there are in each row, int32 [B, 1, N], and which, first, [B, 1, N, M]."""
    count = tiles.sum(dim=-1, dtype=torch.int32)
    which = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count[:, None], which[:, None].contiguous()
