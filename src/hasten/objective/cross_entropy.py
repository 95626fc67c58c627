"""Cross-entropy against targets: pretraining, masked and sequence-to-sequence modelling, fine-tuning."""

from typing import Literal, cast

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from hasten.core.batch import IGNORE, SOURCE, TYPES, Batch
from hasten.core.config import Config
from hasten.model.transformer import Transformer

WHOLE_BYTES = {"cpu": 2**30, "cuda": 2**32}
CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Of float32 logits.  Each chunk adds to the head's whole gradient once: GPUs want few and large ones."""


CORRECT_TOKENS = 1024


def scored(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The states [N, D] that go through the head, and their targets [N]: all places, or those in `scored`."""
    states, targets = hidden.flatten(0, 1), batch.targets.flatten()
    places = batch.extra.get("scored")
    return (states, targets) if places is None else (states[places], targets[places])


class CrossEntropy(Config):
    """The negative log-likelihood of each target that is not IGNORE, summed, in nats.

    The two regularisers, like dropout, are there in training mode only: a measured loss is the plain one.
    """

    kind: Literal["cross_entropy"] = "cross_entropy"
    chunk_tokens: PositiveInt | Literal["auto"] | None = Field(
        default="auto",
        description="logits are made for so many tokens at a time; auto: all, unless above 1 GiB, on GPUs 4",
    )
    z_loss: NonNegativeFloat = Field(
        default=0.0, description="weight of log^2 Z, which holds logits down; 1e-4 is usual"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of a target spread over the vocabulary"
    )

    def count(self, batch: Batch) -> Tensor:
        """The number of targets that carry loss, []."""
        return (batch.targets != IGNORE).sum()

    def enrich(self, batch: Batch) -> Batch:
        """Nothing to add: no frozen model is asked."""
        return batch

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """Tokens [B, T] with their positions and segments; of pairs also the sources [B, S] with theirs, and
        token types where there are some.
        """
        read = {name: batch.extra[name] for name in (*SOURCE, TYPES) if name in batch.extra}
        return {"tokens": batch.tokens, "positions": batch.positions, "segments": batch.segments, **read}

    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """Summed cross-entropy [] of `hidden` [B, T, D]."""
        transformer = cast(Transformer, model)
        states, targets = scored(hidden, batch)
        return transformer.cross_entropy(
            transformer.head_input(states),
            transformer.head_weight,
            targets,
            transformer.head_bias,
            chunk_tokens=self.chunk(targets.numel(), transformer.config.vocabulary, hidden.device),
            z_loss=self.z_loss if model.training else 0.0,
            label_smoothing=self.label_smoothing if model.training else 0.0,
            soft_cap=transformer.config.logit_soft_cap,
        )

    def correct(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """How many targets are the likeliest token, [], where places are `scored`; else 0, to save a head."""
        if "scored" not in batch.extra:
            return torch.zeros((), device=hidden.device)
        states, targets = scored(hidden, batch)
        pieces = zip(states.split(CORRECT_TOKENS), targets.split(CORRECT_TOKENS), strict=True)
        logits = cast(Transformer, model).logits
        return torch.stack([(logits(some).argmax(dim=-1) == wanted).sum() for some, wanted in pieces]).sum()

    def chunk(self, num_tokens: int, vocab_size: int, device: torch.device) -> int | None:
        """For how many tokens to hold float32 logits at a time; None is all of them, which is fastest."""
        if self.chunk_tokens != "auto":
            return self.chunk_tokens
        row_bytes, kind = 4 * vocab_size, "cuda" if device.type == "cuda" else "cpu"
        return None if num_tokens * row_bytes <= WHOLE_BYTES[kind] else max(1, CHUNK_BYTES[kind] // row_bytes)
