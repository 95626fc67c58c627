"""A law of a kernel's time: a sum of what it grows with, none of which makes it faster."""

from collections.abc import Mapping, Sequence

import torch

ROUNDS = 3000


def fit_law(features: Sequence[Mapping[str, float]], seconds: Sequence[float]) -> dict[str, float]:
    """Coefficients, none below zero, with the least sum of squared relative errors.

    By cyclic coordinate descent, which finds the minimum of this convex problem (Franc et al. 2005).
    """
    names = list(features[0])
    rows = torch.tensor([[each[name] for name in names] for each in features], dtype=torch.float64)
    rows /= torch.tensor(seconds, dtype=torch.float64).clamp_min(1e-9)[:, None]
    scale = rows.amax(dim=0).clamp_min(1e-300)
    rows /= scale
    gram, wanted = (rows.T @ rows).tolist(), rows.sum(dim=0).tolist()
    found = [0.0] * len(names)
    for _ in range(ROUNDS):
        for i, row in enumerate(gram):
            slope = sum(a * x for a, x in zip(row, found, strict=True)) - wanted[i]
            found[i] = max(0.0, found[i] - slope / row[i]) if row[i] else 0.0
    return {name: x / float(s) for name, x, s in zip(names, found, scale, strict=True)}


def seconds_of(law: Mapping[str, float], features: Mapping[str, float]) -> float:
    """What a law says of one call."""
    return sum(law[name] * value for name, value in features.items())
