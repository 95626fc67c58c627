"""Mend a text, and say which rule, if any, it breaks.

Each rule is a sentence about one document with a threshold in `CleanConfig`; the name of the first rule
that a document breaks is what the report counts.  Sources: Rae et al. 2021 (Gopher, appendix A.1.1
and table A1), Raffel et al. 2020 (C4, section 2.2), Kocetkov et al. 2022 (The Stack, section 4).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import ftfy

from hasten.data.config import CleanConfig
from hasten.data.ngrams import Words, words
from hasten.data.repetition import repeats_itself
from hasten.data.source import Document

# UTF-8 that was once read as Latin-1 or Windows-1252: a lead byte's character, then a continuation's.
MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u20ac\u201a-\u203a\u0152\u0153\u0160\u0161\u017d\u0178\u02c6\u02dc]"
)
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u0080-\u009f\ufeff\ufffe\uffff]")
EMPTY = "empty"

NEWLINES = re.compile("\r\n?|\u2028|\u2029|\x85")
BULLET = re.compile(r"\s*[-*•‣▪◦●·]\s")
GENERATED = re.compile(r"\b(auto-?generated|generated (by|from|automatically)|do not edit)\b", re.IGNORECASE)
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
REPETITION_WORDS = (100, 20_000)
REPEATED_LINES, REPEATED_LINE_CHARACTERS = 0.30, 0.20


@dataclass(frozen=True)
class Text:
    """A document as the rules look at it."""

    text: str
    words: Words

    @cached_property
    def lines(self) -> list[str]:
        """The lines with something on them, without the blanks around."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def pieces(self) -> list[str]:
        """Runs of characters between blanks."""
        return self.text.split()

    @property
    def spaced(self) -> bool:
        """Whether most of it is written with spaces between words."""
        return 2 * self.words.lone < len(self.words)


Rule = Callable[[Text, CleanConfig], bool]
"""True where the text breaks the rule."""


def share_of(lines: list[str], test: Callable[[str], object]) -> float:
    """The share of `lines` for which `test` holds."""
    return sum(1 for line in lines if test(line)) / max(len(lines), 1)


def too_few_words(text: Text, config: CleanConfig) -> bool:
    return config.min_words is not None and len(text.words) < config.min_words


def too_many_words(text: Text, config: CleanConfig) -> bool:
    return config.max_words is not None and len(text.words) > config.max_words


def odd_word_length(text: Text, config: CleanConfig) -> bool:
    if config.mean_word_length is None or not text.spaced:
        return False
    shortest, longest = config.mean_word_length
    return not shortest <= text.words.lengths.mean() <= longest


def too_few_letters(text: Text, config: CleanConfig) -> bool:
    if config.min_alphabetic is None:
        return False
    return text.words.with_letter < config.min_alphabetic * len(text.words)


def too_many_symbols(text: Text, config: CleanConfig) -> bool:
    if config.max_symbols is None:
        return False
    symbols = text.text.count("#") + text.text.count("...") + text.text.count("…")
    return symbols > config.max_symbols * len(text.words)


def mostly_bullets(text: Text, config: CleanConfig) -> bool:
    return (
        config.max_bullet_lines is not None and share_of(text.lines, BULLET.match) > config.max_bullet_lines
    )


def mostly_ellipses(text: Text, config: CleanConfig) -> bool:
    if config.max_ellipsis_lines is None:
        return False
    return share_of(text.lines, lambda line: line.endswith(("...", "…"))) > config.max_ellipsis_lines


def too_few_stop_words(text: Text, config: CleanConfig) -> bool:
    if config.min_stop_words is None:
        return False
    found = (word for word in text.text.lower().split() if word.strip(".,;:!?\"'()") in STOP_WORDS)
    return sum(1 for _ in found) < config.min_stop_words


def placeholder(text: Text, config: CleanConfig) -> bool:
    return config.placeholders and "lorem ipsum" in text.text.lower()


def is_one_text(text: Text, config: CleanConfig) -> bool:
    """Whether repetition says something: a poem may have a refrain, and a book or a collection formulas."""
    shortest, longest = REPETITION_WORDS
    return config.repetition and shortest <= len(text.words) <= longest


def repeated_lines(text: Text, config: CleanConfig) -> bool:
    if not is_one_text(text, config) or len(set(text.lines)) == len(text.lines):
        return False
    counts = Counter(text.lines)
    characters = sum((count - 1) * len(line) for line, count in counts.items())
    if len(text.lines) - len(counts) > REPEATED_LINES * len(text.lines):
        return True
    return characters > REPEATED_LINE_CHARACTERS * sum(map(len, text.lines))


def repeated_words(text: Text, config: CleanConfig) -> bool:
    return is_one_text(text, config) and repeats_itself(text.words)


def long_line(text: Text, config: CleanConfig) -> bool:
    return (
        config.max_line_length is not None and max(map(len, text.lines), default=0) > config.max_line_length
    )


def long_mean_line(text: Text, config: CleanConfig) -> bool:
    if config.max_mean_line_length is None:
        return False
    return sum(map(len, text.lines)) > config.max_mean_line_length * max(len(text.lines), 1)


def too_few_alphanumeric(text: Text, config: CleanConfig) -> bool:
    if config.min_alphanumeric is None:
        return False
    return int(text.words.lengths.sum()) < config.min_alphanumeric * sum(map(len, text.pieces))


def generated(text: Text, config: CleanConfig) -> bool:
    return config.drop_generated and any(GENERATED.search(line) for line in text.lines[:5])


PROSE_RULES: dict[str, Rule] = {
    "too few words": too_few_words,
    "too many words": too_many_words,
    "odd word length": odd_word_length,
    "too few letters": too_few_letters,
    "too many symbols": too_many_symbols,
    "mostly bullets": mostly_bullets,
    "mostly ellipses": mostly_ellipses,
    "too few stop words": too_few_stop_words,
    "placeholder text": placeholder,
    "repeated lines": repeated_lines,
    "repeated words": repeated_words,
}
CODE_RULES: dict[str, Rule] = {
    "long line": long_line,
    "long lines on average": long_mean_line,
    "too few letters and digits": too_few_alphanumeric,
    "generated": generated,
}


def mend(document: Document, config: CleanConfig) -> str:
    """The text with line breaks as `\\n`; prose also without mojibake and control characters, in NFC."""
    return mended(document.text, config.repair and profile(document, config) == "prose")


def mended(text: str, repair: bool) -> str:
    """`mend` of a text alone; without `repair` only line breaks."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.removeprefix("\ufeff")
    if not repair:
        return text
    if text.isascii():
        return CONTROL.sub("", text)
    if MOJIBAKE.search(text):
        text = ftfy.fix_encoding(text)
    # In this order: the remains of mojibake are control characters, and they keep letter and accent apart.
    return unicodedata.normalize("NFC", CONTROL.sub("", NEWLINES.sub("\n", text)))


def profile(document: Document, config: CleanConfig) -> str:
    """Which rules judge a document: `prose`, `code` or `off`."""
    return document.kind if config.profile == "auto" else config.profile


def broken_rule(document: Document, text: str, found: Words, config: CleanConfig) -> str | None:
    """The name of the first rule that the mended `text` of `document` breaks, or None."""
    if not text.strip():
        return EMPTY
    rules = {"prose": PROSE_RULES, "code": CODE_RULES}.get(profile(document, config), {})
    view = Text(text, found)
    return next((name for name, breaks in rules.items() if breaks(view, config)), None)


def look(document: Document, config: CleanConfig) -> tuple[str, Words, str | None]:
    """The mended text of a document, its words, and the rule that it breaks."""
    text = mend(document, config)
    found = words(text)
    return text, found, broken_rule(document, text, found, config)
