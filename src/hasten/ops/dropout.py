"""Dropout (Srivastava et al. 2014)."""

import torch.nn.functional as F
from torch import Tensor

from hasten.ops.kernels.call import usable
from hasten.ops.kernels.dropout import Dropout


def dropout(x: Tensor, share: float) -> Tensor:
    """Zero for a `share` in [0, 1) of the numbers of x, drawn anew; the others times 1 / (1 - share)."""
    if not share:
        return x
    return Dropout.apply(x, share) if usable(x) else F.dropout(x, share)
