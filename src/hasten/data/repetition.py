"""How much of a text says the same again, by the table of Gopher (Rae et al. 2021, table A1).

Letters in shapes: W words.  A share is one of all words' characters.
"""

import numpy as np
from numpy.typing import NDArray

from hasten.data.ngrams import Words, ngrams

TOP_RUNS = {2: 0.20, 3: 0.18, 4: 0.16}  # n: the largest share of the most frequent run of n words
REPEATED_RUNS = {
    5: 0.15,
    6: 0.14,
    7: 0.13,
    8: 0.12,
    9: 0.11,
    10: 0.10,
}  # n: the largest share in repeated runs


def repeats_itself(text: Words) -> bool:
    """Whether any share is larger than the table allows.

    Most texts are far from it, which a bound shows with two sorts instead of ten: no run of words is
    more frequent than the most frequent pair, or longer than the longest n words in a row; and what
    lies in a repeated run of n + 1 words lies in one of n, so that few repeated fives mean few tens.
    """
    total, pairs = text.lengths.sum(), top_count(text, 2)
    for n, most in TOP_RUNS.items():
        if pairs * longest(text, n) > most * total and top_share(text, n) > most:
            return True
    n, least = min(REPEATED_RUNS), min(REPEATED_RUNS.values())
    if repeated_count(text, n) * longest(text, n) <= least * total or repeated_share(text, n) <= least:
        return False
    return any(repeated_share(text, n) > most for n, most in REPEATED_RUNS.items())


def longest(text: Words, n: int) -> int:
    """Characters in the longest n words in a row."""
    totals = np.cumsum(np.concatenate([[0], text.lengths]))
    return int((totals[n:] - totals[:-n]).max(initial=0))


def top_count(text: Words, n: int) -> int:
    """How often the most frequent run of n words occurs."""
    return int(group_sizes(np.sort(ngrams(text.hashes, n))).max(initial=0))


def group_sizes(ordered: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[N] sorted values -> [distinct values]: how many there are of each."""
    ends = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [len(ordered) > 0]]))
    return np.diff(ends, prepend=-1)


def top_share(text: Words, n: int) -> float:
    """The share that lies in the most frequent run of n words, if there is one that occurs twice."""
    runs = ngrams(text.hashes, n)
    ordered = np.sort(runs)
    sizes = group_sizes(ordered)
    if sizes.max(initial=0) < 2:
        return 0.0
    top = ordered[np.cumsum(sizes)[sizes.argmax()] - 1]
    first = int((runs == top).argmax())
    return float(sizes.max() * text.lengths[first : first + n].sum() / text.lengths.sum())


def repeated_count(text: Words, n: int) -> int:
    """How many runs of n words were met before in the text."""
    ordered = np.sort(ngrams(text.hashes, n))
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def repeated_share(text: Words, n: int) -> float:
    """The share that lies in runs of n words met before in the text."""
    runs = ngrams(text.hashes, n)
    order = np.argsort(runs, kind="stable")
    again = np.zeros(len(runs), bool)
    again[order[1:]] = runs[order[1:]] == runs[order[:-1]]
    return float(text.lengths[covered(again, n, len(text))].sum() / text.lengths.sum())


def covered(runs: NDArray[np.bool_], n: int, count: int) -> NDArray[np.bool_]:
    """[count - n + 1] marked runs of n words -> [count] whether a word lies in a marked one."""
    inside = np.zeros(count, bool)
    for place in range(n):
        inside[place : place + len(runs)] |= runs
    return inside
