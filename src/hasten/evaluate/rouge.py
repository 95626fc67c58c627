"""ROUGE of summaries, right for Chinese too, and the first sentences as what a summary has to beat.

The scores are those of `rouge-score` (Lin 2004).  Its own tokens are runs of a-z and 0-9, so it sees nothing
of Chinese and cuts German at every umlaut; what counts as a token is chosen by the script of the references.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from hasten.core.config import Config
from hasten.core.errors import DataError, MissingExtraError
from hasten.evaluate.interval import half_interval
from hasten.evaluate.translation import words_of

Tokens = Literal["english", "words", "characters"]
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
FOREIGN_SHARE = 0.005
"""Of letters that are not a-z, from which on a text is not English: German has some 2%, English no 0.1%."""
HAN = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SINGLE = rf"{HAN}\u3040-\u30ff"
TOKEN = re.compile(rf"[{SINGLE}]|[^\W_{SINGLE}]+")
CLOSING = r"[”’」』）)\]\"']*"
END = re.compile(
    rf"[。！？!?]+{CLOSING}"  # these end a sentence wherever they stand
    rf"|(?<!\d)[.](?=[{HAN}])"  # a full stop between Chinese, which no space follows
    rf"|[.]+{CLOSING}(?=\s|\Z)"
    r"|\n+"
)
TITLES = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|No|[A-Z])\.\Z")
"""What ends in a full stop and goes on."""


class RougeConfig(Config):
    """What ROUGE counts as a token."""

    tokens: Tokens | Literal["auto"] = Field(
        "auto",
        description="english: runs of a-z and 0-9, as published figures have it; words: of any alphabet;"
        " characters: Chinese and Japanese ones singly, words between them; auto: as the references' script"
        " asks",
    )
    stemming: bool = Field(True, description="english: Porter's stems, as published figures have it")


@dataclass(frozen=True)
class Rouge:
    """One of the scores: the mean F of all texts in percent, and half the width of its 95% interval."""

    score: float
    interval: float | None


@dataclass(frozen=True)
class RougeScore:
    """ROUGE of texts: unigrams, bigrams, longest common subsequence of the whole, and by sentences."""

    rouge1: Rouge
    rouge2: Rouge
    rougeL: Rouge  # noqa: N815 (its name everywhere)
    rougeLsum: Rouge  # noqa: N815
    texts: int
    signature: str


class Tokenizer:
    """What `rouge-score` asks for a text's tokens."""

    def tokenize(self, text: str) -> list[str]:
        """Characters of Han and Kana, and runs of other letters and digits, in lower case."""
        return TOKEN.findall(text.lower())


def score_rouge(
    texts: Sequence[str], references: Sequence[Sequence[str]], config: RougeConfig | None = None
) -> RougeScore:
    """Compare each text with its references, of which the best counts for each score by itself.

    Raises DataError where there is no text, or one without a reference.
    """
    if not texts or not all(references):
        raise DataError("ROUGE compares texts with references; give at least one text, and a reference each")
    config = config or RougeConfig()
    tokens = tokens_of(references) if config.tokens == "auto" else config.tokens
    stemming = config.stemming and tokens == "english"
    values = f_scores(texts, references, scorer(tokens, stemming))
    return RougeScore(
        **{kind: of_values(values[kind]) for kind in KINDS},
        texts=len(texts),
        signature=f"rouge-score:{version()}|tokens:{tokens}|stemming:{'porter' if stemming else 'no'}"
        "|refs:best|sentences:split|scale:100|bootstrap:1000",
    )


def f_scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], scorer: Any
) -> dict[str, list[float]]:
    """F of each text, from 0 to 1, by the kind of score."""
    values: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for text, golds in zip(texts, references, strict=True):
        found = scorer.score_multi([by_lines(gold) for gold in golds], by_lines(text))
        for kind in KINDS:
            values[kind].append(found[kind].fmeasure)
    return values


def of_values(values: Sequence[float]) -> Rouge:
    """A score from those of the texts."""
    interval = half_interval(values)
    return Rouge(100 * sum(values) / len(values), None if interval is None else 100 * interval)


def scorer(tokens: Tokens, stemming: bool) -> Any:
    """That of `rouge-score`."""
    try:
        from rouge_score import rouge_scorer  # noqa: PLC0415  an optional package
    except ImportError:
        raise MissingExtraError("rouge-score", "eval", "ROUGE") from None
    own = None if tokens == "english" else Tokenizer()
    return rouge_scorer.RougeScorer(list(KINDS), use_stemmer=stemming, tokenizer=own)


def version() -> str:
    """Of the package `rouge-score`."""
    from importlib.metadata import version as of  # noqa: PLC0415

    return of("rouge-score")


def tokens_of(references: Sequence[Sequence[str]]) -> Tokens:
    """What should count as a token in texts like these."""
    texts = [text for golds in references for text in golds]
    if words_of(texts) in ("zh", "char"):
        return "characters"
    letters = [char for text in texts for char in text if char.isalpha()]
    foreign = sum(not char.isascii() for char in letters)
    return "words" if foreign > FOREIGN_SHARE * len(letters) else "english"


def by_lines(text: str) -> str:
    """The same text with a sentence a line, as ROUGE-Lsum wants it."""
    return "\n".join(sentences(text))


def sentences(text: str) -> list[str]:
    """The sentences of a text, or the lines of one that has such, each with its end."""
    found, begin = [], 0
    for end in END.finditer(text):
        if TITLES.search(text, begin, end.end()):
            continue
        found.append(text[begin : end.end()].strip())
        begin = end.end()
    return [sentence for sentence in (*found, text[begin:].strip()) if sentence]


def lead(source: str, count: int) -> str:
    """The first `count` sentences of a text: the summary that costs nothing."""
    return "\n".join(sentences(source)[:count])


def lead_sentences(references: Sequence[Sequence[str]]) -> int:
    """How many sentences make the usual baseline: one where references are Chinese titles, else three."""
    return 1 if words_of([text for golds in references for text in golds]) == "zh" else 3
