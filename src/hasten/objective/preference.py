"""Learning from pairs of answers of which one was preferred: DPO and its relatives.

Letters in shapes: B rows, T tokens, N scored places, M texts of a row (two for each pair), P = M / 2 pairs,
D model width.

Rows hold pairs one after the other: odd segments (1, 3, ...) the prompt with the chosen answer, the even one
after each the same prompt with the rejected one.  Targets are there on answers alone.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from hasten.core.batch import IGNORE, Batch
from hasten.core.config import Config
from hasten.core.errors import ConfigError, DataError
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy
from hasten.ops.loss import token_log_probs

BETAS = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "orpo": 0.1}
"""What `beta` is where nothing is said: each paper's own."""
NEED_REFERENCE = ("dpo", "ipo")
AUTO = CrossEntropy()
"""Knows for how many tokens logits are made at a time where nothing is said."""
REFERENCE = "reference"
"""In `Batch.extra`: the summed log-probabilities [B, M] under the model that the training began with."""


class Texts(NamedTuple):
    """What a model gives the answers of a batch, [B, M] each; 0 where a row holds fewer."""

    log_probs: Tensor
    """Sums over the tokens of an answer."""
    lengths: Tensor
    """Tokens of an answer, 1 where there is none."""

    @property
    def means(self) -> Tensor:
        """Log-probability per token."""
        return self.log_probs / self.lengths


class Preference(Config):
    """A loss for each pair, summed over pairs; log π is the answer's log-probability, |y| its tokens.

    With Δ = log π(y⁺)/π_ref(y⁺) - log π(y⁻)/π_ref(y⁻):

    - dpo: -log σ(β Δ) (Rafailov et al. 2023, eq. 7); with `label_smoothing` ε a label is wrong so often:
      -(1 - ε) log σ(β Δ) - ε log σ(-β Δ) (Mitchell 2023, "cDPO").
    - ipo: (Δ - 1 / (2 β))², each log-ratio divided by its |y| (Azar et al. 2023, eq. 17).
    - simpo: -log σ(β log π(y⁺) / |y⁺| - β log π(y⁻) / |y⁻| - γ), without a reference (Meng et al. 2024,
      eq. 6).
    - orpo: -log π(y⁺) / |y⁺| - β log σ(log odds(y⁺) - log odds(y⁻)), with odds of the probability per token,
      without a reference (Hong et al. 2024, eq. 6).
    """

    kind: Literal["preference"] = "preference"
    method: Literal["dpo", "ipo", "simpo", "orpo"] = "dpo"
    beta: PositiveFloat | None = Field(
        default=None,
        description="how strongly the margin between the two answers counts; null: dpo 0.1, ipo 0.1,"
        " simpo 2.0, orpo 0.1 (its weight of the odds ratio)",
    )
    gamma: NonNegativeFloat = Field(default=1.0, description="simpo: the margin that is asked for")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="dpo: share of pairs whose labels are taken to be wrong"
    )
    sft: NonNegativeFloat = Field(
        default=0.0,
        description="weight of the chosen answer's negative log-likelihood per token, which keeps both"
        " answers from growing less likely",
    )
    chunk_tokens: PositiveInt | Literal["auto"] | None = Field(
        default="auto",
        description="logits are made for so many tokens at a time, and again in the backward pass; auto: all"
        " at once, unless above 1 GiB, on GPUs 4",
    )

    @model_validator(mode="after")
    def check_smoothing(self) -> "Preference":
        if self.label_smoothing and self.method != "dpo":
            raise ValueError(
                f"label_smoothing belongs to dpo, and the method is {self.method}; write label_smoothing: 0"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether batches must hold what the model of the beginning gives their answers."""
        return self.method in NEED_REFERENCE

    @property
    def strength(self) -> float:
        """β."""
        return BETAS[self.method] if self.beta is None else self.beta

    def check_degrees(self, degrees: Mapping[Any, int]) -> None:
        """Refuse a mesh on which an answer would lie on several processes."""
        if degrees.get("context", 1) > 1:
            raise ConfigError(
                f"parallel: context {degrees['context']} would spread the tokens of an answer over processes,"
                " and a preference is about the sum over all of them; write parallel.context=1 and divide"
                " by shard, tensor or pipeline"
            )

    def count(self, batch: Batch) -> Tensor:
        """The number of pairs, []."""
        return pairs_of(batch).sum()

    def enrich(self, batch: Batch) -> Batch:
        """Nothing to add: what a reference says comes with the batch."""
        return batch

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """Tokens [B, T] with their positions and segments."""
        return {"tokens": batch.tokens, "positions": batch.positions, "segments": batch.segments}

    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """Summed loss [] of the pairs in `hidden` [B, T, D]."""
        return self.loss_of(self.texts(model, hidden, batch), batch)

    def loss_of(self, texts: Texts, batch: Batch) -> Tensor:
        """`loss` of answers whose log-probabilities are known."""
        chosen = texts.means[:, 0::2]  # [B, P]
        losses = self.pair_losses(texts, batch) + self.sft * -chosen
        return losses.masked_fill(~there(batch, chosen), 0).sum()

    def correct(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """In how many pairs [] the chosen answer has the higher reward, without γ."""
        return self.correct_of(self.margin(self.texts(model, hidden, batch), batch), batch)

    def correct_of(self, margin: Tensor, batch: Batch) -> Tensor:
        """`correct` of pairs whose margins [B, P] are known."""
        return ((margin > 0) & there(batch, margin)).sum()

    def texts(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Texts:
        """Log-probabilities and lengths of all answers in `hidden` [B, T, D]."""
        assert batch.segments is not None, "pairs are told apart by their segments"
        rows, length = batch.tokens.shape
        places = batch.extra.get("scored")
        if places is None:
            places = torch.arange(rows * length, device=hidden.device)
        targets, segments = batch.targets.flatten()[places], batch.segments.flatten()[places]  # [N]
        counted = (targets != IGNORE) & (segments > 0)
        targets = targets.masked_fill(~counted, IGNORE)
        scores = self.scores(cast(Transformer, model), hidden.flatten(0, 1)[places], targets)
        most = self.most_texts(batch)
        slot = (places // length * most + segments - 1).clamp(min=0)
        sums, lengths = (
            gathered(x, slot, rows * most).view(rows, most) for x in (scores, counted.to(scores.dtype))
        )
        return Texts(sums, lengths.clamp(min=1))

    def scores(self, model: Transformer, states: Tensor, targets: Tensor) -> Tensor:
        """Log-probability [N] of each target from the states [N, D]; 0 where IGNORE."""
        size = self.chunk_tokens
        if size == "auto":
            size = AUTO.chunk(targets.numel(), model.config.vocabulary, states.device)
        return token_log_probs(model.logits, states, targets, chunk_tokens=size)

    def most_texts(self, batch: Batch) -> int:
        """M: how many texts a row may hold, without a look at the numbers, for which a GPU would wait."""
        known = batch.extra.get(REFERENCE)
        length = batch.tokens.shape[1]
        return length + length % 2 if known is None else known.shape[1]

    def pair_losses(self, texts: Texts, batch: Batch) -> Tensor:
        """The loss of each pair, [B, P]."""
        margin, beta = self.margin(texts, batch), self.strength
        match self.method:
            case "dpo":
                right, wrong = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
                return -(1 - self.label_smoothing) * right - self.label_smoothing * wrong
            case "ipo":
                return (margin - 1 / (2 * beta)).square()
            case "simpo":
                return -F.logsigmoid(beta * margin - self.gamma)
            case "orpo":
                return -texts.means[:, 0::2] - beta * F.logsigmoid(margin)

    def margin(self, texts: Texts, batch: Batch) -> Tensor:
        """By how much the chosen answer's reward is above the rejected one's, before β: [B, P]."""
        match self.method:
            case "dpo":
                return difference(texts.log_probs - self.reference(batch))
            case "ipo":
                return difference((texts.log_probs - self.reference(batch)) / texts.lengths)
            case "simpo":
                return difference(texts.means)
            case "orpo":
                return difference(log_odds(texts.means))

    def reference(self, batch: Batch) -> Tensor:
        """What the model of the beginning gives the answers, [B, M]."""
        if REFERENCE not in batch.extra:
            raise DataError(
                f"objective.method={self.method} compares with the model that the training began with, and"
                " the batch does not hold what that gives its answers; write objective.method=simpo to do"
                " without"
            )
        return batch.extra[REFERENCE]


def gathered(values: Tensor, slots: Tensor, size: int) -> Tensor:
    """Sums [size] of the values [N] with equal slots [N], added in one order whenever it is asked."""
    zeros = values.new_zeros(size)
    # On a GPU index_add adds in any order; on a CPU index_put does.
    if values.is_cuda:
        return zeros.index_put((slots,), values, accumulate=True)
    return zeros.index_add(0, slots, values)


def pairs_of(batch: Batch) -> Tensor:
    """How many pairs each row holds, [B]."""
    assert batch.segments is not None, "pairs are told apart by their segments"
    return batch.segments.amax(dim=1) // 2


def there(batch: Batch, like: Tensor) -> Tensor:
    """Which places of `like` [B, P] are pairs of the batch."""
    return torch.arange(like.shape[1], device=like.device) < pairs_of(batch)[:, None]


def difference(texts: Tensor) -> Tensor:
    """Chosen less rejected: [B, M] -> [B, P]."""
    return texts[:, 0::2] - texts[:, 1::2]


def log_odds(log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p.  Certainty, which rounding makes of p near 1, is held a step below."""
    below = log_probs.clamp(max=-torch.finfo(log_probs.dtype).eps)
    return below - torch.log(-torch.expm1(below))
