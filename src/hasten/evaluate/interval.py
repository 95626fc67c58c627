"""How sure a score is: the interval that holds 95% of the scores of resampled examples (Efron 1979)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

NORMAL_95 = 1.959963984540054
"""Half the width, in standard errors, of an interval that holds 95% of a normal distribution."""
SAMPLES, SEED = 1000, 12345
"""Examples are drawn with replacement, so often and always in the same way."""
BLOCK = 1 << 22
"""Numbers drawn at a time."""


def half_interval(values: Sequence[float] | np.ndarray) -> float | None:
    """Half the width of the 95% interval of the mean of `values` [N]; None for fewer than two."""
    scores = np.asarray(values, np.float64)
    if len(scores) < 2:
        return None
    return half_width(np.concatenate([scores[chosen].mean(axis=1) for chosen in draws(len(scores))]))


def half_interval_of(score: Callable[[np.ndarray], float], counts: np.ndarray) -> float | None:
    """The same of a `score` that is computed from the sum [C] of what was counted in each example [N, C]."""
    if len(counts) < 2:
        return None
    return half_width([score(counts[one].sum(axis=0)) for some in draws(len(counts)) for one in some])


def draws(count: int) -> Iterator[np.ndarray]:
    """Which examples are in each sample: parts of [SAMPLES, count]."""
    draw = np.random.default_rng(SEED)
    for begin in range(0, SAMPLES, rows := max(1, BLOCK // count)):
        yield draw.integers(count, size=(min(rows, SAMPLES - begin), count))


def half_width(scores: Sequence[float] | np.ndarray) -> float:
    """Half of what lies between the ends of the middle 95% of `scores`."""
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(high - low) / 2
