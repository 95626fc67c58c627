"""Where an answer begins and ends: a cross-entropy over the places of a text for each.

Devlin et al. 2019, section 4.2.
Letters in shapes: B rows, T tokens, M most examples in a row, D model width.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hasten.core.batch import TYPES, Batch
from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.model.transformer import Transformer

ENDS = ("start", "end")
"""Of an answer: the columns of the head, and what `extra` calls the places."""


class Spans(Config):
    """The negative log-likelihood of an answer's first and last place, halved, summed over examples, in nats.

    The places to choose from are those of the example's own segment.  `extra["start"]` and `extra["end"]`
    [B, M] are the places in row b of segment m + 1, -1 where there is no such example.
    """

    kind: Literal["spans"] = "spans"

    def check_degrees(self, degrees: Mapping[Any, int]) -> None:
        """Refuse a mesh on which the places of a text would lie on several processes."""
        if degrees.get("context", 1) > 1:
            raise ConfigError(
                f"parallel: context {degrees['context']} would spread the places of a text over processes,"
                " and an answer is looked for among all of them; write parallel.context=1 and divide by"
                " shard, tensor or pipeline"
            )

    def count(self, batch: Batch) -> Tensor:
        """The number of examples, []."""
        return (batch.extra["start"] >= 0).sum()

    def enrich(self, batch: Batch) -> Batch:
        """Nothing to add: no frozen model is asked."""
        return batch

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """Tokens [B, T] with their positions and segments, and their types where there are some."""
        types = {TYPES: batch.extra[TYPES]} if TYPES in batch.extra else {}
        return {"tokens": batch.tokens, "positions": batch.positions, "segments": batch.segments, **types}

    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """Summed loss [] of `hidden` [B, T, D]."""
        scores, wanted, there = self.judged(model, hidden, batch)
        chosen = scores.gather(-1, wanted[..., None]).squeeze(-1)  # [B, 2, M]
        losses = scores.logsumexp(dim=-1) - chosen
        return losses.masked_fill(~there, 0.0).sum() / len(ENDS)

    def correct(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """Of how many examples both places are the likeliest, []."""
        scores, wanted, there = self.judged(model, hidden, batch)
        return ((scores.argmax(dim=-1) == wanted) & there).all(dim=1).sum()

    def judged(self, model: nn.Module, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [B, 2, M, T] of each end of each example, its place [B, 2, M], and whether it exists.

        Places of other segments have the least number that there is: an example that does not exist then has
        a finite loss, whose gradient is none.
        """
        logits = cast(Transformer, model).logits(hidden).mT  # [B, 2, T]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        places = torch.stack([batch.extra[end] for end in ENDS], dim=1)  # [B, 2, M]
        own = segments_of(batch)[:, None, None] == numbers(places)[None, None, :, None]  # [B, 1, M, T]
        scores = logits[:, :, None].masked_fill(~own, torch.finfo(logits.dtype).min)
        return scores, places.clamp(min=0), places >= 0


def segments_of(batch: Batch) -> Tensor:
    """The segments [B, T]; all 1 where no row holds more than one example and none is padded."""
    return torch.ones_like(batch.tokens) if batch.segments is None else batch.segments


def numbers(places: Tensor) -> Tensor:
    """The numbers of a row's segments, 1 to M."""
    return torch.arange(1, places.shape[-1] + 1, device=places.device)
