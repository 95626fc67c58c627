"""Keys and values of what a decoder has read, kept in its `attend` sockets.

Letters in shapes: B rows, T new tokens, S cached and new positions, D model width, H query heads,
G key/value heads, K head width.
"""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.model.transformer import Decoder
from hasten.ops.attention import attend


class KeyValueCache:
    """What `model` has read, a batch of rows, remembered so that each token is computed once.

        with KeyValueCache(model, padding=[0, 3], capacity=100) as cache:
            hidden = cache.read(prompts)  # [2, T] -> [2, T, D]
            hidden = cache.read(following)  # [2, 1] -> [2, 1, D]

    Rows end together: a shorter row stands behind `padding` positions that nothing attends to.  The buffers
    are as long as `capacity` from the start, but memory is touched, and attention runs, only as far as they
    are filled.  Leaving `with` gives the model its own attention back.
    """

    def __init__(self, model: Decoder, padding: list[int], capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self.padding = padding
        self.starts = torch.tensor(padding, device=model.embedding.weight.device)  # [B], each row's first
        self.filled = 0
        self.attentions: list[Any] = [layer.attention for layer in model.layers.values()]
        self.slots = [Slot(self) for _ in self.attentions]

    def __enter__(self) -> "KeyValueCache":
        self.before = [attention.attend for attention in self.attentions]
        self.plug(self.slots)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.plug(self.before)

    def plug(self, attends: list[Any]) -> None:
        """Put one attention function into each layer's socket."""
        for attention, function in zip(self.attentions, attends, strict=True):
            attention.attend = function

    def read(self, tokens: Tensor) -> Tensor:
        """Hidden states of the next tokens of every row: [B, T] -> [B, T, D]."""
        end = self.filled + tokens.shape[1]
        self.check(end)
        slots = torch.arange(end, device=tokens.device)
        positions, segments = slots[self.filled :], None
        if any(self.padding):
            positions = (positions - self.starts[:, None]).clamp(min=0)  # [B, T]
            segments = (slots >= self.starts[:, None]).long()  # [B, S]
        hidden = self.model(tokens, positions=positions, segments=segments)
        self.filled = end
        return hidden

    def check(self, end: int) -> None:
        """Refuse to read on to position `end` where there is no room or no such position."""
        if end > self.capacity:
            raise ConfigError(
                f"the cache was made for {self.capacity} positions and position {end} was asked for;"
                " make `capacity` larger"
            )
        config = self.model.config
        longest = end - min(self.padding)
        if config.position == "learned" and longest > config.max_positions:
            raise ConfigError(
                f"the model has learned {config.max_positions} positions and cannot read {longest} tokens;"
                " shorten the prompt, ask for fewer new tokens, or write context_overflow: slide"
            )

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone, in this order; the others leave the batch."""
        for slot in self.slots:
            slot.keep(rows, self.filled)
        self.padding, self.starts = [self.padding[row] for row in rows], self.starts[rows]


class Slot:
    """One layer's keys and values, in place of its attention function."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        self.keys: Tensor | None = None  # [B, G, capacity, K]: a head's keys lie together in memory
        self.values: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """`attend` over everything read so far: query [B, T, H, K], new key and value [B, T, G, K]."""
        if self.keys is None or self.values is None:  # shapes and dtype are known with the first keys
            rows, _, heads, width = key.shape
            self.keys = key.new_empty(rows, heads, self.cache.capacity, width)
            self.values = torch.empty_like(self.keys)
        rows, start = key.shape[0], self.cache.filled
        end = start + key.shape[1]
        self.keys[:rows, :, start:end] = key.transpose(1, 2)
        self.values[:rows, :, start:end] = value.transpose(1, 2)
        keys, values = self.keys[:rows, :, :end], self.values[:rows, :, :end]  # [B, G, S, K]
        return attend(query, keys.transpose(1, 2), values.transpose(1, 2), **options)

    def keep(self, rows: list[int], filled: int) -> None:
        """Move the filled part of these rows to the front."""
        if self.keys is not None and self.values is not None:
            self.keys[: len(rows), :, :filled] = self.keys[rows, :, :filled]
            self.values[: len(rows), :, :filled] = self.values[rows, :, :filled]
