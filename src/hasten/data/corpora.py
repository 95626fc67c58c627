"""Which corpus a recipe's rows come from: text, masked text or pairs, all with one interface."""

from collections.abc import Mapping
from pathlib import Path

from hasten.data.config import DataConfig, Examples
from hasten.data.corpus import Corpus
from hasten.data.masked import MaskedCorpus
from hasten.data.pair_corpus import PairCorpus
from hasten.data.tasks.corpus import TaskCorpus
from hasten.tokenizer.tokenizer import Tokenizer


def open_corpus(
    config: DataConfig,
    examples: Examples,
    prepared: Path,
    split: str,
    *,
    seed: int,
    tokenizer: Tokenizer,
    start_id: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> Corpus:
    """One split of `prepared` as rows that ask what `examples` says.

    `start_id` begins the targets of pairs, by default the token that begins a text.
    """
    place = prepared, split, config.row_tokens, seed, weights
    if examples == "task":
        return TaskCorpus(*place, pad_id=tokenizer.pad_id)
    if examples == "pairs":
        return PairCorpus(
            *place,
            source_tokens=config.source_tokens,
            start_id=tokenizer.bos_id if start_id is None else start_id,
            pad_id=tokenizer.pad_id,
            too_long=config.pairs.too_long,
        )
    if examples == "masked":
        return MaskedCorpus(*place, tokenizer=tokenizer, masking=config.masking)
    return Corpus(*place)
