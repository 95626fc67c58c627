"""Beam search: the best beginnings of each text grow side by side until none can overtake what has ended.

Letters in shapes: S sources that are still open, W beams, C candidates, L tokens of a text, V vocabulary.

A text of n tokens, its end included, scores log p / penalty(n): n^alpha, or ((5 + n) / 6)^alpha (Wu et al.
2016, GNMT, equation 14).  The order of steps, the number of candidates and the rules of stopping are
those of `transformers` 5, so the texts are too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

IMPOSSIBLE = -torch.inf
EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class Rules:
    """How texts are compared and when a source is done.

    `early_stopping` false: when its best beam, as if it ended here, is no better than the worst of `width`
    ended texts; true: when there are `width` ended texts; "never": when no ending could improve on them.
    """

    width: int
    length_penalty: float = 1.0
    length_rule: Literal["power", "gnmt"] = "power"
    early_stopping: EarlyStopping = False

    def penalty(self, length: Tensor | int) -> Tensor | float:
        """What log-probabilities of texts of this length are divided by."""
        base = length if self.length_rule == "power" else (5 + length) / 6
        return base**self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A text that has ended: its ids, the ending one included, log p, and log p / penalty."""

    tokens: list[int]
    log_probability: float
    score: float


@dataclass
class Texts:
    """A number of texts of each source, the best first."""

    scores: Tensor  # [S, n], -inf where there is none
    tokens: Tensor  # [S, n, L]
    lengths: Tensor  # [S, n]

    def best(self, count: int) -> "Texts":
        """The `count` best of each source."""
        order = self.scores.topk(min(count, self.scores.shape[1])).indices
        return Texts(self.scores.gather(1, order), rows_of(self.tokens, order), self.lengths.gather(1, order))

    def joined(self, other: "Texts") -> "Texts":
        """Both; of equals the earlier comes first."""
        return Texts(
            torch.cat((self.scores, other.scores), 1),
            torch.cat((self.tokens, other.tokens), 1),
            torch.cat((self.lengths, other.lengths), 1),
        )

    def of(self, sources: Tensor) -> "Texts":
        """Those of some sources."""
        return Texts(self.scores[sources], self.tokens[sources], self.lengths[sources])


@dataclass(frozen=True)
class Taken:
    """What a step came to, for the caller's cache.

    `tokens` [S' * W'] continue the rows `rows` of the step before; of its sources, `sources` [S'] are open.
    """

    tokens: Tensor
    rows: Tensor
    sources: Tensor


class Beams:
    """The search of several sources at once.

        beams = Beams(limits, eot_id, rules)
        while beams.open:
            taken = beams.step(log_probs)  # [S * W, V]

    At first every source has one beam.  Sources that are done leave, and their texts are in `results`.
    """

    def __init__(self, limits: Tensor, end_ids: Sequence[int], rules: Rules) -> None:
        """`limits` [S]: so many tokens a text has at most; each of `end_ids` ends it."""
        sources, longest = len(limits), int(limits.max()) if len(limits) else 0
        self.limits, self.rules = limits, rules
        self.end_ids = torch.tensor(sorted(end_ids), dtype=torch.int64, device=limits.device)
        self.length = 0
        self.sources = torch.arange(sources, device=limits.device)
        self.scores = torch.zeros(sources, 1, device=limits.device)  # log p of each beam
        self.tokens = torch.zeros(sources, 1, longest, dtype=torch.int64, device=limits.device)
        none = torch.zeros(sources, 0, dtype=torch.int64, device=limits.device)
        self.ended = Texts(self.scores[:, :0], self.tokens[:, :0], none)
        self.results: list[list[Hypothesis]] = [[] for _ in range(sources)]

    @property
    def open(self) -> int:
        """How many sources are not done."""
        return len(self.sources)

    @property
    def width(self) -> int:
        """How many beams each source has now."""
        return self.scores.shape[1]

    @property
    def history(self) -> Tensor:
        """What each beam has so far, [S * W, n]."""
        return self.tokens[:, :, : self.length].flatten(0, 1)

    def step(self, log_probs: Tensor) -> Taken:
        """Let every beam grow by a token: log-probabilities [S * W, V]."""
        width, beams, vocabulary = self.rules.width, self.width, log_probs.shape[-1]
        totals = (self.scores[..., None] + log_probs.view(-1, beams, vocabulary)).flatten(1)
        # So many that `width` go on even where every ending there is stands before them.
        candidates = max(2, 1 + len(self.end_ids)) * width
        scores, places = totals.topk(min(candidates, totals.shape[1]))  # [S, C]
        parents, tokens = places // vocabulary, places % vocabulary
        texts = rows_of(self.tokens, parents)
        texts[..., self.length] = tokens
        self.length += 1
        ends = torch.isin(tokens, self.end_ids) | (self.length >= self.limits[:, None])
        self.gather_ended(scores, texts, ends)
        self.scores, chosen = scores.masked_fill(ends, IMPOSSIBLE).topk(min(width, scores.shape[1]))
        self.tokens = rows_of(texts, chosen)
        first_rows = beams * torch.arange(len(places), device=places.device)[:, None]
        return self.go_on(tokens.gather(1, chosen), first_rows + parents.gather(1, chosen))

    def gather_ended(self, scores: Tensor, texts: Tensor, ends: Tensor) -> None:
        """Keep the `width` best texts that have ended; only the first `width` candidates may end one."""
        width = self.rules.width
        final = (scores / self.rules.penalty(self.length)).masked_fill(~ends, IMPOSSIBLE)[:, :width]
        lengths = torch.full_like(final, self.length, dtype=torch.int64)
        self.ended = self.ended.joined(Texts(final, texts[:, :width], lengths)).best(width)

    def go_on(self, tokens: Tensor, rows: Tensor) -> Taken:
        """Let the sources that are done leave: tokens and rows [S, W]."""
        unfinished = self.unfinished()
        closed, stay = (mask.nonzero().flatten() for mask in (~unfinished, unfinished))
        if len(closed):
            self.close(closed)
            self.sources, self.limits = self.sources[stay], self.limits[stay]
            self.scores, self.tokens, self.ended = self.scores[stay], self.tokens[stay], self.ended.of(stay)
            tokens, rows = tokens[stay], rows[stay]
        return Taken(tokens.flatten(), rows.flatten(), stay)

    def unfinished(self) -> Tensor:
        """Which sources may still improve, bool [S]."""
        rules, ended = self.rules, self.ended.scores
        full = (ended > IMPOSSIBLE).sum(1) >= rules.width
        worst = torch.where(full, ended.amin(1), IMPOSSIBLE)
        longest = rules.early_stopping == "never" and rules.length_penalty > 0
        hoped = self.scores[:, 0] / rules.penalty(self.limits if longest else self.length)
        unfinished = hoped > worst
        return unfinished & ~full if rules.early_stopping is True else unfinished

    def close(self, closed: Tensor) -> None:
        """Write down the texts of the sources that are done."""
        ended = self.ended.of(closed)
        parts = (self.sources[closed], ended.scores, ended.tokens, ended.lengths)
        for source, scores, texts, lengths in zip(*(part.tolist() for part in parts), strict=True):
            there = max(sum(score > IMPOSSIBLE for score in scores), 1)
            self.results[source] = [
                Hypothesis(text[:length], score * float(self.rules.penalty(length)), score)
                for score, text, length in zip(scores[:there], texts, lengths, strict=False)
            ]


def rows_of(texts: Tensor, order: Tensor) -> Tensor:
    """Texts of each source in another order: [S, n, L] and [S, m] -> [S, m, L]."""
    return texts.gather(1, order[..., None].expand(-1, -1, texts.shape[-1]))


def best_of(results: Sequence[Sequence[Hypothesis]], count: int) -> list[Hypothesis]:
    """The `count` best texts of each source, one source after the other."""
    return [hypothesis for found in results for hypothesis in found[:count]]
