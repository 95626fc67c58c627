"""The nearest orthogonal matrix, roughly and fast: what Muon makes of a momentum (Jordan et al. 2024).

Letters in shapes: N matrices, R rows, C columns.
"""

import torch
from torch import Tensor

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
MARGIN = 1.1
"""A power iteration finds the largest singular value from below; after eight rounds it is this close."""
TINY = 1e-20
"""Below anything that a matrix other than zero gives here; its inverse powers stay finite in float32."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """U V^T of each matrix U S V^T, with singular values near 1: [N, R, C] -> [N, R, C] in bfloat16.

    Singular values between 0.1% and 100% of the largest come out between 0.7 and 1.2; smaller ones, and those
    that drown in bfloat16's rounding of the others, come out smaller.  The scale of a matrix does not matter;
    a zero matrix stays zero.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = unit(matrices.mT if tall else matrices).bfloat16()
    gram = x @ x.mT  # [N, R, R], of the shorter side
    squared = gram @ gram
    a, b, c = COEFFICIENTS[0]
    scale = 1 / (MARGIN * largest_eigenvalue(squared.float()).clamp_min(TINY) ** 0.25)
    # The scale goes into the coefficients: scaling three bfloat16 tensors would round each of them again.
    inner = ((b * scale**3) * gram + (c * scale**5) * squared).bfloat16()
    x = ((a * scale) * x + inner @ x).bfloat16()
    for a, b, c in COEFFICIENTS[1:]:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def unit(matrices: Tensor) -> Tensor:
    """Each matrix by its Frobenius norm, in float32; by its largest entry first, for squares underflow."""
    x = matrices.float()
    x = x / x.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(TINY)


def largest_eigenvalue(symmetric: Tensor, rounds: int = 8) -> Tensor:
    """Power iteration on positive semidefinite matrices: [N, R, R] -> [N, 1, 1], an estimate from below."""
    size = symmetric.shape[-1]
    # Any start will do that is orthogonal to nothing in particular and the same on every rank.
    start = torch.arange(size, dtype=symmetric.dtype, device=symmetric.device).square().cos()
    vector = start[:, None].expand(*symmetric.shape[:-1], 1)
    for _ in range(rounds):
        vector = symmetric @ vector
        vector = vector / vector.norm(dim=(-2, -1), keepdim=True).clamp_min(TINY)
    return (symmetric @ vector).norm(dim=(-2, -1), keepdim=True)
