"""How well hidden tokens are guessed without a model: by counting what stands beside what.

Three guesses, each the commonest token of the training text: of all tokens (unigram), behind the token to the
left (bigram), between the tokens on both sides.  A pair of neighbours that was never seen falls back on the
left one, and that on the commonest token.  Letters: N tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.data.shards import Shards

Ids = NDArray[np.int64]
MOST_TOKENS = 20_000_000
"""Counted at most: sorting them takes some seconds, and more change the guesses hardly."""


@dataclass(frozen=True)
class Commonest:
    """For each context that was seen, in rising order, the token that was seen there most often."""

    contexts: Ids
    tokens: Ids

    @classmethod
    def count(cls, contexts: Ids, tokens: Ids) -> "Commonest":
        """From contexts [N] and what stood there [N]; of equals the smallest id."""
        order = np.lexsort((tokens, contexts))
        contexts, tokens = contexts[order], tokens[order]
        begins = np.flatnonzero(
            np.append(True, (contexts[1:] != contexts[:-1]) | (tokens[1:] != tokens[:-1]))
        )
        counts = np.diff(np.append(begins, len(tokens)))
        contexts, tokens = contexts[begins], tokens[begins]
        best = np.lexsort((-counts, contexts))
        first = best[np.append(True, contexts[best][1:] != contexts[best][:-1])]
        return cls(contexts[first], tokens[first])

    def guess(self, contexts: Ids, otherwise: Ids) -> Ids:
        """The commonest token in each of `contexts` [n], and `otherwise` [n] where one was never seen."""
        at = np.minimum(np.searchsorted(self.contexts, contexts), len(self.contexts) - 1)
        return np.where(self.contexts[at] == contexts, self.tokens[at], otherwise)


class Guesses:
    """The three guesses, counted on the documents of training shards."""

    def __init__(self, documents: Iterable[NDArray[Any]], vocab_size: int, special: frozenset[int]) -> None:
        """Each document [n] is with its first and last token, which are neighbours and never guessed."""
        left, tokens, right = triples(documents, special)
        self.vocab_size, self.num_tokens = vocab_size, len(tokens)
        self.commonest = int(np.bincount(tokens).argmax())
        self.behind = Commonest.count(left, tokens)
        self.between = Commonest.count(left * vocab_size + right, tokens)

    def guess(self, left: Ids, right: Ids) -> dict[str, Ids]:
        """The tokens guessed between `left` [n] and `right` [n]."""
        unigram = np.full(len(left), self.commonest, np.int64)
        bigram = self.behind.guess(left, unigram)
        both = self.between.guess(left * self.vocab_size + right, bigram)
        return {"unigram": unigram, "bigram": bigram, "both_neighbours": both}


def triples(documents: Iterable[NDArray[Any]], special: frozenset[int]) -> tuple[Ids, Ids, Ids]:
    """Left neighbour, token and right neighbour, [N] each, of every token that is not special."""
    parts = [ids.astype(np.int64) for ids in documents if len(ids) > 2]
    left, tokens, right = (
        np.concatenate([np.empty(0, np.int64), *(ids[cut] for ids in parts)])
        for cut in (slice(None, -2), slice(1, -1), slice(2, None))
    )
    plain = ~np.isin(tokens, list(special))
    return left[plain], tokens[plain], right[plain]


def counted(shards: Mapping[str, Shards], most: int = MOST_TOKENS) -> Iterator[NDArray[Any]]:
    """The documents of all sources until there are `most` tokens, evenly drawn where there are more."""
    total = sum(source.num_tokens for source in shards.values())
    step = max(-(-total // most), 1)
    for source in shards.values():
        for document in range(0, source.num_documents, step):
            yield source.ids(document)
