"""The cache of a model that reads a source: the encoder runs once, and its keys are made once.

Letters in shapes: S sources, N tokens of the longest, W rows a source (beams), T new tokens, D model width,
H query heads, G key/value heads, K head width.
"""

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from hasten.generate.cache import KeyValueCache
from hasten.model.attention import CrossAttention
from hasten.model.stack import Stack
from hasten.model.transformer import Seq2Seq
from hasten.ops.attention import attend


class SourceCache(KeyValueCache):
    """`KeyValueCache` of a `Seq2Seq`: rows are texts in the making, each with a source.

        with SourceCache(model, [[5, 6, 1], [7, 1]], padding=[0, 0], capacity=100) as cache:
            hidden = cache.read(begun)  # [2, T] -> [2, T, D]

    The encoder reads the sources as the cache is made.  After `keep` a source may have several rows, equally
    many each and next to each other: they look at it together, and its keys are not copied.
    """

    model: Seq2Seq

    def __init__(self, model: Seq2Seq, sources: list[list[int]], padding: list[int], capacity: int) -> None:
        super().__init__(model, padding, capacity)
        tokens, self.source_segments = rectangle(sources, model.device)
        self.memory = model.encode(tokens, segments=self.source_segments)
        crosses = [layer.cross for layer in self.stack.layers.values()]
        self.looks = [Look(self, cross) for cross in crosses if isinstance(cross, CrossAttention)]

    @property
    def stack(self) -> Stack:
        """The decoder's side."""
        return self.model.decoder

    def compute(self, tokens: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        """Hidden states of new tokens [S * W, T] -> [S * W, T, D]."""
        return self.model.decode(tokens, self.memory, positions, segments)

    def __enter__(self) -> Self:
        for look in self.looks:
            look.cross.read, look.cross.attend = look.read, look.attend
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        for look in self.looks:
            look.cross.read, look.cross.attend = look.before

    def keep(self, rows: list[int] | Tensor, sources: Tensor | None = None) -> None:
        """Go on with these rows, and these sources: by default each row's own."""
        super().keep(rows)
        stay = rows if sources is None else sources
        chosen = torch.as_tensor(stay, dtype=torch.int64, device=self.starts.device)
        if len(chosen) == len(self.memory) and bool((chosen.diff() == 1).all()):
            return
        self.memory = self.memory[chosen]
        if self.source_segments is not None:
            self.source_segments = self.source_segments[chosen]
        for look in self.looks:
            look.key, look.value = look.key[chosen], look.value[chosen]


class Look:
    """One layer's keys and values of the sources, in place of the sockets of its cross-attention."""

    def __init__(self, cache: SourceCache, cross: CrossAttention) -> None:
        self.cache, self.cross = cache, cross
        self.before: tuple[Any, Any] = (cross.read, cross.attend)
        self.key, self.value = cross.keys_and_values(cache.memory)  # [S, N, G, K] each

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What was read of the sources, `memory`."""
        return self.key, self.value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """query [S * W, T, H, K], key and value [S, N, G, K] -> [S * W, T, H, K]."""
        there = self.cache.source_segments
        # No query sees another one here, so the rows of a source may stand in one.
        together = query.reshape(len(key), -1, *query.shape[2:])
        asking = None if there is None else there.new_ones(together.shape[:2])
        given = {**options, "segments": asking, "key_segments": there}
        return attend(together, key, value, **given).reshape(query.shape)


def rectangle(sources: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Sources of unequal length, [S, N], and 1 where there is a token; None if there is one everywhere."""
    longest = max(map(len, sources))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sources], device=device)
    lengths = torch.tensor([len(ids) for ids in sources], device=device)
    there = (torch.arange(longest, device=device) < lengths[:, None]).long()
    return tokens, None if bool(there.all()) else there
