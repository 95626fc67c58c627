"""SparseGPT: weights set to zero one input after another, each made up for by those not yet looked at.

Frantar & Alistarh 2023, 3, with the inverse Hessian of GPTQ (`gptq.py`).  Letters in shapes: I inputs,
O outputs, M neighbours in a row.
"""

import torch
from torch import Tensor

from hasten.compress.gptq import LAZY, inverse_factor

DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, as in the paper."""


@torch.no_grad()
def sparsegpt(weight: Tensor, gram: Tensor, count: int, size: int) -> Tensor:
    """A matrix [O, I] with `count` of each `size` neighbours zero, for inputs whose x x^T sum to `gram`.

    Which ones go is chosen by w^2 / [H^-1]_jj as the weights then are: for a group of neighbours when its
    turn comes, for whole rows in stretches of 128 inputs.
    """
    inputs = weight.shape[1]
    factor = inverse_factor(gram, torch.arange(inputs, device=gram.device), DAMPING)
    left, diagonal = weight.detach().float().t().contiguous(), factor.diagonal()[:, None]  # [I, O], [I, 1]
    width = min(size, LAZY)
    step = LAZY // width * width
    for start in range(0, inputs, step):
        stop = min(start + step, inputs)
        errors = torch.zeros_like(left[start:stop])
        for first in range(start, stop, width):
            last = min(first + width, stop)
            share = round(count * last / size) - round(count * first / size)
            goes = lowest((left[first:last] / diagonal[first:last]).square(), share)
            for i in range(first, last):
                errors[i - start] = left[i] * goes[i - first] / diagonal[i]
                left[i].masked_fill_(goes[i - first], 0)
                left[i + 1 : stop].addr_(factor[i, i + 1 : stop], errors[i - start], alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return left.t()


def lowest(scores: Tensor, count: int) -> Tensor:
    """Which scores [M, O] are among the `count` lowest of their column: bool [M, O]."""
    where = scores.topk(count, dim=0, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(0, where, True)
