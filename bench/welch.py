"""Tests of means, Welch's (1947) and the paired one, with nothing but the standard library."""

from collections.abc import Sequence
from math import exp, inf, isclose, lgamma, log, log1p, pi
from statistics import fmean, variance

INTERVALS = 4000
"""Of Simpson's rule: nine digits and more."""


def welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """(difference of the means, t, degrees of freedom) of two samples of at least two."""
    a, b = variance(ours) / len(ours), variance(theirs) / len(theirs)
    difference = fmean(ours) - fmean(theirs)
    if a + b == 0:
        return difference, inf if difference > 0 else -inf if difference < 0 else 0.0, 1.0
    freedom = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    return difference, difference / (a + b) ** 0.5, freedom


def two_sided(t: float, freedom: float) -> float:
    """The chance of a |t| as large or larger under Student's distribution.

    With t = sqrt(f) tan(u) the density becomes cos(u)^(f - 1), which is integrated from |t| to infinity.
    """
    if isclose(t, 0.0):
        return 1.0
    return 2 * tail(abs(t), freedom)


def one_sided_below(t: float, freedom: float) -> float:
    """The chance of a t as small or smaller: evidence that the first mean is below the second."""
    upper = tail(abs(t), freedom) if not isclose(t, 0.0) else 0.5
    return upper if t <= 0 else 1 - upper


def tail(t: float, freedom: float) -> float:
    """The chance of more than `t` > 0."""
    if t == inf:
        return 0.0
    scale = exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / pi**0.5
    # In v = log x, x = 1 / t, the tail is smooth and falls off like exp(freedom v).
    top = -log(t)
    bottom = top - 60 / freedom - 10
    step = (top - bottom) / INTERVALS

    def density(v: float) -> float:
        x = exp(-v)  # of t
        return exp(log(x) - (freedom + 1) / 2 * log1p(x * x / freedom))

    inner = sum((4 if i % 2 else 2) * density(bottom + i * step) for i in range(1, INTERVALS))
    area = (density(bottom) + inner + density(top)) * step / 3
    return scale / freedom**0.5 * area


def p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p of equal means."""
    _, t, freedom = welch(ours, theirs)
    return two_sided(t, freedom)


def paired_p_value(differences: Sequence[float]) -> float:
    """Two-sided p of differences around zero (Student's paired test)."""
    spread = variance(differences)
    if spread == 0:
        return 0.0 if fmean(differences) else 1.0
    return two_sided(fmean(differences) / (spread / len(differences)) ** 0.5, len(differences) - 1)
