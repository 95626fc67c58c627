"""Which held-out texts are in training as well, word for word or nearly.

Equal: after Unicode NFKC, in lower case, without all that is no letter or digit, they are the same.  Near: of
a text's windows of 13 words (GPT-3, appendix C), or of 20 characters in scripts without spaces, three in ten
are in one training text; a shorter text stands there whole.  A window of many training texts, such as an
instruction that all rows share, counts for nothing.  Letters: W windows.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.data.ngrams import Hashes, Words, ngrams, words

Numbers = NDArray[np.int64]

WINDOW_WORDS, WINDOW_CHARACTERS = 13, 20
NEAR = 0.3
LEAST_CHARACTERS = 16
"""Of texts shorter than this, equal ones are no leak: many questions are `What is this?`."""
COMMON, COMMON_SHARE = 5, 0.01
"""A window in more training texts than both is nobody's own."""
BRACKETS = re.compile(r"-[lr][rsc]b-", re.IGNORECASE)
"""As the Penn Treebank spells them: signs, not words."""


def bare(text: str) -> str:
    """The letters and digits of `text` in one case and one form."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).lower()))


def same(text: str) -> str:
    """`text` with its signs, but in one case, one form, and one kind of blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_in(text: str) -> Words:
    """The words of `text` in one form."""
    return words(BRACKETS.sub(" ", unicodedata.normalize("NFKC", text)))


def window_size(text: str, found: Words) -> int:
    """How many words a window of a text has: of one that is shorter all of them, 0 where that says little."""
    size = WINDOW_CHARACTERS if 2 * found.lone > len(found) else WINDOW_WORDS
    if len(found) >= size:
        return size
    return len(found) if len(bare(text)) >= LEAST_CHARACTERS else 0


def windows(found: Words, size: int) -> Hashes:
    """The distinct windows of so many words, [W]."""
    return np.unique(ngrams(found.hashes, size) + np.uint64(size)) if size else np.empty(0, np.uint64)


class Windows:
    """The windows of held-out texts, and in which of these each is.  Letters: K distinct windows, H texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        found = [words_in(text) for text in texts]
        sizes = [window_size(text, each) for text, each in zip(texts, found, strict=True)]
        wanted = [windows(each, size) for each, size in zip(found, sizes, strict=True)]
        self.sizes = sorted({*sizes})
        flat = np.concatenate([np.empty(0, np.uint64), *wanted])
        owners = np.repeat(np.arange(len(wanted)), [len(each) for each in wanted])
        order = np.argsort(flat, kind="stable")
        self.known, self.first = np.unique(flat[order], return_index=True)  # [K], where its owners begin
        self.owners, self.num_texts = owners[order], len(texts)
        self.ends = np.append(self.first[1:], len(flat))

    def met(self, text: str) -> Numbers:
        """Which of the windows are in a text."""
        read = words_in(text)
        some = np.concatenate([np.empty(0, np.uint64), *(windows(read, size) for size in self.sizes)])
        found = np.searchsorted(self.known, some)
        there = found < len(self.known)
        there[there] = self.known[found[there]] == some[there]
        return found[there]

    def owned(self, some: Numbers) -> Numbers:
        """[H]: how many of these windows each text has."""
        spans = [self.owners[self.first[each] : self.ends[each]] for each in some.tolist()]
        return np.bincount(np.concatenate([np.empty(0, np.int64), *spans]), minlength=self.num_texts)


def near(training: Iterable[str], held_out: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """(number of a training text, of a held-out one, share of the latter's windows in it), from `NEAR` on."""
    index = Windows(held_out)
    met = [index.met(text) for text in training]
    counts = np.bincount(np.concatenate([np.empty(0, np.int64), *met]), minlength=len(index.known))
    own = counts <= max(COMMON, COMMON_SHARE * len(met))  # [K]
    sizes = np.maximum(index.owned(np.flatnonzero(own)), 1)  # [H]
    for number, some in enumerate(met):
        if own[some].any():
            shares = index.owned(some[own[some]]) / sizes
            yield from ((number, int(text), float(shares[text])) for text in np.flatnonzero(shares >= NEAR))
