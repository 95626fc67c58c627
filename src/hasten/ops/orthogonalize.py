"""The nearest orthogonal matrix, roughly and fast: what Muon makes of a momentum (Jordan et al. 2024).

Letters in shapes: N matrices, R rows, C columns.
"""

import torch
from torch import Tensor

PRECISION = torch.bfloat16
"""Of the products and of the result.  What compares two ways to the same matrix sets it higher: a quintic's
slope at zero is above 1000 in all, so that a rounding more or less shows in the smallest singular values."""
COEFFICIENTS = (
    (8.391185, -24.387926, 17.739370),
    (4.150074, -3.023401, 0.553178),
    (3.957378, -2.892093, 0.538703),
    (3.350399, -2.465555, 0.491880),
    (2.276312, -1.635296, 0.396289),
)
"""Odd quintics a x + b x^3 + c x^5 that together carry [0.0009, 1] into [0.82, 1.12].

Each is the minimax polynomial for the interval that the one before leaves, widened by 1% at the top for
rounding (the greedy composition of Amsel et al. 2025, "Polar Express", which is the best possible; computed
by linear programming over a grid).  The last is scaled by 0.97 to centre the result.
"""
SQUARINGS = 4
"""Of the bound on the largest singular value: each halves its error, and costs a product."""
MARGIN = 1.04
"""Room for what bfloat16 rounds away from the bound.  The bound is loosest, by R^(1/128), where all singular
values are alike; they then stand at 0.9, above the stretch around 0.82 where the first quintic is small."""
TINY = 1e-20
"""Below anything that a matrix other than zero gives here; its inverse powers stay finite in float32."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """U V^T of each matrix U S V^T, with singular values near 1: [N, R, C] -> [N, R, C] in PRECISION.

    Singular values between 0.1% and 100% of the largest come out between 0.7 and 1.2; smaller ones, and those
    that drown in bfloat16's rounding of the others, come out smaller.  The scale of a matrix does not matter;
    a zero matrix stays zero.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = unit(matrices.mT if tall else matrices).to(PRECISION)
    gram = x @ x.mT  # [N, R, R], of the shorter side
    squared = gram @ gram
    a, b, c = COEFFICIENTS[0]
    scale = 1 / (MARGIN * eigenvalue_bound(squared).clamp_min(TINY) ** 0.25)
    # The scale goes into the coefficients: scaling three bfloat16 tensors would round each of them again.
    inner = ((b * scale**3) * gram + (c * scale**5) * squared).to(PRECISION)
    x = ((a * scale) * x + inner @ x).to(PRECISION)
    for a, b, c in COEFFICIENTS[1:]:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def flops(rows: int, columns: int) -> int:
    """Floating-point operations of `orthogonalize` on one matrix.

    Each quintic is two products of [R, C] with its like or a square, and one of squares; the bound is four.
    """
    r, c = min(rows, columns), max(rows, columns)
    return 2 * (len(COEFFICIENTS) * (2 * r * r * c + r**3) + SQUARINGS * r**3)


def unit(matrices: Tensor) -> Tensor:
    """Each matrix by its Frobenius norm in float32 or more; by its largest entry first: squares underflow."""
    x = matrices.to(torch.promote_types(PRECISION, torch.float32))
    x = x / x.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(TINY)


def eigenvalue_bound(symmetric: Tensor) -> Tensor:
    """A close bound from above: positive semidefinite [N, R, R] -> [N, 1, 1] in float32.

    The Frobenius norm of a matrix bounds its largest eigenvalue, and so does the 16th root of that of its
    16th power, which is at most R^(1/32) too large.  A power iteration would estimate from below, and a
    matrix whose first singular vector lies nearly at right angles to its start would be scaled too high:
    above 1 the quintics diverge, and one such matrix in a thousand is enough to end a training.
    """
    power, exponent = symmetric, 1.0
    bound = torch.ones((), device=symmetric.device)
    for _ in range(SQUARINGS):
        norm = frobenius(power)
        bound, exponent = bound * norm**exponent, exponent / 2
        shrunk = (power / norm.clamp_min(TINY)).to(PRECISION)  # powers of a unit matrix do not underflow
        power = shrunk @ shrunk
    return bound * frobenius(power) ** exponent


def frobenius(matrices: Tensor) -> Tensor:
    """Frobenius norms [N, 1, 1] in float32."""
    return matrices.float().norm(dim=(-2, -1), keepdim=True)
