"""Conformance item 53: held-out accuracy with interval, expected calibration error, accuracy by length gap."""

import numpy as np
import pytest

from surefoot.diagnostics.calibration import accuracy_by_length_gap, accuracy_interval, calibration


def _labelled(temperature: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of (chosen, rejected) where the label is drawn with P(first wins) = sigmoid(temperature * difference)."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1.5, size=count), rng.normal(0, 1.5, size=count)
    first_wins = rng.random(count) < 1 / (1 + np.exp(-temperature * (first - second)))
    return np.where(first_wins, first, second), np.where(first_wins, second, first)


def test_item_53_a_scorer_of_known_calibration_is_measured_as_such() -> None:
    found = calibration(*_labelled(1.0))
    assert found.ece < 0.01
    assert all(abs(b.accuracy - b.confidence) < 4 * np.sqrt(0.25 / b.count) for b in found.bins)


def test_item_53_a_scorer_that_claims_twice_the_difference_is_over_confident_by_the_exact_amount() -> None:
    """Confidence sigmoid(|d|), truth sigmoid(|d| / 2): the error is the mean of their difference, here by integration."""
    chosen, rejected = _labelled(0.5)
    d = np.linspace(0, 40, 400_001)
    density = 2 * np.exp(-(d**2) / (4 * 1.5**2)) / np.sqrt(4 * np.pi * 1.5**2)
    expected = np.trapezoid((1 / (1 + np.exp(-d)) - 1 / (1 + np.exp(-d / 2))) * density, d)
    found = calibration(chosen, rejected)
    assert found.ece == pytest.approx(expected, abs=0.01)
    assert all(b.accuracy < b.confidence for b in found.bins if b.confidence > 0.6)


def test_item_53_accuracy_has_an_interval_that_shrinks_with_the_root_of_the_pairs() -> None:
    chosen, rejected = _labelled(1.0)
    wide, narrow = (accuracy_interval(chosen[:n], rejected[:n]) for n in (400, 40_000))
    assert wide.low < narrow.value < wide.high
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(10, rel=0.05)


def test_item_53_accuracy_does_not_depend_on_a_length_that_means_nothing() -> None:
    chosen, rejected = _labelled(1.0)
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 25, size=(2, chosen.size))
    overall = accuracy_interval(chosen, rejected).value
    found = accuracy_by_length_gap(chosen, rejected, *lengths)
    assert len(found) == 5
    assert all(abs(gap.accuracy.value - overall) < 4 * np.sqrt(0.25 / gap.accuracy.count) for gap in found)
