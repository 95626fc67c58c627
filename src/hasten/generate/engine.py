"""Prompts to texts: read the prompts, then one token a row and step, until every row has ended.

Letters in shapes: B rows, T prompt tokens, D model width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.generate.cache import KeyValueCache
from hasten.generate.completion import Completion, Row
from hasten.generate.config import GenerateConfig
from hasten.generate.half import worth_halving
from hasten.generate.native import NativeDecoder, can_decode
from hasten.generate.sample import Sampler
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder
from hasten.tokenizer.tokenizer import Tokenizer

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Prepared:
    """A model as it reads prompts, and how it reads single tokens where there is a faster way."""

    model: Decoder
    native: NativeDecoder | None

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.model.config


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: GenerateConfig,
    on_text: OnText | None = None,
) -> list[Completion]:
    """Continue each prompt `config.samples_per_prompt` times; the samples of a prompt follow each other.

    `on_text(i, piece)` receives the text of the i-th completion as it grows; its pieces join to the final
    text.  Raises ConfigError for a tokenizer of another model, DataError for a prompt that the context
    cannot hold.
    """
    check_vocabulary(model, tokenizer)
    seeded = [(prompt, config.seed + s) for prompt in prompts for s in range(config.samples_per_prompt)]
    encoded = tokenizer.encode_batch([prompt for prompt, _ in seeded])
    rows = [
        Row(
            prompt,
            seed,
            [tokenizer.bos_id, *ids],
            tokenizer=tokenizer,
            max_positions=model.config.max_positions,
            config=config,
            on_piece=None if on_text is None else partial(on_text, index),
        )
        for index, ((prompt, seed), ids) in enumerate(zip(seeded, encoded, strict=True))
    ]
    grow(model, rows, config, tokenizer.vocab_size)
    return [row.completion() for row in rows]


def grow(model: Decoder, rows: list[Row], config: GenerateConfig, vocab_size: int) -> None:
    """Let every row grow until it has ended, `config.batch_rows` at a time."""
    with ready(model, config) as prepared:
        for batch in batches(rows, config.batch_rows):
            extend(prepared, batch, config, vocab_size)


def check_vocabulary(model: Decoder, tokenizer: Tokenizer) -> None:
    """A model may have more rows than its tokenizer has ids (padding), never fewer."""
    if model.config.vocabulary < tokenizer.vocab_size:
        raise ConfigError(
            f"the model knows {model.config.vocabulary} tokens and the tokenizer has {tokenizer.vocab_size};"
            " they don't belong together: take the tokenizer.json from the model's own folder"
        )


@contextmanager
def ready(model: Decoder, config: GenerateConfig) -> Iterator[Prepared]:
    """The model in the precision asked for, in evaluation mode, uncompiled; afterwards as it was.

    Compiled blocks run eagerly: a cache grows with every token, and each length would be compiled anew.
    """
    stored = model.embedding.weight.dtype
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(config.precision, stored)
    prepared = model if wanted == stored else copy.deepcopy(model).to(wanted)
    half = config.precision == "auto" and worth_halving(prepared, config.max_new_tokens)
    training = model.training
    prepared.eval()
    try:
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            yield Prepared(prepared, NativeDecoder(prepared, half) if can_decode(prepared) else None)
    finally:
        model.train(training)


def batches(rows: list[Row], batch_rows: int) -> Iterator[list[Row]]:
    """Rows of like length together, so that few positions are padding."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(ordered), batch_rows):
        yield ordered[start : start + batch_rows]


def extend(prepared: Prepared, rows: list[Row], config: GenerateConfig, vocab_size: int) -> None:
    """Let the rows of one batch grow until each has ended.

    Where contexts slide, full rows keep their last half and everything is read again: what the model sees
    is then exactly a shorter text, in positions that it knows, and the reading costs about one token a token.
    """
    device = prepared.model.embedding.weight.device
    begins = [(row.seed, row.prompt, row.ids) for row in rows]
    sampler = Sampler(begins, config, vocab_size, device, [row.first for row in rows])
    while rows:
        rows = extend_within_context(prepared, rows, sampler)
        for row in rows:
            if row.is_full:
                row.forget()


def extend_within_context(prepared: Prepared, rows: list[Row], sampler: Sampler) -> list[Row]:
    """Let the rows grow until all have ended, or one is full; return those that have not ended."""
    tokens, padding = pad_left([row.window for row in rows])
    # The last chosen token of a row is never read: it is the end, or the first of the next reading.
    room = max(min(row.max_positions - len(row.window), row.most_tokens) for row in rows)
    capacity = tokens.shape[1] + room
    with KeyValueCache(prepared.model, padding, capacity, prepared.native) as cache:
        hidden = cache.read(tokens.to(cache.starts.device))
        logits = prepared.model.logits(hidden[:, -1])
        while True:
            chosen = sampler.choose(logits)
            going = [i for i, token in enumerate(chosen.tolist()) if rows[i].push(token)]
            if len(going) < len(rows):
                rows, chosen = [rows[i] for i in going], chosen[going]
                cache.keep(going)
                sampler.keep(going)
            if not rows or any(row.is_full for row in rows):
                return rows
            logits = cache.follow(chosen)


def pad_left(texts: list[list[int]]) -> tuple[Tensor, list[int]]:
    """Ids of unequal length as a rectangle that ends together, [B, T], and each row's padding.

    What stands in the padding is never attended to; 0 is an id that every vocabulary has.
    """
    longest = max(map(len, texts))
    padding = [longest - len(ids) for ids in texts]
    return torch.tensor([[0] * n + ids for n, ids in zip(padding, texts, strict=True)]), padding
