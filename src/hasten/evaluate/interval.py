"""How sure a mean is: the interval that holds 95% of the means of resampled examples (Efron 1979)."""

from collections.abc import Sequence

import numpy as np

from hasten.evaluate.translation import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED

BLOCK = 1 << 22
"""Numbers drawn at a time."""


def half_interval(values: Sequence[float] | np.ndarray) -> float | None:
    """Half the width of the 95% interval of the mean of `values` [N]; None for fewer than two.

    Examples are drawn with replacement, always in the same way.
    """
    count = len(values)
    if count < 2:
        return None
    draw, scores = np.random.default_rng(BOOTSTRAP_SEED), np.asarray(values, np.float64)
    means: list[np.ndarray] = []
    for begin in range(0, BOOTSTRAP_SAMPLES, rows := max(1, BLOCK // count)):
        size = (min(rows, BOOTSTRAP_SAMPLES - begin), count)
        means.append(scores[draw.integers(count, size=size)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(high - low) / 2
