"""How often one of k programs is right.

Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import ConfigError, DataError
from hasten.evaluate.interval import NORMAL_95


@dataclass(frozen=True)
class PassAtK:
    """The mean over problems, from 0 to 1; half of its 95% interval, None for fewer than two."""

    k: int
    score: float
    interval: float | None  # by the standard error over problems
    problems: int
    samples: int  # of each problem, at least


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of `k` programs, drawn from `samples` of which `right` are right, is right.

    Without bias over samples: 1 - C(n - c, k) / C(n, k) (eq. 1).  Raises ConfigError for k above n.
    """
    if not 1 <= k <= samples:
        raise ConfigError(
            f"pass@{k} cannot be had from {samples} programs a problem; write samples: {k} or more, or k:"
            f" {samples}"
        )
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_pass_at_k(results: Sequence[tuple[int, int]], k: int) -> PassAtK:
    """The mean over problems of which each has (samples, right ones).  DataError where there is none."""
    if not results:
        raise DataError("there is no problem to score; give at least one")
    values = [pass_at_k(samples, right, k) for samples, right in results]
    mean, n = sum(values) / len(values), len(values)
    spread = sum((value - mean) ** 2 for value in values)
    half = NORMAL_95 * math.sqrt(spread / (n - 1) / n) if n > 1 else None
    return PassAtK(k, mean, half, n, min(samples for samples, _ in results))
