"""A model made ready to write, and rows of like length put together.

Letters in shapes: B rows, T prompt tokens.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.generate.cache import KeyValueCache
from hasten.generate.completion import Row
from hasten.generate.config import GenerateConfig
from hasten.generate.half import worth_packing
from hasten.generate.native import NativeDecoder, can_decode
from hasten.generate.source_cache import SourceCache
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, Seq2Seq

Writer = Decoder | Seq2Seq
"""A model that texts can be had from."""


@dataclass(frozen=True)
class Prepared:
    """A model as it reads prompts, and how it reads single tokens where there is a faster way."""

    model: Writer
    native: NativeDecoder | None

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.model.config

    def cache(self, rows: Sequence[Row], padding: list[int], capacity: int) -> KeyValueCache:
        """A cache for these rows, which has read their sources where they have any."""
        if isinstance(self.model, Seq2Seq):
            return SourceCache(self.model, [row.source or [] for row in rows], padding, capacity)
        return KeyValueCache(self.model, padding, capacity, self.native)


@contextmanager
def ready(model: Writer, config: GenerateConfig) -> Iterator[Prepared]:
    """The model in the precision asked for, in evaluation mode, uncompiled; afterwards as it was.

    Compiled blocks run eagerly: a cache grows with every token, and each length would be compiled anew.
    """
    stored = model.dtype
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(config.precision, stored)
    prepared = model if wanted == stored else copy.deepcopy(model).to(wanted)
    training = model.training
    prepared.eval()
    try:
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            yield Prepared(prepared, native_decoder(prepared, config))
    finally:
        model.train(training)


def native_decoder(model: Writer, config: GenerateConfig) -> NativeDecoder | None:
    """The C++ that reads single tokens, where it computes what this model does."""
    if not isinstance(model, Decoder) or not can_decode(model):
        return None
    packed = worth_packing(model, config.max_new_tokens)
    return NativeDecoder(model, half=packed and config.precision == "auto", twelve=packed)


def batches(rows: Sequence[Row], batch_rows: int) -> Iterator[list[Row]]:
    """Rows of like length together, so that few positions are padding."""
    ordered = sorted(rows, key=lambda row: len(row.source or row.ids))
    for start in range(0, len(ordered), batch_rows):
        yield ordered[start : start + batch_rows]


def pad_left(texts: list[list[int]]) -> tuple[Tensor, list[int]]:
    """Ids of unequal length as a rectangle that ends together, [B, T], and each row's padding.

    What stands in the padding is never attended to; 0 is an id that every vocabulary has.
    """
    longest = max(map(len, texts))
    padding = [longest - len(ids) for ids in texts]
    return torch.tensor([[0] * n + ids for n, ids in zip(padding, texts, strict=True)]), padding
