"""How far a student's distribution over the next token is from its teacher's, and the slope of that.

P is the teacher's distribution, Q the student's, both at temperature τ: softmax(logits / τ).
Letters in shapes: N places, V vocabulary, K tokens that a teacher was heard to say at a place.
"""

from math import log, log1p
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.core.batch import IGNORE, UNKNOWN
from hasten.ops.loss import Head, Terms, scores_of, slices

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
unchanged: Head = nn.Identity()


class Mix(NamedTuple):
    """What a student's loss at a place is made of: λ CE(label) + (1 - λ) τ² D(P, Q).

    Where the label is UNKNOWN, λ is 0.

    Slopes of D by the logits shrink as 1 / τ², so τ² keeps the two parts in proportion (Hinton et al. 2015,
    section 2).  D is over the first `known` tokens: what a model has beyond its tokenizer's is never said.
    """

    kind: Kind
    known: int
    temperature: float = 1.0
    beta: float = 0.5  # of jsd
    labels: float = 0.0  # λ


class Told(Protocol):
    """What a teacher says of places, in whatever form it is kept."""

    def of(self, rows: slice) -> "Told":
        """What it says of the places `rows` alone, ready to be asked for few of them at a time."""
        ...

    def apart(self, log_q: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
        """D [N] at its places, and its slope [N, known] by what log_q [N, known] is the log-softmax of."""
        ...


def divergence(log_p: Tensor, log_q: Tensor, kind: Kind, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """D(P, Q) [N] of log-probabilities [N, V], and its slope [N, V] by what log_q is the log-softmax of.

    - forward_kl: KL(P ‖ Q).
    - reverse_kl: KL(Q ‖ P).
    - jsd: β KL(P ‖ M) + (1 - β) KL(Q ‖ M) with M = β P + (1 - β) Q (Agarwal et al. 2024, "GKD", eq. 1).
      Divided by β it tends to the forward one as β falls to 0, by 1 - β to the reverse one as it grows to 1.
    """
    q = log_q.exp()
    if kind == "forward_kl":
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(dim=-1), q - p
    if kind == "reverse_kl":
        return against(log_q - log_p, q, 1.0)
    log_m = torch.logaddexp(log_p + log(beta), log_q + log1p(-beta))
    value, slope = against(log_q - log_m, q, 1 - beta)
    return value + beta * (log_p.exp() * (log_p - log_m)).sum(dim=-1), slope


def against(ratio: Tensor, q: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """`weight` times Σ q ratio [N] and q (ratio - Σ q ratio) [N, V], the slope where what Q is compared
    with is Q's own mixture or stands still.
    """
    value = (q * ratio).sum(dim=-1)
    return weight * value, weight * q * (ratio - value[:, None])


class Logits(NamedTuple):
    """A teacher that is there: its states [N, D], and what makes logits [N, V] of them."""

    states: Tensor
    head: Head = unchanged

    def of(self, rows: slice) -> "Logits":
        """`Told.of`: its logits exist for `rows`, made in one product, for a head's weights are many."""
        return Logits(self.head(self.states[rows]))

    def apart(self, log_q: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
        """`Told.apart`."""
        logits = self.head(self.states)[:, : mix.known].to(log_q.dtype)
        return divergence(tempered(logits, mix.temperature).log_softmax(dim=-1), log_q, mix.kind, mix.beta)


class Heard(NamedTuple):
    """A teacher that spoke before: tokens [N, K] with weights [N, K] that sum to 1, or are all 0.

    `entropy` [N] is that of P.  KL(P ‖ Q) is linear in P but for the entropy, so weights that are right in
    the mean give a loss and a slope that are.  No other divergence is linear.
    """

    tokens: Tensor
    weights: Tensor
    entropy: Tensor

    def of(self, rows: slice) -> "Heard":
        """`Told.of`."""
        return Heard(*(kept[rows] for kept in self))

    def apart(self, log_q: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
        """`Told.apart` of forward_kl."""
        assert mix.kind == "forward_kl", "only KL(P || Q) can be told from samples of P"
        tokens, weights = self.tokens.long(), self.weights.to(log_q.dtype)
        value = -(weights * log_q.gather(1, tokens)).sum(dim=-1) - self.entropy.to(log_q.dtype)
        return value, log_q.exp().scatter_add_(1, tokens, -weights)


class OverChunks:
    """The loss over a student's logits as `ops.linear_cross_entropy` asks for it, chunk after chunk.

    A new one for each loss: it counts the places that have passed.
    """

    def __init__(self, told: Told, mix: Mix) -> None:
        self.told, self.mix, self.passed = told, mix, 0

    def __call__(
        self, logits: Tensor, targets: Tensor, terms: Terms, bias: Tensor | None = None, *, gradient: bool
    ) -> Tensor:
        """Summed loss [] of the next logits [n, V]; where the `gradient` is wanted, it takes their place."""
        chunk = slice(self.passed, self.passed + len(targets))
        told, first, losses, self.passed = self.told.of(chunk), 0, [], chunk.stop
        for piece, its in slices(logits, targets):
            some = told.of(slice(first, first + len(its)))
            losses.append(self.slice_loss(some, piece, its, terms, bias, gradient))
            first += len(its)
        return torch.stack(losses).sum() if losses else logits.new_zeros((), dtype=torch.float32)

    def slice_loss(  # noqa: PLR0917 (as the loss that it stands in for)
        self, told: Told, logits: Tensor, targets: Tensor, terms: Terms, bias: Tensor | None, gradient: bool
    ) -> Tensor:
        """The same for few enough places that copies in float32 are small."""
        mix, counted = self.mix, targets != IGNORE
        scores = scores_of(logits, terms, bias)
        log_q = tempered(scores[:, : mix.known], mix.temperature).log_softmax(dim=-1)
        value, slope = told.apart(log_q, mix)
        loss = mix.temperature**2 * value
        if mix.temperature != 1:  # a pass over all logits
            slope.mul_(mix.temperature)
        if beyond := scores.shape[1] - mix.known:
            slope = F.pad(slope, (0, beyond))
        if mix.labels:
            label, its = label_loss(scores, targets.clamp(min=0))
            share = mix.labels * (targets != UNKNOWN).to(loss.dtype)  # λ [n]
            loss, slope = loss.lerp(label, share), slope.lerp_(its, share[:, None])
        if gradient:
            if terms.soft_cap is not None:
                slope *= 1 - (scores / terms.soft_cap).square()
            logits.copy_(slope.masked_fill_(~counted[:, None], 0))
        return loss.masked_fill(~counted, 0).sum()


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / τ, without a copy where that is the same."""
    return logits if temperature == 1 else logits / temperature


def label_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy [n] of scores [n, V] against labels [n], and its slope [n, V]."""
    log_q, column = scores.log_softmax(dim=-1), labels[:, None]
    loss = -log_q.gather(1, column)[:, 0]
    return loss, log_q.exp_().scatter_add_(1, column, -torch.ones_like(log_q[:, :1]))
