"""What a continued pretraining gained on its documents and lost elsewhere: the base beside the model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hasten.core.errors import ConfigError
from hasten.data.source import Document
from hasten.evaluate.language import Windows, score_texts
from hasten.model.transformer import Decoder
from hasten.tokenizer.tokenizer import Tokenizer


def before_and_after(
    model: Decoder,
    base: Decoder,
    tokenizer: Tokenizer,
    texts: dict[str, Sequence[Document]],
    windows: Windows,
    *,
    known: dict[str, Any],
    bf16: bool,
    score_end: bool,
) -> dict[str, Any]:
    """{name: {"before": score, "after": score, "change": bits a byte}} of each of some `texts`.

    A change below zero is a gain.  `known` are scores of the model that were measured before.  Raises
    ConfigError for a base with another vocabulary than the model's.
    """
    if base.config.vocabulary != model.config.vocabulary:
        raise ConfigError(
            f"base knows {base.config.vocabulary:,} tokens and the model {model.config.vocabulary:,}; name"
            " the model that its training began with"
        )

    def scored(each: Decoder, documents: Sequence[Document]) -> dict[str, Any]:
        found = [document.text for document in documents]
        return asdict(score_texts(each, tokenizer, found, windows, bf16=bf16, score_end=score_end)[0])

    result = {}
    for name, documents in texts.items():
        before, after = scored(base, documents), known.get(name) or scored(model, documents)
        change = after["bits_per_byte"] - before["bits_per_byte"]
        result[name] = {"before": before, "after": after, "change": change}
    return result
