"""Whether a classifier is as often right as it is sure: calibration, and one number that mends it.

Guo et al. 2017, "On Calibration of Modern Neural Networks".  Letters in shapes: N examples, C classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
HALVINGS = 60
"""Of the range of temperatures: as fine as float64 is."""


@dataclass(frozen=True)
class Bin:
    """Examples whose likeliest class has a probability above `low`, up to `high`; 0 of them have no means."""

    low: float
    high: float
    examples: int
    confidence: float | None  # the mean probability of the likeliest class
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what comes true."""

    ece: float  # expected calibration error over bins of equal width
    ece_mass: float  # the same over bins of equally many examples
    brier: float  # mean squared distance from the truth, over all classes: 0 to 2
    nll: float  # nats per example
    bins: list[Bin]  # of equal width


def calibration(log_probs: Floats, labels: Integers, bins: int = 15) -> Calibration:
    """All figures from log-probabilities [N, C] and the true classes [N], N at least 1."""
    probs = np.exp(log_probs)
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    truth = np.eye(probs.shape[1])[labels]
    widths, masses = width_bins(confidence, bins), mass_bins(confidence, bins)
    return Calibration(
        ece=error(confidence, correct, widths),
        ece_mass=error(confidence, correct, masses),
        brier=float(np.square(probs - truth).sum(axis=1).mean()),
        nll=float(-log_probs[np.arange(len(labels)), labels].mean()),
        bins=[bin_of(confidence, correct, widths == b, b / bins, (b + 1) / bins) for b in range(bins)],
    )


def width_bins(confidence: Floats, bins: int) -> Integers:
    """The bin of each of [N], bins of equal width: bin b holds (b / bins, (b + 1) / bins]."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def mass_bins(confidence: Floats, bins: int) -> Integers:
    """The bin of each of [N], bins of as equally many examples as can be with equal ones kept together."""
    ordered = np.sort(confidence)
    firsts = ordered[np.arange(bins) * len(ordered) // bins]
    return np.searchsorted(np.unique(firsts), confidence, side="right") - 1


def error(confidence: Floats, correct: NDArray[np.bool_], bin_of_each: Integers) -> float:
    """The mean over bins, by their examples, of |accuracy - confidence|."""
    gaps = np.bincount(bin_of_each, correct - confidence)  # a bin's gap times its examples
    return float(np.abs(gaps).sum() / len(confidence))


def bin_of(
    confidence: Floats, correct: NDArray[np.bool_], members: NDArray[np.bool_], low: float, high: float
) -> Bin:
    """What the examples of one bin came to."""
    count = int(members.sum())
    if not count:
        return Bin(low, high, 0, None, None)
    return Bin(low, high, count, float(confidence[members].mean()), float(correct[members].mean()))


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """The number to divide logits [N, C] by so that the true classes [N] are likeliest, within the limits.

    The loss is convex in 1 / temperature; where its slope changes sign is found by halving.
    """
    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        if slope(logits, labels, middle) < 0:
            low = middle
        else:
            high = middle
    return float(1 / np.sqrt(low * high))


def slope(logits: Floats, labels: Integers, sharpness: float) -> float:
    """The derivative of the mean loss by `sharpness`, 1 / temperature."""
    probs = np.exp(log_softmax(sharpness * logits))
    expected = (probs * logits).sum(axis=1)
    return float((expected - logits[np.arange(len(labels)), labels]).mean())


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
