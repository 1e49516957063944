"""How far to trust a scorer: accuracy, win rate and calibration on pairs, each with its interval (8.3.5, item 53).

A pair is (score of the chosen answer, score of the rejected one). The reward model says P(chosen wins) = sigmoid(difference),
so its differences can be checked twice: is the sign right (accuracy), and does 80 % mean 80 % (calibration)? All functions are
pure; what is random takes a generator.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surefoot.errors import DataError
from surefoot.intervals import Interval, wilson_interval

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose confidence fell into one bin: their mean confidence, the share that was right, and how many they are."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Reliability bins (empty ones left out) and the expected calibration error, sum_b n_b / N |accuracy_b - confidence_b|."""

    bins: tuple[Bin, ...]
    ece: float

    def as_dict(self) -> dict[str, Any]:
        """The form that verdict.json keeps: {"bins": [{"confidence", "accuracy", "count"}], "ece"}."""
        return {
            "bins": [{"confidence": b.confidence, "accuracy": b.accuracy, "count": b.count} for b in self.bins],
            "ece": self.ece,
        }


@dataclass(frozen=True, slots=True)
class GapAccuracy:
    """Accuracy of the pairs with low <= length(chosen) - length(rejected) < high."""

    low: float
    high: float
    accuracy: Interval


def wins(after: ArrayLike, before: ArrayLike) -> Array:
    """1 where `after` is larger, 1/2 where the two are equal, 0 where it is smaller. [N]

    Raises: DataError for unequal lengths, no pair, or a number that is not finite.
    """
    a, b = _paired(after, before)
    return np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0))


def win_rate(after: ArrayLike, before: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Share of prompts on which `after` is scored above `before`, ties 1/2, with Wilson's interval."""
    won = wins(after, before)
    return wilson_interval(float(won.sum()), won.size, confidence=confidence)


def accuracy_interval(
    chosen: ArrayLike, rejected: ArrayLike, clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Interval:
    r"""Pair accuracy, the share of pairs with R(x, y_w) > R(x, y_l), ties 1/2, with Wilson's interval (8.3.5).

    Pairs of one prompt share answers, and so their errors: `clusters` names the prompt of each. With w_g wins of n_g pairs in
    each of G clusters and N pairs in all, the share p = sum w_g / N has the variance G/(G-1) sum_g (w_g - p n_g)^2 / N^2
    (linearised ratio), that of p (1 - p) / variance independent pairs; Wilson's interval is taken for so many, at most N.
    With one cluster, or no variance between them, each cluster counts as one pair.

    Raises: DataError as `wins`, or where `clusters` does not name one for each pair.
    """
    won = wins(chosen, rejected)
    if clusters is None:
        return wilson_interval(float(won.sum()), won.size, confidence=confidence)
    if len(clusters) != won.size:
        raise DataError(f"{won.size} pairs have {len(clusters)} clusters named. Name one for each pair.")
    _, member = np.unique([hash(cluster) for cluster in clusters], return_inverse=True)
    share, sizes = float(won.mean()), np.bincount(member)
    residuals = np.bincount(member, weights=won) - share * sizes
    squares = float((residuals**2).sum()) * sizes.size / max(1, sizes.size - 1) / won.size**2
    independent = share * (1 - share) / squares if squares > 0 else float(sizes.size)
    count = max(1.0, min(independent, float(won.size)))
    interval = wilson_interval(share * count, count, confidence=confidence)
    return Interval(share, interval.low, interval.high, won.size)


def bootstrap_interval(
    values: ArrayLike, generator: np.random.Generator, *, confidence: float = 0.95, resamples: int = 2_000
) -> Interval:
    """Mean of `values` with its percentile bootstrap interval: means of `resamples` draws of N values with replacement.

    For a win rate pass `wins(after, before)`. Needs no normality; with N below about 20 it is too narrow. The draws are made in
    blocks, so that memory stays at some 8 MB whatever N is.
    """
    x = _finite(values, "values")
    means = np.empty(resamples)
    block = max(1, 1_000_000 // x.size)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        means[start:stop] = x[generator.integers(0, x.size, size=(stop - start, x.size))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), int(x.size))


def calibration(chosen: ArrayLike, rejected: ArrayLike, *, num_bins: int = 10) -> Calibration:
    """Reliability of P(chosen wins) = sigmoid(d), d = R(x, y_w) - R(x, y_l), and the expected calibration error (item 53).

    A pair has no first and second, so it is folded: confidence sigmoid(|d|) in [1/2, 1] that the higher score wins, right when
    d > 0, half right when d = 0. Bins are equally wide on [1/2, 1]; 1 belongs to the last. A scorer with P(right | d) =
    sigmoid(|d|) has accuracy = confidence in every bin and an error that goes to 0 like 1 / sqrt(N).

    Only raw scores, in the unit of the ranking loss, are calibrated: dividing them by their deviation changes the temperature.
    """
    if num_bins < 1:
        raise DataError(f"num_bins = {num_bins}; use 1 or more.")
    won = wins(chosen, rejected)
    a, b = _paired(chosen, rejected)
    confidence = 1 / (1 + np.exp(-np.abs(a - b)))
    which = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    bins = tuple(
        Bin(float(confidence[inside].mean()), float(won[inside].mean()), int(inside.sum()))
        for inside in (which == k for k in range(num_bins))
        if inside.any()
    )
    return Calibration(bins, sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / won.size)


def accuracy_by_length_gap(
    chosen: ArrayLike,
    rejected: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    edges: Sequence[float] = (-9, -2, 3, 10),
    confidence: float = 0.95,
) -> tuple[GapAccuracy, ...]:
    """Pair accuracy by length(chosen) - length(rejected), in tokens. The default bins are ..-10, -9..-3, -2..2, 3..9, 10.. .

    A scorer that pays for length is right where the chosen answer is the longer one and wrong where it is the shorter one; one
    that does not has about the same accuracy in all bins. Empty bins are left out.

    Raises: DataError for edges that do not rise, and as `wins` does.
    """
    if any(low >= high for low, high in pairwise(edges)):
        raise DataError(f"edges = {tuple(edges)} must rise.")
    won = wins(chosen, rejected)
    long, short = _paired(chosen_length, rejected_length)
    if long.size != won.size:
        raise DataError(f"{long.size} lengths for {won.size} pairs; give one of each.")
    gap = long - short
    borders = (-math.inf, *map(float, edges), math.inf)
    found = []
    for low, high in pairwise(borders):
        inside = won[(gap >= low) & (gap < high)]
        if inside.size:
            found.append(GapAccuracy(low, high, wilson_interval(float(inside.sum()), inside.size, confidence=confidence)))
    return tuple(found)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    """Both as float64 vectors of one length."""
    a, b = _finite(first, "first"), _finite(second, "second")
    if a.size != b.size:
        raise DataError(f"pairs need equally many numbers on both sides; got {a.size} and {b.size}.")
    return a, b


def _finite(x: ArrayLike, name: str) -> Array:
    """`x` as a float64 vector that is not empty and holds finite numbers only."""
    vector = np.asarray(x, dtype=np.float64).reshape(-1)
    if vector.size == 0:
        raise DataError(f"{name}: no numbers, so there is no mean and no interval.")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise DataError(
            f"{name}[{bad[0]}] = {vector[bad[0]]} is not finite ({bad.size} of {vector.size}). Leave rows without a score out."
        )
    return vector
