"""A user's texts as the tokens that a model reads, with a bound on how many it is looked at."""

import math
import re
from dataclasses import dataclass

from hasten.core.errors import ConfigError, DataError
from hasten.model.config import ModelConfig
from hasten.report.inspect.config import InspectConfig
from hasten.report.inspect.pieces import Piece, cut, spelled
from hasten.tokenizer.tokenizer import MASK, Tokenizer

MOST_CHARACTERS, MOST_TOKENS = 100_000, 1024
MOST_NUMBERS = 8_000_000
"""Probabilities of one look: what a page of a few megabytes holds."""


def check_texts(shape: ModelConfig, config: InspectConfig) -> None:
    """Refuse texts and settings that this kind of model has no use for."""
    if config.text is not None and config.source is not None:
        raise ConfigError("text and source are both there and mean the same; leave one out")
    for name in ("source", "target"):
        if shape.kind != "seq2seq" and getattr(config, name) is not None:
            raise ConfigError(f"this model is of kind {shape.kind} and has no `{name}`; write text='...'")
    if config.mask == "each" and (shape.kind != "encoder" or shape.head != "vocabulary"):
        raise ConfigError("mask=each is for encoders with a head over the vocabulary; leave it out")


def decoder_tokens(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """What a decoder reads: the text after the token that begins every document."""
    return [spelled(tokenizer, tokenizer.bos_id), *pieces(tokenizer, "text", text)]


def encoder_tokens(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """What an encoder reads: the text between its marks, each `[MASK]` in it the token that hides one.

    Where one token both begins and ends a text it stands at the end alone, as in training.
    """
    found = list[Piece]()
    for part in re.split("(" + "|".join(map(re.escape, MASK)) + ")", text):
        if part in MASK:
            found.append(spelled(tokenizer, mask_of(tokenizer)))
        elif part:
            found += pieces(tokenizer, "text", part)
    if not found:
        raise DataError("text: is empty; write something to look at")
    begin = [] if tokenizer.bos_id == tokenizer.eot_id else [spelled(tokenizer, tokenizer.bos_id)]
    return [*begin, *found, spelled(tokenizer, tokenizer.eot_id)]


def mask_of(tokenizer: Tokenizer) -> int:
    """The token that hides another."""
    if tokenizer.mask_id is None:
        raise DataError(f"this model's tokenizer has no token that hides another ({', '.join(MASK)})")
    return tokenizer.mask_id


def source_tokens(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """What an encoder-decoder reads: the text and the token that ends it."""
    return [*pieces(tokenizer, "source", text), spelled(tokenizer, tokenizer.eot_id)]


def target_tokens(tokenizer: Tokenizer, shape: ModelConfig, text: str) -> list[Piece]:
    """What an encoder-decoder reads of its own text: the token that begins it, and the text."""
    start = tokenizer.bos_id if shape.start_id is None else shape.start_id
    return [spelled(tokenizer, start), *(pieces(tokenizer, "target", text) if text else [])]


def pieces(tokenizer: Tokenizer, name: str, text: str) -> list[Piece]:
    """The tokens of one text, of which there must be some; `name` is for the complaint."""
    if len(text) > MOST_CHARACTERS:
        raise DataError(f"{name}: has {len(text):,} characters, far more than a page holds; give a paragraph")
    found = cut(tokenizer, text)
    if not found:
        raise DataError(f"{name}: holds no token; write something to look at")
    return found


@dataclass(frozen=True)
class Square:
    """The attention of one stack: how many layers are shown, queries and keys."""

    layers: int
    queries: int
    keys: int
    causal: bool = False

    @property
    def numbers(self) -> int:
        """Probabilities of one head in all layers; the hidden half of a causal square takes no room."""
        return self.layers * self.queries * self.keys // (2 if self.causal else 1)


def check_size(shape: ModelConfig, squares: list[Square]) -> None:
    """Refuse texts that the model cannot read at once, or whose attention is more than a page holds."""
    longest = max(max(square.queries, square.keys) for square in squares)
    positions = shape.max_positions if shape.position in ("learned", "rotary", "sinusoidal") else MOST_TOKENS
    most = min(positions, MOST_TOKENS)
    if longest > most:
        raise DataError(
            f"the text has {longest:,} tokens, and this model is shown {most:,} at most; shorten it"
        )
    numbers = shape.num_heads * sum(square.numbers for square in squares)
    if numbers > MOST_NUMBERS:
        room = int(longest * math.sqrt(MOST_NUMBERS / numbers))
        layers = sum(square.layers for square in squares)
        raise DataError(
            f"the text has {longest:,} tokens, and the attention of {layers} x {shape.num_heads} heads is"
            f" more than a page holds; shorten it to about {room:,} tokens, or choose layers: layers=[0,1]"
        )


def chosen_layers(config: InspectConfig, there: int) -> list[int]:
    """The layers to show, in order."""
    wanted = range(there) if config.layers is None else sorted(set(config.layers))
    if beyond := [layer for layer in wanted if layer >= there]:
        raise ConfigError(f"layers: there is no layer {beyond[0]}; they are 0 to {there - 1}")
    if not wanted:
        raise ConfigError("layers is empty; leave it out to see all")
    return list(wanted)
