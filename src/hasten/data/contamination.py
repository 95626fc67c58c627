"""Keep benchmark texts out of training: does a document contain a passage that must not be learnt?

A protected text is cut into passages of `PASSAGE_WORDS` words.  A document is contaminated if it holds
a large share of the eight-word runs of any one of them, so that a light edit does not hide a copy
(coverage by n-grams, after Llama 3's section 5.1.4; GPT-3's appendix C asks for one run of 13 words).
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hasten.data.ngrams import Hashes, ngrams, words
from hasten.data.source import Document

RUN_WORDS, PASSAGE_WORDS = 8, 64


class Protected:
    """The passages that must not be in training: R distinct (run, passage) pairs, P passages."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.names: list[str] = []  # [P]
        self.too_short = 0  # texts of fewer words than a run, which cannot be looked for
        runs, passages = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for document in documents:
            hashes = words(document.text).hashes
            self.too_short += len(hashes) < RUN_WORDS
            for passage in cut(hashes):
                distinct = np.unique(ngrams(passage, RUN_WORDS))
                runs.append(distinct)
                passages.append(np.full(len(distinct), len(self.names)))
                self.names.append(document.id)
        self.index(np.concatenate(runs), np.concatenate(passages))

    def index(self, runs: Hashes, passages: NDArray[np.int64]) -> None:
        """Sort the pairs by run, to be searched."""
        order = np.argsort(runs, kind="stable")
        self.runs, self.passages = runs[order], passages[order]  # [R]
        self.sizes = np.bincount(passages, minlength=len(self.names))  # [P]

    def passage_in(self, hashes: Hashes, share: float) -> str | None:
        """The name of a protected text of which a document's words hold `share` of a passage's runs."""
        if not len(self.runs):
            return None
        runs = np.unique(ngrams(hashes, RUN_WORDS))
        first, last = np.searchsorted(self.runs, runs), np.searchsorted(self.runs, runs, side="right")
        met = np.flatnonzero(first < last)
        if not len(met):
            return None
        pairs = np.concatenate([np.arange(first[run], last[run]) for run in met])
        counts = np.bincount(self.passages[pairs], minlength=len(self.names))
        worst = int((counts / self.sizes).argmax())
        return self.names[worst] if counts[worst] >= share * self.sizes[worst] else None


def cut(hashes: Hashes) -> list[Hashes]:
    """The words of a text in passages of about equal length, none much longer than `PASSAGE_WORDS`."""
    if len(hashes) < RUN_WORDS:
        return []
    return np.array_split(hashes, max(round(len(hashes) / PASSAGE_WORDS), 1))
