"""Speculative decoding: a small model guesses what comes next, the large one reads all guesses at once
(Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).

Reading a few tokens takes a large model hardly longer than reading one, for the time is that of its weights.
A guess is kept as often as the large model would have chosen it, else another token takes its place: texts
are distributed exactly as the large model's, and are the same texts where the likeliest token is taken.

Letters in shapes: G guesses, N tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.generate.cache import KeyValueCache
from hasten.generate.completion import Row
from hasten.generate.config import GenerateConfig
from hasten.generate.constraint import constrained
from hasten.generate.prepared import Prepared
from hasten.generate.sample import barred, drawn_from, draws, invert, shares

GUESS, ACCEPT, REPLACE = range(3)
"""Which of the three random numbers of a token decides what."""


@dataclass(frozen=True)
class Pair:
    """The model whose texts are wanted, the small one that guesses, and how tokens are chosen."""

    model: Prepared
    draft: Prepared
    config: GenerateConfig
    vocab_size: int

    def let_grow(self, rows: Sequence[Row]) -> None:
        """Let each row grow until it has ended, one after the other."""
        for row in rows:
            self.speculate(row)

    def speculate(self, row: Row) -> None:
        """Let a row grow until it has ended."""
        count = row.most_tokens + 1
        luck = draws(row.seed, row.prompt, 3 * count).view(count, 3).tolist()
        while row.stopped_by is None:
            self.within_context(row, luck)
            if row.stopped_by is None:
                row.forget()

    def within_context(self, row: Row, luck: Sequence[Sequence[float]]) -> None:
        """Let a row grow until it has ended or its context is full."""
        length = len(row.window)
        capacity = length + min(row.max_positions - length, row.most_tokens - row.num_new_tokens)
        with (
            self.model.cache([row], [0], capacity) as own,
            self.draft.cache([row], [0], capacity) as small,
        ):
            reader, guesser = Reader(self.model, own), Reader(self.draft, small)
            while True:
                guesses, q = self.guess(guesser, row, luck)
                scores = reader.scores([*row.window, *guesses], len(guesses) + 1)
                p = shares(self.allowed(row, scores), self.config)
                tokens = settle(guesses, p, q, luck[row.num_new_tokens :])
                row.guessed += len(guesses)
                row.accepted += len(tokens) - 1
                if not all(map(row.push, tokens)) or row.is_full:
                    return
                for each in (own, small):
                    each.go_back(len(row.window) - 1)

    def guess(self, guesser: "Reader", row: Row, luck: Sequence[Sequence[float]]) -> tuple[list[int], Tensor]:
        """Tokens that the small model draws, and what it drew them from [G, V]."""
        guesses: list[int] = []
        count = self.num_guesses(row)
        chances = torch.empty(count, self.vocab_size, device=self.draft.model.device)
        for number in range(count):
            scores = self.allowed(row, guesser.scores([*row.window, *guesses], 1), number)
            chance = luck[row.num_new_tokens + number][GUESS]
            guesses.append(drawn_from(scores, chance, self.config, chances[number]))
        return guesses, chances

    def num_guesses(self, row: Row) -> int:
        """How far ahead to guess: as far as both models can read, and as there is text to come."""
        if row.first is not None and row.num_new_tokens == 0:
            return 0  # few tokens are allowed there
        length = len(row.window)
        places = min(row.max_positions - length, self.draft.config.max_positions - length + 1)
        return max(0, min(self.config.draft_tokens, places, row.most_tokens - row.num_new_tokens - 1))

    def allowed(self, row: Row, scores: Tensor, ahead: int = 0) -> Tensor:
        """Scores [N, V] of what may come, the first being `ahead` of the row's next token."""
        scores = scores[:, : self.vocab_size].float()
        begin, nothing = row.num_new_tokens + ahead, scores.new_empty(1, 0, dtype=torch.int64)
        if row.first is not None and begin == 0:
            scores = scores.masked_fill(barred([row.first], self.vocab_size).to(scores.device), -torch.inf)
        if begin < self.config.min_new_tokens:
            each = (
                constrained(one[None], nothing, begin + i, self.config, row.end_ids)
                for i, one in enumerate(scores)
            )
            scores = torch.cat(list(each))
        return scores


@dataclass(frozen=True)
class Reader:
    """A model that reads one growing text."""

    prepared: Prepared
    cache: KeyValueCache

    def scores(self, ids: Sequence[int], count: int) -> Tensor:
        """What comes after each of the last `count` of `ids`, [count, V]; what is new of them is read."""
        device = self.cache.starts.device
        new = torch.tensor(ids[self.cache.filled :], device=device)
        if self.cache.filled == 0:
            return self.prepared.model.logits(self.cache.read(new[None])[0, -count:])
        return self.cache.follow_all(new)[-count:]


def settle(guesses: Sequence[int], p: Tensor, q: Tensor, luck: Sequence[Sequence[float]]) -> list[int]:
    """The tokens that follow: the guesses as far as they are kept, and one more.

    Guess i is kept with probability min(1, p[i] / q[i]), p [G + 1, V] being the large model's distribution
    and q [G, V] the one that it was drawn from; in place of the first that is not, a token is drawn from what
    p has more than q (Leviathan et al. 2023, algorithm 1).  `luck` [G + 1, 3] is uniform in [0, 1).
    """
    at, kept = torch.tensor(guesses, dtype=torch.int64, device=p.device)[:, None], 0
    wanted, drawn = (x[: len(guesses)].gather(1, at)[:, 0].tolist() for x in (p, q))
    for number, (own, other) in enumerate(zip(wanted, drawn, strict=True)):
        if luck[number][ACCEPT] * other >= own:
            break
        kept += 1
    rest = p[kept] if kept == len(guesses) else (p[kept] - q[kept]).clamp(min=0)
    if not rest.any():  # equal but for rounding
        rest = p[kept]
    return [*guesses[:kept], invert(rest[None], luck[kept][REPLACE])]
