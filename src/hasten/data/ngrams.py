"""Words of a text as 64-bit hashes, and runs of n words, at the speed of numpy.

A word is a run of letters, digits and underscores; in scripts written without spaces (Chinese,
Japanese) each character is one.  Letters in shapes: C characters, W words.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BASE, STEP = 0x9FB21C651E98DF25, 0xC2B2AE3D27D4EB4F
INVERSE = pow(BASE, -1, 1 << 64)
UNSPACED = (
    (0x3041, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
)
BETWEEN, DIGIT, LETTER, LONE = range(4)  # what a character is to a word: no part of it, a part, or all of it
TABLE_SIZE = 0x40000
BLOCK = 1 << 18  # characters looked at together; what is longer is cut, through a word if need be


@dataclass(frozen=True)
class Words:
    """The words of one text in order: their hashes [W], their lengths in characters [W]."""

    hashes: Hashes
    lengths: NDArray[np.int64]
    with_letter: int  # how many of them hold a letter
    lone: int  # how many are single characters of a script without spaces

    def __len__(self) -> int:
        return len(self.hashes)


def words(text: str) -> Words:
    """The words of `text`, letter case aside."""
    text = text.lower()
    blocks = [block_words(text[start : start + BLOCK]) for start in range(0, max(len(text), 1), BLOCK)]
    if len(blocks) == 1:
        return blocks[0]
    return Words(
        np.concatenate([block.hashes for block in blocks]),
        np.concatenate([block.lengths for block in blocks]),
        sum(block.with_letter for block in blocks),
        sum(block.lone for block in blocks),
    )


def block_words(text: str) -> Words:
    """The words of at most `BLOCK` characters in lower case."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")  # [C]
    kinds = classes()[np.minimum(codes, TABLE_SIZE - 1)]
    lone = kinds == LONE
    starts, ends = edges(kinds, lone)
    # A word's hash is the sum of code * BASE ** place.  All words at once: running totals over the
    # block, differences at the words' edges, and the place of the beginning divided out again.
    totals = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes.astype(np.uint64) + 1) * powers(BASE)[: len(codes)], out=totals[1:])
    hashes = (totals[ends] - totals[starts]) * powers(INVERSE)[starts]
    letters = np.zeros(len(codes) + 1, np.int64)
    np.cumsum(kinds >= LETTER, out=letters[1:])
    with_letter = int(np.count_nonzero(letters[ends] - letters[starts]))
    return Words(mix(hashes), ends - starts, with_letter, int(np.count_nonzero(lone)))


def edges(kinds: NDArray[np.uint8], lone: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[C] kinds of characters -> where words begin and where they end, [W] each."""
    spaced = np.zeros(len(kinds) + 2, bool)
    spaced[1:-1] = (kinds == DIGIT) | (kinds == LETTER)
    starts = lone | (spaced[1:-1] & ~spaced[:-2])
    ends = lone | (spaced[1:-1] & ~spaced[2:])
    return np.flatnonzero(starts), np.flatnonzero(ends) + 1


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """[W] -> [W - n + 1]: one hash for each run of n words; [0] where there are fewer than n."""
    count = max(len(hashes) - n + 1, 0)
    runs = hashes[:count]
    for place in range(1, n):
        runs = runs * np.uint64(STEP) + hashes[place : place + count]
    return runs


def shingles(hashes: Hashes, n: int) -> Hashes:
    """The n-grams of a text, or the whole text as one where it is shorter; every bit of each is mixed."""
    return mix(ngrams(hashes, min(n, len(hashes)))) if len(hashes) else hashes


def mix(values: Hashes) -> Hashes:
    """A permutation of 64-bit numbers in which each bit depends on many: splitmix64's (Vigna 2015)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def classes() -> NDArray[np.uint8]:
    """What each code point is to a word."""
    table = np.zeros(TABLE_SIZE, np.uint8)
    for code in range(0x20000):
        if chr(code).isalnum() or code == ord("_"):
            table[code] = LETTER if chr(code).isalpha() else DIGIT
    for first, last in UNSPACED:
        own = table[first : last + 1]
        own[own != BETWEEN] = LONE  # not what stands between words there, such as ・, nor what is unassigned
    table[0x20000:] = LONE
    return table


@cache
def powers(base: int) -> Hashes:
    """`base` ** 0 ... `base` ** (BLOCK - 1), modulo 2 ** 64."""
    steps = np.full(BLOCK, base, np.uint64)
    steps[0] = 1
    return np.multiply.accumulate(steps)
