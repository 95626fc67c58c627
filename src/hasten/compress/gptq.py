"""GPTQ: weights rounded one input after another, each error made up for by the weights not yet rounded.

Frantar et al. 2023, 3: with H = X X^T, rounding weight j of a row by e moves the output least if the weights
after it move by e / [H^-1]_jj times row j of H^-1; the rows of the inverse that remain after each step are
those of its Cholesky factor.  Letters in shapes: O outputs, I inputs, G groups of a row.
"""

import torch
from torch import Tensor

from hasten.compress.rtn import Rounded
from hasten.core.errors import ConfigError
from hasten.ops.quantize import RANGE

LAZY = 128
"""Inputs after which the later ones are brought up to date, all at once."""
MOST_DAMPING = 1.0


def order_of(gram: Tensor, act_order: bool) -> Tensor:
    """In which order inputs [I] are rounded: the strongest first, while much can still make up for them."""
    diagonal = gram.diagonal()
    if not act_order:
        return torch.arange(len(diagonal), device=gram.device)
    return diagonal.argsort(descending=True, stable=True)


def inverse_factor(gram: Tensor, order: Tensor, damping: float) -> Tensor:
    """The upper triangular U [I, I] with U^T U = (H + damping mean(diagonal) 1)^-1, inputs in this `order`.

    Damping grows tenfold where rounding of the sums has left H without an inverse, up to the mean itself.
    """
    hessian = gram.double()[order][:, order]
    mean = float(hessian.diagonal().mean()) or 1.0
    while damping <= MOST_DAMPING:
        damped = hessian + torch.eye(len(order), dtype=hessian.dtype, device=gram.device) * (damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            return torch.linalg.cholesky(inverse, upper=True).float()
        damping = max(10 * damping, 1e-8)
    raise ConfigError(
        "the inputs of a layer are no finite numbers, so that GPTQ cannot weigh them; look at the model, or"
        " take method: rtn"
    )


@torch.no_grad()
def gptq(
    weight: Tensor, scales: Tensor, grid: tuple[int, int | None], order: Tensor, factor: Tensor
) -> Rounded:
    """A matrix [O, I] on the `grid` (bits, group) of `scales` [O, G], rounded in `order` with its `factor`.

    Groups are those of neighbours whatever the order is, and their scales are given: the format stays plain.
    """
    bits, group = grid
    lowest, highest = RANGE[bits]
    left = weight.float().t()[order].contiguous()  # [I, O], what remains to be represented
    steps = scales.t()[order // (weight.shape[1] // scales.shape[1])]  # [I, O]
    inverse = torch.where(steps != 0, 1 / steps, 0.0)
    whole = torch.empty_like(left)
    for start in range(0, len(left), LAZY):
        stop = min(start + LAZY, len(left))
        errors = torch.empty_like(left[start:stop])
        for i in range(start, stop):
            whole[i] = (left[i] * inverse[i]).round_().clamp_(lowest, highest)
            errors[i - start] = (left[i] - whole[i] * steps[i]) / factor[i, i]
            left[i + 1 : stop].addr_(factor[i, i + 1 : stop], errors[i - start], alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    values = torch.empty_like(whole, dtype=torch.int8)
    values[order] = whole.to(torch.int8)
    return Rounded(values.t().contiguous(), scales, bits, group)
