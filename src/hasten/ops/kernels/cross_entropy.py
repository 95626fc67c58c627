"""Cross-entropy of rows of logits in C++.  Letters in shapes: N tokens, V vocabulary."""

import torch
from torch import Tensor

from hasten.core.batch import IGNORE
from hasten.ops.kernels.call import call


def cross_entropy_rows(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    gradient: bool,
    z_loss: float,
    label_smoothing: float,
    soft_cap: float | None,
) -> Tensor:
    """Summed loss, [] in float64, of logits [N, V], each row contiguous, and targets [N] in int64.

    A bias [V] comes to every row, in float32.  Where the `gradient` is wanted, it takes the place
    of the logits.  Raises IndexError for a target that is neither IGNORE nor below V.
    """
    total, (rows, width) = torch.zeros((), dtype=torch.float64), logits.shape
    targets = targets.contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    sizes, options = (
        (rows, width, logits.stride(0)),
        (float(z_loss), float(label_smoothing), float(soft_cap or 0)),
    )
    if call("cross_entropy", logits.dtype, logits, bias, targets, total, *sizes, IGNORE, gradient, *options):
        raise IndexError(
            f"targets must be below the vocabulary, {width}, or {IGNORE}; one is {odd(targets, width)}"
        )
    return total


def odd(targets: Tensor, width: int) -> int:
    """The first target that is no column."""
    return int(targets[(targets != IGNORE) & ((targets < 0) | (targets >= width))][0])
