"""A word tokenizer with BERT's template, tiny models with heads, and the few steps that teach them a rule."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from hasten.data.tasks.packed import packed_rows
from hasten.data.tasks.protocol import Example
from hasten.model.config import ModelConfig
from hasten.model.heads import with_classes, with_spans
from hasten.model.transformer import Transformer, build
from hasten.tokenizer.tokenizer import Tokenizer

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "on", "mat", "who", "what", "?", ".", "red", "blue", "old"]
SHAPES: dict[str, dict[str, Any]] = {
    "encoder": {"kind": "encoder", "position": "learned", "num_token_types": 2},
    "decoder": {"position": "rotary", "activation": "swiglu"},
}


def tokenizer() -> Tokenizer:
    """One token a word."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: number for number, word in enumerate([*special, *WORDS])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(special)
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return Tokenizer(inner)


def shape(kind: str) -> ModelConfig:
    """A language model's."""
    sizes = {"vocab_size": 4 + len(WORDS), "dim": 32, "num_layers": 2, "num_heads": 4, "max_positions": 64}
    return ModelConfig.model_validate({**sizes, **SHAPES[kind]})


def classifier(kind: str, names: Sequence[str]) -> Transformer:
    """A model with classes, every parameter off its first value."""
    return stirred(build(with_classes(shape(kind), names), seed=0))


def answerer() -> Transformer:
    """A model that finds answers, every parameter off its first value."""
    return stirred(build(with_spans(shape("encoder")), seed=0))


def stirred(model: Transformer) -> Transformer:
    """Every parameter off its first value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def teach(
    model: Transformer, examples: Sequence[Example], objective: Any, extra: Callable[..., Any], steps: int
) -> None:
    """Some steps over all examples at once; `extra` makes a batch's targets and extras."""
    (rows,) = packed_rows(examples, 64, 1 << 20, 0)
    batch = extra(rows, [examples[n] for n in rows.numbers.tolist()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        hidden = model(**objective.inputs(batch))
        (objective.loss(model, hidden, batch) / objective.count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Words at random, of several lengths, with one animal in each."""
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        words = draw.choice(["the", "a", "sat", "on", "mat", "red", "blue", "old", "."], draw.integers(2, 14))
        place = int(draw.integers(0, len(words) + 1))
        animal = str(draw.choice(["cat", "dog", "bird"]))
        found.append(" ".join([*words[:place].tolist(), animal, *words[place:].tolist()]))
    return found
