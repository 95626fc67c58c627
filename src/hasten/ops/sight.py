"""Who sees whom in attention.  Letters in shapes as in `attention.py`."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sight(NamedTuple):
    """Who sees whom, as in `attend`."""

    causal: bool
    segments: Tensor | None = None
    key_segments: Tensor | None = None
    window: int | None = None

    def mask(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
        """Which keys each query may see, bool [B or 1, 1, T, S]; None if all, or the plain triangle."""
        mask = None
        alone = self.segments is None and self.window is None and num_queries == num_keys
        if self.causal and num_queries > 1 and not alone:
            mask = earlier(num_queries, num_keys, device)
        if self.window is not None:
            near = ~earlier(num_queries, num_keys, device, before=self.window)
            mask = near if mask is None else mask & near
        if self.segments is not None:
            same = self.same(num_queries)
            mask = same if mask is None else mask & same
        return mask

    def same(self, num_queries: int) -> Tensor:
        """Which pairs have equal numbers, bool [B, 1, T, S]."""
        assert self.segments is not None
        keys = self.segments if self.key_segments is None else self.key_segments
        return self.segments[:, None, -num_queries:, None] == keys[:, None, None, :]

    def triangle(
        self, num_queries: int, num_keys: int, mask: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """The mask with the plain triangle written out."""
        if mask is None and self.causal and num_queries > 1:
            return earlier(num_queries, num_keys, device)
        return mask


def earlier(num_queries: int, num_keys: int, device: torch.device, before: int = 0) -> Tensor:
    """Whether a key stands at least `before` positions before a query, bool [1, 1, T, S]."""
    full = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return full.tril(num_keys - num_queries - before)[None, None]
