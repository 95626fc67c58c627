"""Texts to vectors: an encoder's states pooled, so that near in meaning is near in angle.

Reimers & Gurevych 2019, "Sentence-BERT".  Letters in shapes: N texts, B rows, T tokens, D model width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hasten.core.config import Config
from hasten.core.console import Progress
from hasten.core.errors import ConfigError, DataError
from hasten.evaluate.pooling import Pooling, Settings
from hasten.model.evaluating import evaluating
from hasten.model.transformer import Seq2Seq, Transformer
from hasten.tokenizer.tokenizer import Tokenizer, no_unicode
from hasten.train.engine import choose_precision

Positive = Annotated[int, Field(ge=1)]


class EmbedConfig(Config):
    """Which texts become vectors, how, and where the vectors go."""

    texts: tuple[str, ...] = ()
    file: Path | None = Field(None, description="texts, one a line; .jsonl: the field `text` of each object")
    output: Path | None = Field(None, description="vectors.npy, .safetensors or .json")
    pooling: Pooling | None = Field(
        None,
        description="mean of all states, the first one, or the model's pooler over it; null: as the model's"
        " folder says, else mean",
    )
    normalize: bool = Field(True, description="vectors of length one, whose products are cosines")
    truncate: bool = Field(False, description="cut texts that are longer than the model reads")
    max_tokens: Positive | None = Field(None, description="null: as many as the model reads")
    batch_tokens: Positive = 4096
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")


@dataclass(frozen=True)
class Encoded:
    """A text as the model reads it, special tokens included."""

    tokens: list[int]  # [T]
    types: list[int]  # [T] token types: 0 for the first sentence


def embed(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: EmbedConfig,
    settings: Settings | None = None,
) -> np.ndarray:
    """A vector for each text: [N, D] float32.

    `settings` are the model's own (`read_settings`), which `config` may overrule.  Texts of like length are
    read together, and every vector is that of the text alone.  Raises DataError for a text that is empty or
    longer than the model reads, ConfigError where the model has no such pooling.
    """
    settings = settings or Settings()
    if model.config.vocabulary < tokenizer.vocab_size:
        raise ConfigError(
            f"the model knows {model.config.vocabulary:,} tokens and the tokenizer has"
            f" {tokenizer.vocab_size:,}; take the tokenizer.json from the model's own folder"
        )
    pooling = choose_pooling(model, config, settings)
    encoded = encode(tokenizer, texts, limit(model, config, settings), config.truncate, settings)
    device = next(model.parameters()).device
    bf16 = choose_precision(config.precision, device) == "bf16"
    vectors = np.empty((len(texts), model.config.dim), np.float32)
    done, total = 0, sum(len(text.tokens) for text in encoded)
    with (
        Progress("embed", total, "tokens") as progress,
        evaluating(model),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        for places in batches(encoded, config.batch_tokens):
            vectors[places] = vectors_of(model, [encoded[i] for i in places], pooling).cpu().numpy()
            done += sum(len(encoded[i].tokens) for i in places)
            progress.update(done)
    return normalized(vectors) if config.normalize else vectors


def choose_pooling(model: Transformer, config: EmbedConfig, settings: Settings) -> Pooling:
    """What is asked for, or the model's own way, or the mean."""
    pooling = config.pooling or settings.pooling or "mean"
    if pooling == "pooler" and model.config.pooler is None:
        raise ConfigError("pooling is pooler and the model has none; write pooling=mean or pooling=first")
    if pooling != "mean" and model.config.kind == "decoder":
        raise ConfigError(
            f"pooling is {pooling} and the model a decoder, whose first state has seen one token; write"
            " pooling=mean"
        )
    return pooling


def limit(model: Transformer, config: EmbedConfig, settings: Settings) -> int:
    """How many tokens of a text the model reads, special ones included."""
    longest = model.config.max_positions
    if config.max_tokens is not None and config.max_tokens > longest:
        raise ConfigError(
            f"max_tokens is {config.max_tokens} and the model reads {longest}; write that or less"
        )
    return config.max_tokens or min(settings.max_tokens or longest, longest)


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int, truncate: bool, settings: Settings
) -> list[Encoded]:
    """The texts as ids, with the special tokens that the tokenizer's post-processor puts around a text."""
    special = tokenizer.inner.num_special_tokens_to_add(is_pair=False)
    if longest <= special:
        raise ConfigError(f"max_tokens is {longest} and {special} are special; write {special + 1} or more")
    result = []
    for number, given in enumerate(texts, start=1):
        text = settings.prompt + (given.lower() if settings.lower_case else given)
        try:
            encoding = tokenizer.inner.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise no_unicode() from None
        if not encoding.ids:
            raise DataError(f"text {number} holds no token; leave it out")
        length = len(encoding.ids) + special
        if length > longest:
            if not truncate:
                raise DataError(
                    f"text {number} is {length:,} tokens long and the model reads {longest:,}; shorten it, or"
                    " write truncate=true"
                )
            encoding.truncate(longest - special)
        whole = tokenizer.inner.post_process(encoding)
        result.append(Encoded(whole.ids, whole.type_ids))
    return result


def batches(encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
    """Places of texts that are read together: of like length, the longest first."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].tokens))
    at = 0
    while at < len(order):
        rows = max(1, batch_tokens // len(encoded[order[at]].tokens))
        yield order[at : at + rows]
        at += rows


def vectors_of(model: Transformer, texts: Sequence[Encoded], pooling: Pooling) -> Tensor:
    """One batch: [B, D] float32."""
    device = next(model.parameters()).device
    longest = max(len(text.tokens) for text in texts)
    tokens, types = (torch.zeros(len(texts), longest, dtype=torch.long) for _ in range(2))
    real = torch.zeros(len(texts), longest, dtype=torch.long)  # 1 where there is a token, 0 in padding
    for row, text in enumerate(texts):
        length = len(text.tokens)
        tokens[row, :length] = torch.tensor(text.tokens)
        types[row, :length] = torch.tensor(text.types)
        real[row, :length] = 1
    tokens, types, real = tokens.to(device), types.to(device), real.to(device)
    segments = None if bool(real.all()) else real
    hidden = states(model, tokens, segments, types)  # [B, T, D]
    if pooling == "pooler":
        return model.pooled(hidden[:, 0]).float()
    if pooling == "first":
        return hidden[:, 0].float()
    return (hidden.float() * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def states(model: Transformer, tokens: Tensor, segments: Tensor | None, types: Tensor) -> Tensor:
    """The encoder's last states, or a decoder's: [B, T] -> [B, T, D]."""
    if isinstance(model, Seq2Seq):
        return model.encode(tokens, segments=segments)
    if model.config.num_token_types:
        return model(tokens, segments=segments, token_types=types)
    return model(tokens, segments=segments)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length one; one of zeros stays: [N, D] -> [N, D]."""
    return F.normalize(torch.from_numpy(vectors), dim=-1).numpy()
