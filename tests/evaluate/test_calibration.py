"""Calibration against bins counted by hand, samplers that are calibrated, and a minimum found by SciPy."""

import math

import numpy as np
import pytest

from hasten.evaluate.calibration import (
    MOST_TEMPERATURE,
    calibration,
    fit_temperature,
    log_softmax,
    mass_bins,
    slope,
)


def sampled(count: int, classes: int = 4, sharpness: float = 2.0, seed: int = 0):
    """Logits, and labels that are drawn from their softmax."""
    draw = np.random.default_rng(seed)
    logits = sharpness * draw.normal(size=(count, classes))
    cumulative = np.exp(log_softmax(logits)).cumsum(axis=1)
    return logits, (draw.random(count)[:, None] > cumulative).sum(axis=1).clip(max=classes - 1)


def two_classes(confidences, correct):
    """Log-probabilities of two classes in which the first is the likeliest."""
    probs = np.array([[p, 1 - p] for p in confidences])
    return np.log(probs), np.where(correct, 0, 1)


def test_the_errors_are_those_of_bins_counted_by_hand():
    log_probs, labels = two_classes([0.55, 0.58, 0.95, 0.92, 0.99], [True, False, True, True, False])
    found = calibration(log_probs, labels, bins=10)
    # (0.5, 0.6]: accuracy 1/2, confidence 0.565; (0.9, 1.0]: accuracy 2/3, confidence 0.95333...
    assert found.ece == pytest.approx((2 * 0.065 + 3 * (0.9533333 - 2 / 3)) / 5)
    # five bins of one each
    expected = (0.45 + 0.58 + 0.05 + 0.08 + 0.99) / 5
    assert found.ece_mass == pytest.approx(expected)
    full = {round(each.low, 3): each for each in found.bins if each.examples}
    assert {low: each.examples for low, each in full.items()} == {0.5: 2, 0.9: 3}
    assert full[0.5].accuracy == 0.5 and full[0.5].confidence == pytest.approx(0.565)
    assert sum(each.examples for each in found.bins) == 5 and len(found.bins) == 10


def test_brier_and_nll_are_their_formulas():
    log_probs, labels = sampled(200)
    log_probs = log_softmax(log_probs)
    found = calibration(log_probs, labels)
    brier = nll = 0.0
    for row, label in zip(log_probs.tolist(), labels.tolist(), strict=True):
        brier += sum((math.exp(p) - (number == label)) ** 2 for number, p in enumerate(row)) / 200
        nll -= row[label] / 200
    assert (found.brier, found.nll) == (pytest.approx(brier), pytest.approx(nll))


@pytest.mark.parametrize("measure", ["ece", "ece_mass"])
def test_the_error_of_a_calibrated_sampler_goes_to_0(measure):
    errors = []
    for count in (300, 3_000, 100_000):
        logits, labels = sampled(count)
        errors.append(getattr(calibration(log_softmax(logits), labels), measure))
    assert errors[2] < 0.005 < errors[0]
    logits, labels = sampled(100_000)
    assert getattr(calibration(log_softmax(3 * logits), labels), measure) > 0.1


def test_the_order_of_examples_does_not_matter_even_where_many_are_equally_sure():
    draw = np.random.default_rng(0)
    logits, labels = sampled(500)
    logits = np.round(logits)  # many equal confidences
    whole = calibration(log_softmax(logits), labels)
    for _ in range(5):
        order = draw.permutation(500)
        again = calibration(log_softmax(logits[order]), labels[order])
        assert again.ece == pytest.approx(whole.ece, abs=1e-12)
        assert again.ece_mass == pytest.approx(whole.ece_mass, abs=1e-12)


def test_bins_of_equal_mass_hold_equally_many():
    confidence = np.random.default_rng(0).random(3000)
    assert set(np.bincount(mass_bins(confidence, 15))) == {200}
    assert set(mass_bins(np.full(50, 0.7), 15)) == {0}
    assert len(np.bincount(mass_bins(np.array([0.4, 0.9]), 15))) == 2


def test_certainty_and_the_edges_of_bins_are_counted():
    log_probs, labels = two_classes([1 - 1e-16, 0.6, 0.5], [True, True, False])
    found = calibration(log_probs, labels, bins=5)
    assert [each.examples for each in found.bins] == [0, 0, 2, 0, 1]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_is_where_scipy_finds_the_least_loss(sharpness):
    from scipy.optimize import minimize_scalar

    logits, labels = sampled(2000)
    logits = sharpness * logits

    def loss(log_temperature: float) -> float:
        return calibration(log_softmax(logits / math.exp(log_temperature)), labels).nll

    found = fit_temperature(logits, labels)
    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(math.exp(best.x), rel=1e-5)
    assert found == pytest.approx(sharpness, rel=0.15)  # the labels are those of the plain logits
    assert slope(logits, labels, 1 / found) == pytest.approx(0.0, abs=1e-9)


def test_a_temperature_changes_no_answer_and_stays_within_its_limits():
    logits, labels = sampled(300)
    assert np.array_equal((logits / fit_temperature(logits, labels)).argmax(1), logits.argmax(1))
    never = logits.argmin(axis=1)
    assert fit_temperature(logits, never) == pytest.approx(MOST_TEMPERATURE)
    assert fit_temperature(logits, logits.argmax(axis=1)) == pytest.approx(0.05)
