"""Keys and values of what a decoder has read, kept in its `attend` sockets.

Letters in shapes: B rows, T new tokens, S cached and new positions, D model width, H query heads,
G key/value heads, K head width.
"""

import ctypes
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.generate.native import Cache, NativeDecoder
from hasten.model.stack import Stack
from hasten.model.transformer import Decoder, Seq2Seq
from hasten.ops.attention import attend


class KeyValueCache:
    """What `model` has read, a batch of rows, remembered so that each token is computed once.

        with KeyValueCache(model, padding=[0, 3], capacity=100) as cache:
            hidden = cache.read(prompts)  # [2, T] -> [2, T, D]
            logits = cache.follow(tokens)  # [2] -> [2, V]

    Rows end together: a shorter row stands behind `padding` positions that nothing attends to.  The buffers
    are as long as `capacity` from the start, but memory is touched, and attention runs, only as far as they
    are filled.  With `native`, single tokens are read by it, and only prompts by PyTorch.  Leaving `with`
    gives the model its own attention back.
    """

    def __init__(
        self, model: Decoder | Seq2Seq, padding: list[int], capacity: int, native: NativeDecoder | None = None
    ) -> None:
        self.model, self.capacity, self.native = model, capacity, native
        self.padding = padding
        self.starts = torch.tensor(padding, device=model.device)  # [B], each row's first
        self.filled = 0
        self.places: Places | None = None
        self.attentions: list[Any] = [layer.attention for layer in self.stack.layers.values()]
        self.slots = [Slot(self) for _ in self.attentions]

    @property
    def stack(self) -> Stack:
        """The layers whose keys and values are kept."""
        return cast(Decoder, self.model)

    def compute(self, tokens: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        """Hidden states of new tokens [B, T] -> [B, T, D], their layers reading the cache."""
        return self.model(tokens, positions=positions, segments=segments)

    def __enter__(self) -> Self:
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
        hidden = self.compute(tokens, positions, segments)
        self.filled = end
        return hidden

    def follow(self, tokens: Tensor) -> Tensor:
        """Scores of what comes after one more token of every row, something having been read: [B] -> [B, V].

        They are in float32 and stay as they are until the next call, where `native` computes them.
        """
        if self.native is None:
            return self.model.logits(self.read(tokens[:, None]))[:, 0]
        self.check(self.filled + 1)
        if self.places is None:
            self.places = Places(self)
        logits = self.places.step(self.native, tokens.contiguous())
        self.filled += 1
        return logits

    def follow_all(self, tokens: Tensor) -> Tensor:
        """Scores of what comes after each of the next tokens of the only row: [T] -> [T, V]."""
        if self.native is None:
            return self.model.logits(self.read(tokens[None])[0])
        self.check(self.filled + len(tokens))
        if self.places is None:
            self.places = Places(self)
        logits = self.places.step(self.native, tokens.contiguous(), joined=True)
        self.filled += len(tokens)
        return logits

    def go_back(self, filled: int) -> None:
        """Forget what was read beyond the first `filled` positions."""
        self.filled = min(self.filled, filled)

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

    def keep(self, rows: list[int] | Tensor, sources: Tensor | None = None) -> None:
        """Go on with these rows alone, in this order; a row may come again, and the others leave the batch.

        `sources` are, of the texts that rows look at beside their own, those that stay: by default `rows`.
        """
        for slot in self.slots:
            slot.keep(rows, self.filled)
        if len(rows) > len(self.padding):
            self.places = None  # the buffers may have moved
        self.starts = self.starts[rows]
        self.padding = self.starts.tolist()


class Slot:
    """One layer's keys and values, in place of its attention function."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        self.keys: Tensor | None = None  # [B, G, capacity, K]: a head's keys lie together in memory
        self.values: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """`attend` over everything read so far: query [B, T, H, K], new key and value [B, T, G, K]."""
        if self.keys is None or self.values is None:  # shapes are known with the first keys
            rows, _, heads, width = key.shape
            dtype = key.dtype if self.cache.native is None else self.cache.native.cache_dtype
            self.keys = key.new_empty(rows, heads, self.cache.capacity, width, dtype=dtype)
            self.values = torch.empty_like(self.keys)
        rows, start = key.shape[0], self.cache.filled
        end = start + key.shape[1]
        self.keys[:rows, :, start:end] = key.transpose(1, 2)
        self.values[:rows, :, start:end] = value.transpose(1, 2)
        keys = self.keys[:rows, :, :end].to(key.dtype)  # [B, G, S, K]
        values = self.values[:rows, :, :end].to(key.dtype)
        return attend(query, keys.transpose(1, 2), values.transpose(1, 2), **options)

    def keep(self, rows: list[int] | Tensor, filled: int) -> None:
        """Move the filled part of these rows to the front."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (moved(buffer, rows, filled) for buffer in (self.keys, self.values))


def moved(buffer: Tensor, rows: list[int] | Tensor, filled: int) -> Tensor:
    """A buffer [B, G, capacity, K] with what is filled of these rows in front; larger if they are more."""
    target = buffer
    if len(rows) > len(buffer):
        target = buffer.new_empty(len(rows), *buffer.shape[1:])
    target[: len(rows), :, :filled] = buffer[rows, :, :filled]
    return target


class Places:
    """Where `native` finds the cache: the slots' buffers, and the angles of every position."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        config = cache.model.config
        every = torch.arange(cache.capacity)
        self.angles = *tables(cache.stack.angles(every)), *tables(cache.stack.local_angles(every))
        self.logits = torch.empty(0, config.vocabulary)
        self.pointers = [
            pointers([getattr(slot, name) for slot in cache.slots]) for name in ("keys", "values")
        ]
        self.structure = Cache(
            *(ctypes.cast(array, ctypes.c_void_p) for array in self.pointers),
            *(None if angle is None else angle.data_ptr() for angle in self.angles),
            capacity=cache.capacity,
        )

    def step(self, native: NativeDecoder, tokens: Tensor, *, joined: bool = False) -> Tensor:
        """tokens [B] -> logits [B, V]; `joined`: they follow each other in the only row."""
        place, cache = self.structure, self.cache
        place.rows, place.filled, place.starts = len(tokens), cache.filled, cache.starts.data_ptr()
        place.joined = joined
        if len(self.logits) < len(tokens):
            self.logits = self.logits.new_empty(len(tokens), self.logits.shape[1])
        logits = self.logits[: len(tokens)]
        native.step(place, tokens, logits)
        return logits


def tables(angles: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cosines and sines, each [capacity, 1, pairs], of angles [2, capacity, 1, pairs]."""
    return (None, None) if angles is None else angles.contiguous().unbind()


def pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """A C array of where each tensor's numbers begin."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
