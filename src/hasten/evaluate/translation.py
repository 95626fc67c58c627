"""How well a model turns sources into targets: BLEU and chrF of its texts, and how it predicts references.

Both come from sacreBLEU (Post 2018), with the signature that says how they were computed: only figures with
equal signatures compare.  The interval is that of 1,000 bootstrap samples of the pairs (Koehn 2004).

Letters in shapes: B pairs, T target tokens, D width.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hasten.core.config import Config
from hasten.core.console import Progress
from hasten.core.errors import DataError, MissingExtraError
from hasten.data.pairs import Pair
from hasten.evaluate.interval import half_interval_of
from hasten.evaluate.language import LanguageScore, TokenScores, score_targets, summarise
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import checked_source, generate, start_of
from hasten.generate.source_cache import rectangle
from hasten.model.evaluating import evaluating
from hasten.model.transformer import Seq2Seq
from hasten.tokenizer.tokenizer import Tokenizer

Positive = Annotated[int, Field(ge=1)]
Words = Literal["13a", "zh", "char", "intl", "none"]
HAN, KANA = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]"), re.compile(r"[\u3040-\u30ff]")
HAN_SHARE = 0.3
"""Of a text's letters that are Han from which on it is Chinese: names and figures keep their own script."""


class TranslationConfig(Config):
    """Translate the sources of unseen pairs by beam search, and compare with their targets."""

    beams: Positive = Field(5, description="1 takes the likeliest token every time")
    length_penalty: float = Field(1.0, description="as generate.length_penalty")
    length_rule: Literal["power", "gnmt"] = "power"
    max_new_tokens: Positive = 256
    batch_rows: Positive = Field(64, description="sources that are translated together")
    words: Words | Literal["auto"] = Field(
        "auto",
        description="what BLEU counts as a word, sacreBLEU's `tokenize`; auto: zh for Chinese references,"
        " char for Japanese, else 13a",
    )
    examples: Annotated[int, Field(ge=0)] = Field(8, description="translations kept in evaluation.json")

    def settings(self) -> GenerateConfig:
        """How texts are written."""
        return GenerateConfig(
            beams=self.beams,
            length_penalty=self.length_penalty,
            length_rule=self.length_rule,
            max_new_tokens=self.max_new_tokens,
            batch_rows=self.batch_rows,
            temperature=0,
        )


@dataclass(frozen=True)
class Overlap:
    """A sacreBLEU score with half the width of its 95% interval, None for fewer than two pairs."""

    score: float
    interval: float | None
    signature: str


@dataclass(frozen=True)
class Example:
    """A source, what the model made of it, and what a person did."""

    source: str
    text: str
    reference: str


@dataclass(frozen=True)
class TranslationScore:
    """What a model's translations of `pairs` sources came to."""

    bleu: Overlap
    chrf: Overlap
    words: Words
    pairs: int
    tokens: int
    seconds: float
    tokens_per_second: float
    unfinished: int  # texts that were cut off at max_new_tokens or at the last position
    examples: list[Example]


def score_translations(
    model: Seq2Seq, tokenizer: Tokenizer, pairs: Sequence[Pair], config: TranslationConfig
) -> TranslationScore:
    """Translate every source of `pairs`; DataError where there is none, or the model cannot read one."""
    check_any(pairs)
    began = time.monotonic()
    sources = [pair.source for pair in pairs]
    with Progress("translate", len(pairs), "sentences") as progress:
        written = generate(
            model, tokenizer, sources, config.settings(), on_done=lambda rows: progress.add(len(rows))
        )
    seconds = time.monotonic() - began
    texts, references = [completion.text for completion in written], [pair.target for pair in pairs]
    words = words_of(references) if config.words == "auto" else config.words
    tokens = sum(len(completion.tokens) for completion in written)
    examples = [Example(pair.source, text, pair.target) for pair, text in zip(pairs, texts, strict=True)]
    return TranslationScore(
        bleu=bleu(texts, references, words),
        chrf=chrf(texts, references),
        words=words,
        pairs=len(pairs),
        tokens=tokens,
        seconds=round(seconds, 2),
        tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
        unfinished=sum(completion.stopped_by != "end_of_text" for completion in written),
        examples=examples[: config.examples],
    )


def check_any(pairs: Sequence[Pair]) -> None:
    """Refuse to measure nothing."""
    if not pairs:
        raise DataError("there is no pair to evaluate on; give data.split.test a share, or test_sources")


def words_of(references: Sequence[str]) -> Words:
    """What BLEU should count in texts like these, by their script."""
    text = "".join(references)
    letters = sum(char.isalpha() for char in text)
    if KANA.search(text) and len(KANA.findall(text)) > 0.05 * letters:
        return "char"
    return "zh" if len(HAN.findall(text)) > HAN_SHARE * max(letters, 1) else "13a"


def bleu(texts: Sequence[str], references: Sequence[str], words: Words) -> Overlap:
    """Corpus BLEU (Papineni et al. 2002) against one reference each."""
    return overlap(metrics().BLEU(tokenize=words), texts, [references])


def chrf(texts: Sequence[str], references: Sequence[str]) -> Overlap:
    """chrF2 (Popović 2015): characters in runs of up to six, recall counted twice."""
    return overlap(metrics().CHRF(), texts, [references])


def overlap(metric: Any, texts: Sequence[str], references: Sequence[Sequence[str | None]]) -> Overlap:
    """A sacreBLEU metric over a corpus, with its bootstrap where there is something to draw from.

    `references` are one list or several, each with a reference of every text, None where it has fewer.
    sacreBLEU's own bootstrap stumbles over samples without a common word (2.6, `statistics` and float32).
    """
    streams = [list(stream) for stream in references]
    found = metric.corpus_score(list(texts), streams)
    counts = np.array(metric._extract_corpus_statistics(list(texts), streams))  # [pairs, counts]
    interval = half_interval_of(
        lambda total: float(metric._compute_score_from_stats(total.tolist()).score), counts
    )
    return Overlap(float(found.score), interval, str(metric.get_signature()))


def metrics() -> Any:
    """sacreBLEU's metrics."""
    try:
        from sacrebleu import metrics as found  # noqa: PLC0415  an optional package
    except ImportError:
        raise MissingExtraError("sacrebleu", "eval", "BLEU") from None
    return found


def score_references(
    model: Seq2Seq, tokenizer: Tokenizer, pairs: Sequence[Pair], batch_tokens: int, *, bf16: bool = False
) -> LanguageScore:
    """How well the model predicts each target of `pairs`, with its end, from its source and its beginning."""
    check_any(pairs)
    sources = encoded(tokenizer, [pair.source for pair in pairs])
    targets = encoded(tokenizer, [pair.target for pair in pairs])
    for pair, ids in zip(pairs, sources, strict=True):
        checked_source(pair.source, ids, model)
    bounds = np.cumsum([0, *map(len, targets)])
    log_probs, correct = np.empty(bounds[-1], np.float32), np.empty(bounds[-1], bool)
    device = model.device
    with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for batch in alike(sources, targets, batch_tokens):
            some = [targets[number] for number in batch]
            scores, hits = score_batch(
                model, [sources[number] for number in batch], some, start_of(model, tokenizer)
            )
            places = np.concatenate([np.arange(bounds[number], bounds[number + 1]) for number in batch])
            log_probs[places], correct[places] = scores.cpu().numpy(), hits.cpu().numpy()
    sizes = np.array([len(pair.target.encode()) for pair in pairs])
    return summarise(TokenScores(log_probs, correct, bounds.astype(np.int64)), sizes)


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, with its end."""
    return [[*ids, tokenizer.eot_id] for ids in tokenizer.encode_batch(list(texts))]


def alike(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[list[int]]:
    """Numbers of pairs of like length together, at most `batch_tokens` places on either side."""
    longest = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    order = sorted(range(len(longest)), key=lambda number: -longest[number])
    at = 0
    while at < len(order):
        rows = max(1, batch_tokens // longest[order[at]])
        yield order[at : at + rows]
        at += rows


def score_batch(
    model: Seq2Seq, sources: list[list[int]], targets: list[list[int]], start: int
) -> tuple[Tensor, Tensor]:
    """Log-probability and correctness of each target token, pair after pair: [tokens] each."""
    device = model.device
    read, read_there = rectangle(sources, device)
    begun, _ = rectangle([[start, *ids[:-1]] for ids in targets], device)
    wanted, there = rectangle(targets, device)
    # What pads a target stands behind it, where no token of it looks.
    hidden = model(begun, source=read, source_segments=read_there)  # [B, T, D]
    mask = torch.ones_like(wanted, dtype=torch.bool) if there is None else there.bool()
    return score_targets(model, hidden[mask], wanted[mask])


def as_record(score: TranslationScore, split: str, config: TranslationConfig) -> dict[str, Any]:
    """What evaluation.json holds of translations."""
    return {"split": split, "beams": config.beams, **asdict(score)}
