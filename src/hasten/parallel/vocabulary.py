"""A vocabulary divided over processes: its embedding, its logits, its loss.

Letters in shapes: N tokens, D width, V vocabulary, W words of it that are here, p processes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from hasten.core.batch import IGNORE
from hasten.ops.loss import (
    Head,
    Terms,
    linear_cross_entropy,
    loss_of,
    scores_of,
    slices,
    slope_of,
)
from hasten.parallel.sequence import shared, stacked, summed


@dataclass(frozen=True)
class Share:
    """This process's part of `size` things: `length` of them from `start`.  Parts differ by one at most."""

    size: int
    group: ProcessGroup

    @property
    def bounds(self) -> list[int]:
        """Where each process's part begins, and the last one's ends: of 7 over 2 processes [0, 3, 7]."""
        parts = distributed.get_world_size(self.group)
        return [self.size * part // parts for part in range(parts + 1)]

    @property
    def start(self) -> int:
        """The first that is here."""
        return self.bounds[distributed.get_rank(self.group)]

    @property
    def length(self) -> int:
        """How many are here."""
        return self.lengths[distributed.get_rank(self.group)]

    @property
    def lengths(self) -> list[int]:
        """How many each process has."""
        return [end - start for start, end in pairwise(self.bounds)]

    def places(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """For words [...] their rows here, 0 for those that are elsewhere, and which ones are here."""
        row = words - self.start
        here = (row >= 0) & (row < self.length)
        return row.masked_fill(~here, 0), here


class VocabularyEmbedding(nn.Embedding):
    """The rows of a table that are here; each process looks up its own, and all add up what they found."""

    def __init__(self, table: nn.Embedding, share: Share) -> None:
        super().__init__(share.length, table.embedding_dim, device="meta")
        self.weight, self.share = table.weight, share

    def forward(self, words: Tensor) -> Tensor:
        """words [...] of the whole vocabulary -> [..., D]."""
        places, here = self.share.places(words)
        found = F.embedding(places, self.weight).masked_fill(~here[..., None], 0)
        return summed(found, self.share.group)


def whole_scores(head: Head, x: Tensor, *, share: Share) -> Tensor:
    """Scores of all words, from a head for those that are here: x [..., D] -> [..., V]."""
    return Joined.apply(head(shared(x, share.group)), share)


class Joined(torch.autograd.Function):
    """[..., W] of each process -> [..., V], for what all processes go on with alike."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, share: Share) -> Tensor:
        ctx.share = share
        parts = stacked(F.pad(scores, (0, max(share.lengths) - share.length)), share.group)
        return torch.cat([x[..., :length] for x, length in zip(parts, share.lengths, strict=True)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.narrow(-1, ctx.share.start, ctx.share.length).contiguous(), None


def whole_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    share: Share,
    **options: Any,
) -> Tensor:
    """`linear_cross_entropy` with words of a weight [W, D] and bias [W] that are here, and the same result.

    No process ever holds [N, V]: of a chunk they compare one number a token and add up three, in float32, and
    in the backward pass they add up the gradients by hidden states (Shoeybi et al. 2019, 3).
    """
    hidden = shared(hidden, share.group)
    return linear_cross_entropy(hidden, weight, targets, bias, over=OverShare(share), **options)


@dataclass(frozen=True)
class OverShare:
    """`loss_over_logits` for logits [N, W]."""

    share: Share

    def __call__(
        self, logits: Tensor, targets: Tensor, terms: Terms, bias: Tensor | None = None, *, gradient: bool
    ) -> Tensor:
        """Summed loss [] over the whole vocabulary; the `gradient` takes the place of the logits."""
        column, here = self.share.places(targets)
        counted = targets != IGNORE
        own = [look(x, at, its, terms, bias) for x, at, its in slices(logits, column, here)]
        log_z, hit, total = self.sums(torch.cat(own, dim=1))
        if gradient:
            for some in slices(logits, log_z, column, here, counted):
                write_slope(some, terms, bias, self.share.size)
        mean = total / self.share.size if terms.label_smoothing else None
        return loss_of(log_z, hit, mean, terms).masked_fill(~counted, 0).sum()

    def sums(self, own: Tensor) -> Tensor:
        """What `look` would find among all words: [3, N] -> [3, N]."""
        highest = own[0].clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self.share.group)
        sums = torch.stack(((own[0] - highest).exp(), own[1], own[2]))
        distributed.all_reduce(sums, group=self.share.group)
        return torch.stack((highest + sums[0].log(), sums[1], sums[2]))


def look(logits: Tensor, column: Tensor, here: Tensor, terms: Terms, bias: Tensor | None) -> Tensor:
    """Of some rows' scores the log of the sum of exponentials, the target's or 0, and the sum: [3, N]."""
    scores = scores_of(logits, terms, bias)
    hit = scores.gather(1, column[:, None])[:, 0].masked_fill(~here, 0)
    return torch.stack((scores.logsumexp(dim=-1), hit, scores.sum(dim=-1)))


def write_slope(rows: tuple[Tensor, ...], terms: Terms, bias: Tensor | None, vocab_size: int) -> None:
    """Put the gradient by some rows' logits in their place."""
    logits, log_z, column, here, counted = rows
    scores, hits = scores_of(logits, terms, bias), here.to(log_z.dtype)
    slope = slope_of(scores, log_z, column[:, None], hits, terms=terms, vocab_size=vocab_size)
    logits.copy_(slope.masked_fill_(~counted[:, None], 0))
