"""Answers to questions: exact match and F1, as the official scripts of SQuAD and CMRC 2018 count them.

English and other words: SQuAD 2.0's evaluate-v2.0.py (Rajpurkar et al. 2018), which is that of 1.1 where all
questions have answers.  Chinese: cmrc2018_evaluate.py (Cui et al. 2019), with the longest run of segments
that both texts have in common.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hasten.core.errors import DataError, MissingExtraError
from hasten.evaluate.interval import half_interval
from hasten.evaluate.translation import words_of

Rule = Literal["squad", "cmrc2018"]
ARTICLES, PUNCTUATION = re.compile(r"\b(a|an|the)\b"), set(string.punctuation)
CMRC_HAN = re.compile(r"[\u4e00-\u9fa5]")
CMRC_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""Of the official script, whose list also names "……": two characters, which it never meets as one."""


@dataclass(frozen=True)
class AnswerScore:
    """Exact match and F1 in percent, each with half the width of its 95% interval.

    Means over all questions; of those without an answer, both are whether nothing was answered.
    """

    exact: float
    exact_interval: float | None
    f1: float
    f1_interval: float | None
    questions: int
    without_answer: int  # how many of the questions have none
    exact_with_answer: float | None
    f1_with_answer: float | None
    correct_without_answer: float | None
    signature: str


@dataclass(frozen=True)
class Score:
    """Of one answer, from 0 to 1."""

    exact: float
    f1: float


def score_answers(
    texts: Sequence[str], references: Sequence[Sequence[str]], rule: Rule | None = None
) -> AnswerScore:
    """Compare each text with its references, of which the best counts; none at all means "no answer".

    Without a `rule` that of the references' script is taken.  Raises DataError where there is no question.
    """
    if not texts:
        raise DataError("there is no question to score; give at least one with its references")
    rule = rule or rule_of(references)
    scores = [score(text, golds, rule) for text, golds in zip(texts, references, strict=True)]
    empty = [not real(golds, rule) for golds in references]
    answered = [one for one, none in zip(scores, empty, strict=True) if not none]
    silent = [one.exact for one, none in zip(scores, empty, strict=True) if none]
    exact, f1 = [one.exact for one in scores], [one.f1 for one in scores]
    return AnswerScore(
        exact=percent(exact),
        exact_interval=wide(exact),
        f1=percent(f1),
        f1_interval=wide(f1),
        questions=len(scores),
        without_answer=len(silent),
        exact_with_answer=percent([one.exact for one in answered]) if answered else None,
        f1_with_answer=percent([one.f1 for one in answered]) if answered else None,
        correct_without_answer=percent(silent) if silent else None,
        signature=f"rule:{rule}|refs:best|scale:100|bootstrap:1000",
    )


def percent(values: Sequence[float]) -> float:
    """Their mean, in percent."""
    return 100 * sum(values) / len(values)


def wide(values: Sequence[float]) -> float | None:
    """Half the width of the mean's interval, in percent."""
    found = half_interval(values)
    return None if found is None else 100 * found


def rule_of(references: Sequence[Sequence[str]]) -> Rule:
    """CMRC 2018's rule for references in Chinese, SQuAD's for others."""
    return "cmrc2018" if words_of([text for golds in references for text in golds]) == "zh" else "squad"


def score(text: str, references: Sequence[str], rule: Rule) -> Score:
    """Exact match and F1 of one text, each against the reference that suits it best."""
    exact, f1 = RULES[rule]
    golds = real(references, rule) or [""]
    return Score(max(exact(text, gold) for gold in golds), max(f1(text, gold) for gold in golds))


def real(references: Sequence[str], rule: Rule) -> list[str]:
    """The references of which something is left when they are normalised."""
    left = normalised if rule == "squad" else without_punctuation
    return [text for text in references if left(text)]


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    bare = "".join(char for char in text.lower() if char not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def squad_exact(text: str, gold: str) -> float:
    """Whether both are the same once normalised."""
    return float(normalised(text) == normalised(gold))


def squad_f1(text: str, gold: str) -> float:
    """F1 of the words that both have, as often as both have them; without words, whether both have none."""
    words, wanted = normalised(text).split(), normalised(gold).split()
    if not words or not wanted:
        return float(words == wanted)
    return f1_of(sum((Counter(words) & Counter(wanted)).values()), len(words), len(wanted))


def f1_of(common: int, written: int, wanted: int) -> float:
    """The harmonic mean of common / written and common / wanted."""
    return 2 * common / (written + wanted) if common else 0.0


def without_punctuation(text: str) -> str:
    """Lower case, without what CMRC 2018 counts as punctuation."""
    return "".join(char for char in text.lower().strip() if char not in CMRC_PUNCTUATION)


def cmrc_exact(text: str, gold: str) -> float:
    """Whether both are the same without punctuation."""
    return float(without_punctuation(text) == without_punctuation(gold))


def cmrc_f1(text: str, gold: str) -> float:
    """F1 of the longest run of segments that both have; without segments, whether both have none."""
    segments, wanted = mixed_segments(text), mixed_segments(gold)
    if not segments or not wanted:
        return float(segments == wanted)
    return f1_of(longest_run(segments, wanted), len(segments), len(wanted))


def mixed_segments(text: str) -> list[str]:
    """Han characters one by one, and what stands between them cut into words; no punctuation."""
    segments: list[str] = []
    between = ""
    for char in without_punctuation(text):
        if CMRC_HAN.match(char):
            segments += [*latin_words(between), char]
            between = ""
        else:
            between += char
    return [*segments, *latin_words(between)]


def latin_words(text: str) -> list[str]:
    """The words of the Penn Treebank's rules, which the official script takes from NLTK."""
    if not text.strip():
        return []
    try:
        from nltk.tokenize import NLTKWordTokenizer  # noqa: PLC0415  an optional package
    except ImportError:
        raise MissingExtraError("nltk", "eval", "F1 of Chinese answers") from None
    words: Any = NLTKWordTokenizer()
    return list(words.tokenize(text))


def longest_run(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest run of equal neighbours."""
    longest, ending = 0, [0] * (len(other) + 1)  # of runs that end here, by place in `other`
    for item in one:
        ending = [0, *(ending[at] + 1 if item == there else 0 for at, there in enumerate(other))]
        longest = max(longest, *ending)
    return longest


Compare = Callable[[str, str], float]
RULES: dict[Rule, tuple[Compare, Compare]] = {
    "squad": (squad_exact, squad_f1),
    "cmrc2018": (cmrc_exact, cmrc_f1),
}
