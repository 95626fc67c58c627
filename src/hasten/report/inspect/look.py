"""A model's one look at a text: the probabilities of every head, and what the model expected.

Letters in shapes: L layers, H heads, T queries, S keys, D model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hasten.generate.engine import check_vocabulary
from hasten.model.block import Block
from hasten.model.config import ModelConfig
from hasten.model.transformer import Encoder, Seq2Seq, Transformer
from hasten.report.inspect.config import InspectConfig
from hasten.report.inspect.expect import Expectation, expectations
from hasten.report.inspect.heads import Figures, figures
from hasten.report.inspect.pieces import Piece, spelled
from hasten.report.inspect.read import (
    Square,
    check_size,
    check_texts,
    chosen_layers,
    decoder_tokens,
    encoder_tokens,
    mask_of,
    source_tokens,
    target_tokens,
)
from hasten.report.inspect.record import recording
from hasten.tokenizer.tokenizer import Tokenizer

MOST_WRITTEN = 64  # tokens, where a model writes the target itself
ROWS = 32  # texts read at a time where each token is masked in turn

Kind = Literal["decoder", "encoder", "cross"]


@dataclass(frozen=True)
class View:
    """One stack's attention: from each of `queries` to each of `keys`."""

    kind: Kind
    layers: list[int]
    queries: list[Piece]
    keys: list[Piece]
    weights: Tensor  # [L, H, T, S]
    figures: Figures


@dataclass(frozen=True)
class Look:
    """All that was seen.  `note` is the key of the words that explain `expected`."""

    config: ModelConfig
    views: list[View]
    expected: list[Expectation]
    note: str
    written: bool = False  # by the model: no target was given


def look(model: Transformer, tokenizer: Tokenizer, config: InspectConfig) -> Look:
    """Run `model`, in evaluation mode, on the texts of `config`.

    Raises ConfigError for what this kind of model does not read, DataError for a text that is empty or too
    long.
    """
    check_vocabulary(model, tokenizer)
    check_texts(model.config, config)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            if isinstance(model, Seq2Seq):
                return look_across(model, tokenizer, config)
            if isinstance(model, Encoder):
                return look_around(model, tokenizer, config)
            return look_back(model, tokenizer, config)
    finally:
        model.train(training)


def look_back(model: Transformer, tokenizer: Tokenizer, config: InspectConfig) -> Look:
    """A decoder: every token sees those before it and expects the next."""
    read = decoder_tokens(tokenizer, config.text or "")
    layers = chosen_layers(config, model.config.num_layers)
    check_size(model.config, [Square(len(layers), len(read), len(read), causal=True)])
    with recording([block.attention for block in model.blocks()]) as records:
        hidden = model(ids_of(model, read))[0]
    view = view_of("decoder", [records[layer].weights for layer in layers], layers, read, read)
    if model.config.head != "vocabulary":
        return Look(model.config, [view], [], "no_words")
    came, places = [*read[1:], None], range(1, len(read) + 1)
    expected = expectations(model.logits(hidden), came, places, tokenizer, config.top)
    return Look(model.config, [view], expected, "next_note")


def look_around(model: Encoder, tokenizer: Tokenizer, config: InspectConfig) -> Look:
    """An encoder: every token sees all; candidates are for what is masked."""
    read = encoder_tokens(tokenizer, config.text or "")
    layers = chosen_layers(config, model.config.num_layers)
    check_size(model.config, [Square(len(layers), len(read), len(read))])
    tokens = ids_of(model, read)
    with recording([block.attention for block in model.blocks()]) as records:
        hidden = model(tokens)[0]
    view = view_of("encoder", [records[layer].weights for layer in layers], layers, read, read)
    if model.config.head != "vocabulary":
        return Look(model.config, [view], [], "no_words")
    if config.mask == "each":
        places = [place for place, piece in enumerate(read) if not piece.special]
        logits = masked_in_turn(model, tokens, places, mask_of(tokenizer))
        came = [read[place] for place in places]
        return Look(
            model.config, [view], expectations(logits, came, places, tokenizer, config.top), "each_note"
        )
    places = [place for place, piece in enumerate(read) if piece.id == tokenizer.mask_id]
    if not places:
        return Look(model.config, [view], [], "no_expectation")
    logits = model.logits(hidden[places])
    expected = expectations(logits, [None] * len(places), places, tokenizer, config.top)
    return Look(model.config, [view], expected, "masked_note")


def masked_in_turn(model: Encoder, tokens: Tensor, places: Sequence[int], mask: int) -> Tensor:
    """Logits [N, V] at each of N places of tokens [1, T], each from a text in which that place is masked."""
    found = []
    for at in torch.tensor(places, device=tokens.device).split(ROWS):
        rows = torch.arange(len(at), device=tokens.device)
        texts = tokens.repeat(len(at), 1)
        texts[rows, at] = mask
        found.append(model.logits(model(texts)[rows, at]))
    return torch.cat(found)


def look_across(model: Seq2Seq, tokenizer: Tokenizer, config: InspectConfig) -> Look:
    """An encoder-decoder: the encoder sees the source, the decoder its own text and the source."""
    shape = model.config
    source = source_tokens(tokenizer, config.source or config.text or "")
    sides = split_blocks(model)
    encoder, decoder = (chosen_layers(config, len(blocks)) for blocks in sides)
    check_size(shape, [Square(len(encoder), len(source), len(source))])
    memory = None
    if config.target is None:
        memory = model.encode(ids_of(model, source))
        target = write(model, tokenizer, memory)
    else:
        target = target_tokens(tokenizer, shape, config.target)
    squares = [
        Square(len(encoder), len(source), len(source)),
        Square(len(decoder), len(target), len(target), causal=True),
        Square(len(decoder), len(target), len(source)),
    ]
    check_size(shape, squares)
    crossed = [block.cross for block in sides[1] if block.cross is not None]
    sockets = [*(block.attention for side in sides for block in side), *crossed]
    with recording(sockets) as records:
        hidden = model(ids_of(model, target), source=ids_of(model, source))[0]
    weights = [record.weights for record in records]
    own, across = len(sides[0]), len(sides[0]) + len(sides[1])
    views = [
        view_of("encoder", [weights[layer] for layer in encoder], encoder, source, source),
        view_of("decoder", [weights[own + layer] for layer in decoder], decoder, target, target),
        view_of("cross", [weights[across + layer] for layer in decoder], decoder, target, source),
    ]
    came = [*target[1:], spelled(tokenizer, tokenizer.eot_id)]
    expected = expectations(model.logits(hidden), came, range(1, len(target) + 1), tokenizer, config.top)
    return Look(shape, views, expected, "next_note", written=config.target is None)


def split_blocks(model: Seq2Seq) -> tuple[list[Block], list[Block]]:
    """The blocks of the encoder and those of the decoder."""
    blocks = model.blocks()
    return [b for b in blocks if b.cross is None], [b for b in blocks if b.cross is not None]


def write(model: Seq2Seq, tokenizer: Tokenizer, memory: Tensor) -> list[Piece]:
    """The target that the model writes, its likeliest token each time, without the one that ends it."""
    written = target_tokens(tokenizer, model.config, "")
    while len(written) <= MOST_WRITTEN:
        hidden = model.decode(ids_of(model, written), memory)[0, -1]
        best = int(model.logits(hidden)[: tokenizer.vocab_size].argmax())
        if best in tokenizer.end_ids:
            break
        written.append(spelled(tokenizer, best))
    return written


def ids_of(model: Transformer, read: Sequence[Piece]) -> Tensor:
    """The tokens as the model takes them, [1, T]."""
    return torch.tensor([[piece.id for piece in read]], device=next(model.parameters()).device)


def view_of(
    kind: Kind,
    weights: Sequence[Tensor | None],
    layers: list[int],
    queries: list[Piece],
    keys: list[Piece],
) -> View:
    """A view of the layers' weights [H, T, S]."""
    recorded = [weight for weight in weights if weight is not None]
    assert len(recorded) == len(layers), "every layer attends by its socket"
    stacked = torch.stack(recorded).cpu()
    return View(kind, layers, queries, keys, stacked, figures(stacked, kind, [piece.id for piece in queries]))
