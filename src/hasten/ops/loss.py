"""Cross-entropy over a large vocabulary.  Letters in shapes: N tokens, D model width, V vocabulary."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hasten.core.batch import IGNORE

Head = Callable[[Tensor], Tensor]
"""Hidden states [..., D] to logits [..., V]."""


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Squeeze x smoothly into (-cap, cap), the identity near zero (Gemma 2, 2024)."""
    return cap * torch.tanh(x / cap)


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Sum of -log softmax(logits)[target] over the targets that count: [N, V], [N] -> float32 scalar.

    `z_loss` adds its multiple of the squared log of the softmax's denominator, which keeps logits from
    drifting (Chowdhery et al. 2022).  `label_smoothing` moves that share of a target's weight to all of V.
    """
    logits = logits.float()
    loss = F.cross_entropy(
        logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing
    )
    if z_loss:
        counted = (targets != IGNORE).float()
        loss = loss + z_loss * (logits.logsumexp(dim=-1).square() * counted).sum()
    return loss


def chunked_cross_entropy(
    logits: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int | None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Summed cross-entropy of `logits(hidden)`: hidden [N, D], targets [N] -> float32 scalar.

    With `chunk_tokens`, only that many tokens' logits exist at any time: each chunk is computed again in the
    backward pass.  None computes all at once, which is faster where [N, V] fits.
    """

    def loss(piece: Tensor, its_targets: Tensor) -> Tensor:
        return cross_entropy_sum(logits(piece), its_targets, z_loss=z_loss, label_smoothing=label_smoothing)

    if chunk_tokens is None or chunk_tokens >= len(targets):
        return loss(hidden, targets)
    pieces = zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    return torch.stack([checkpoint(loss, *piece, use_reentrant=False) for piece in pieces]).sum()


def token_log_probs(logits: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target: hidden [..., D], targets [...] -> float32 [...]; 0 where IGNORE."""
    scores = logits(hidden).float()
    losses = F.cross_entropy(scores.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return -losses.view(targets.shape)
