"""What a model expected at each place of a text, and what came.  Letters: N places, V vocabulary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from hasten.report.inspect.pieces import Piece, spelled
from hasten.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Candidate:
    """A token that could have come."""

    piece: Piece
    probability: float


@dataclass(frozen=True)
class Expectation:
    """What was expected at a place; what came, where something did, with its rank and surprise."""

    place: int
    candidates: list[Candidate]
    came: Piece | None = None
    probability: float | None = None
    rank: int | None = None
    bits: float | None = None

    def judged(self, logs: Tensor) -> "Expectation":
        """The same with what belongs to the token that came, of log-probabilities [V]."""
        if self.came is None:
            return self
        own = logs[self.came.id]
        return replace(
            self,
            probability=own.exp().item(),
            rank=1 + int((logs > own).sum()),
            bits=-own.item() / math.log(2),
        )


def expectations(
    logits: Tensor, came: Sequence[Piece | None], places: Sequence[int], tokenizer: Tokenizer, top: int
) -> list[Expectation]:
    """For logits [N, V], one entry each: the `top` candidates, and how `came` fared.

    Probabilities are those of the model's loss: rows of V that no token of the tokenizer has count too,
    but are no candidates.
    """
    logs = logits.float().log_softmax(dim=-1)[:, : tokenizer.vocab_size]
    best = logs.topk(min(top, logs.shape[1]))
    found = []
    for row, place in enumerate(places):
        likely = zip(best.indices[row].tolist(), best.values[row].exp().tolist(), strict=True)
        candidates = [Candidate(spelled(tokenizer, id), probability) for id, probability in likely]
        found.append(Expectation(place, candidates, came[row]).judged(logs[row]))
    return found
