r"""How the true reward rises and falls while a learned one is optimised: best-of-n, laws, knees, intervals (8.3.5).

d = sqrt(KL(policy || SFT)), KL in nats a sequence. A gain is a score less that of the SFT model. Everything here is arithmetic on
arrays; what is random is drawn from a seed. Intervals are percentiles over bootstrap draws of prompts: all points of a curve
are measured on the same prompts, and are drawn together.

Sources: Gao, Schulman and Hilton 2023 (laws); Nakano et al. 2021, appendix I (the unbiased estimator of best-of-n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.core import best_of_n_kl, gold_reward_best_of_n, gold_reward_rl
from surefoot.errors import DataError

Array = NDArray[np.float64]
Kind = Literal["best_of_n", "rl"]

MIN_POINTS = 3  # away from the SFT model, before two parameters are fitted
CONFIDENCE = 0.95
TINY = 1e-12
_LAWS = {"best_of_n": gold_reward_best_of_n, "rl": gold_reward_rl}


@dataclass(frozen=True, slots=True)
class Curve:
    """What was measured on the way from the SFT model: T points, each on the same P prompts.

    `kl` [T, P] nats a sequence, `gain` [T, P] in any unit. `names` are the points' own: updates of PPO, or n.
    """

    kind: Kind
    names: tuple[int, ...]
    kl: Array
    gain: Array

    def __post_init__(self) -> None:
        if self.kl.shape != self.gain.shape or self.kl.ndim != 2 or len(self.names) != len(self.kl):
            raise DataError(f"a curve of {len(self.names)} points has KLs {self.kl.shape} and gains {self.gain.shape}.")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the 95 % interval of its bootstrap."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Fit:
    """A law fitted to a curve. `draws` [R, 2] are (alpha, beta) of the bootstrap.

    `knee` is the KL at the law's top, None where it never falls; `knee_share` the share of draws whose top lies within the
    largest KL that was measured.
    """

    kind: Kind
    alpha: Estimate
    beta: Estimate
    draws: Array
    knee: float | None
    knee_interval: tuple[float, float] | None
    knee_share: float

    def at(self, kl: Array) -> Array:
        """The law's gain at `kl`."""
        return law(self.kind, kl, self.alpha.value, self.beta.value)

    def band(self, kl: Array) -> tuple[Array, Array]:
        """Lower and upper end of the 95 % interval of the law's gain at `kl`."""
        columns = _columns(self.kind, kl)
        every = self.draws @ columns  # [R, len(kl)]
        return _quantiles(every)


@dataclass(frozen=True, slots=True)
class Turn:
    """The top of a curve in the data, and the way from there to its end; the SFT model itself counts as the first point.

    `rise` is the gain at the top, `fall` the loss from there to the last point. The top is sought on one half of the prompts and
    measured on the other, and the two halves' figures are averaged, so that the luck of the highest point is not counted.
    """

    top: int | None  # index of the point that is highest over all prompts; None: the SFT model
    rise: Estimate
    fall: Estimate


def law(kind: Kind, kl: Array, alpha: float, beta: float) -> Array:
    """The gain that the law of `kind` gives at `kl`: d (alpha - beta d) of best-of-n, d (alpha - beta log d) of RL."""
    found: Array = _LAWS[kind](torch.from_numpy(np.asarray(kl, dtype=np.float64)), a=alpha, b=beta).numpy()
    return found


def top_of(kind: Kind, alpha: float, beta: float) -> float | None:
    """KL at which the law is highest: (alpha / 2 beta)^2 of best-of-n, exp(2 (alpha / beta - 1)) of RL. None: it never falls.

    A law of best-of-n with alpha <= 0 and beta > 0 falls from the start: 0.
    """
    if beta <= 0:
        return None
    if kind == "best_of_n":
        return max(alpha / (2 * beta), 0.0) ** 2
    return math.exp(min(2 * (alpha / beta - 1), 700.0))  # exp(700) is about the largest number


def best_of_n_weights(count: int, n: int) -> Array:
    r"""Share of the n-subsets of `count` ranked samples whose highest is the i-th lowest: C(i-1, n-1) / C(count, n). [count]

    Raises: DataError where n is not within 1..count.
    """
    if not 1 <= n <= count:
        raise DataError(f"best of {n} cannot be taken of {count} samples. Use 1 to {count}.")
    whole = math.comb(count, n)
    return np.array([math.comb(i, n - 1) / whole for i in range(count)])


def best_of_n(proxy: Array, values: Array, n: int) -> Array:
    """The mean of `values` at the sample that `proxy` likes best, over all subsets of n of each prompt's N samples. [P, N] -> [P]

    Unbiased for best-of-n with fresh samples (Nakano et al. 2021). Samples with one proxy score share their ranks: whichever of
    them were taken, their values count alike.
    """
    proxy, values = np.asarray(proxy, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if proxy.shape != values.shape or proxy.ndim != 2:
        raise DataError(f"best of n needs a score and a value for each sample; got {proxy.shape} and {values.shape}.")
    weights = best_of_n_weights(proxy.shape[1], n)
    found = np.empty(len(proxy))
    for row, (scores, kept) in enumerate(zip(proxy, values, strict=True)):
        order = np.argsort(scores, kind="stable")
        _, group = np.unique(scores[order], return_inverse=True)
        shared = np.bincount(group, weights=kept[order]) / np.bincount(group)
        found[row] = weights @ shared[group]
    return found


def sizes(count: int) -> list[int]:
    """Values of n from 1 to `count`, evenly spaced in log n: 1, 2, 3, 4, 6, 8, 11, 16, ..."""
    steps = [round(2 ** (k / 2)) for k in range(2 * count.bit_length() + 1)]
    return sorted({n for n in steps if n <= count} | {count})


def best_of_n_curve(proxy: Array, values: Array, baseline: Array) -> Curve:
    """Best-of-n of pools [P, N] for n = 1..N, its gain over `baseline` [P], each prompt's mean. KL is log n - (n-1)/n."""
    every = sizes(np.asarray(proxy).shape[1])
    gains = np.stack([best_of_n(proxy, values, n) - baseline for n in every])
    kl = np.repeat([[best_of_n_kl(n)] for n in every], gains.shape[1], axis=1)
    return Curve("best_of_n", tuple(every), kl, gains)


def draws(num_prompts: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """Bootstrap draws of prompts [R, P]: the even and the odd ones each among themselves, the even first.

    Equal arguments give equal draws, so that curves on the same prompts are drawn alike and can be subtracted.
    """
    if num_prompts < 2:
        raise DataError(f"{num_prompts} prompt has no bootstrap. Measure on 2 prompts or more.")
    generator = np.random.default_rng(seed)
    parts = [np.arange(first, num_prompts, 2) for first in (0, 1)]
    return np.concatenate([part[generator.integers(0, len(part), (resamples, len(part)))] for part in parts], axis=1)


def fit(curve: Curve, resamples: NDArray[np.int64]) -> Fit | None:
    """Least squares of the law over the points; None where fewer than MIN_POINTS lie away from the SFT model."""
    kl, gain = curve.kl.mean(1), curve.gain.mean(1)
    if (kl > TINY).sum() < MIN_POINTS:
        return None
    alpha, beta = _least_squares(curve.kind, kl[None], gain[None])[0]
    found = _least_squares(curve.kind, _drawn(curve.kl, resamples), _drawn(curve.gain, resamples))
    tops = [top_of(curve.kind, a, b) for a, b in found]
    inside = [top for top in tops if top is not None and top <= kl.max()]
    knee = top_of(curve.kind, alpha, beta)
    ends = np.array([math.inf if top is None else top for top in tops])
    low, high = (float(x) for x in np.quantile(ends, _TAILS, method="nearest"))
    return Fit(
        curve.kind,
        Estimate(float(alpha), *_ends(found[:, 0])),
        Estimate(float(beta), *_ends(found[:, 1])),
        found,
        knee,
        (low, high) if math.isfinite(low) else None,
        len(inside) / len(tops),
    )


def turn(curve: Curve, resamples: NDArray[np.int64]) -> Turn:
    """Where the curve is highest, how high, and how far it fell from there, each half of the prompts judging the other's top."""
    with_sft = np.vstack([np.zeros((1, curve.gain.shape[1])), curve.gain])
    top = int(with_sft.mean(1).argmax())
    even = -(-with_sft.shape[1] // 2)
    straight = np.concatenate([np.arange(first, with_sft.shape[1], 2) for first in (0, 1)])[None]
    rise, fall = (x[0] for x in _cross_fitted(with_sft, straight, even))
    rises, falls = _cross_fitted(with_sft, resamples, even)
    return Turn(top - 1 if top else None, Estimate(float(rise), *_ends(rises)), Estimate(float(fall), *_ends(falls)))


def gain_at(curve: Curve, levels: Sequence[float], resamples: NDArray[np.int64]) -> Array:
    """The curve's gain at each KL of `levels`, straight lines in d between the points and from the SFT model; [1 + R, levels].

    Row 0 is of all prompts, the others of the draws. Beyond the last point it stays at that point's gain.
    """
    straight = np.arange(curve.kl.shape[1])[None]
    wanted = np.sqrt(np.asarray(levels, dtype=np.float64))
    rows = []
    for which in (straight, resamples):
        d, gain = np.sqrt(np.maximum(_drawn(curve.kl, which), 0.0)), _drawn(curve.gain, which)
        for distance, height in zip(d, gain, strict=True):
            order = np.argsort(distance, kind="stable")
            rows.append(np.interp(wanted, np.r_[0.0, distance[order]], np.r_[0.0, height[order]]))
    return np.array(rows)


def estimate(every: Array) -> Estimate:
    """A figure over [1 + R] values, of which the first is that of all prompts."""
    return Estimate(float(every[0]), *_ends(every[1:]))


def mean_interval(gain: Array, resamples: NDArray[np.int64]) -> list[Estimate]:
    """The mean of each point of [T, P], with its interval."""
    low, high = _quantiles(_drawn(gain, resamples))
    return [Estimate(float(m), float(a), float(b)) for m, a, b in zip(gain.mean(1), low, high, strict=True)]


_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def _drawn(values: Array, resamples: NDArray[np.int64]) -> Array:
    """Means over each draw of prompts: [T, P] -> [R, T]."""
    found: Array = np.stack([row[resamples].mean(1) for row in values], axis=1)
    return found


def _columns(kind: Kind, kl: Array) -> Array:
    """What alpha and beta are multiplied by, [2, ...]: the laws are linear in both."""
    return np.stack([law(kind, kl, 1.0, 0.0), law(kind, kl, 0.0, 1.0)])


def _least_squares(kind: Kind, kl: Array, gain: Array) -> Array:
    """(alpha, beta) of each row of [R, T], by the normal equations; the smallest solution where the points lie on one d."""
    columns = _columns(kind, kl)
    gram = np.einsum("irt,jrt->rij", columns, columns)
    right = np.einsum("irt,rt->ri", columns, gain)
    return np.einsum("rij,rj->ri", np.linalg.pinv(gram, rcond=1e-10, hermitian=True), right)


def _cross_fitted(gain: Array, resamples: NDArray[np.int64], even: int) -> tuple[Array, Array]:
    """(rise, fall) of each draw: the top of one half of the prompts, the gains of the other, both ways, averaged."""
    halves = [_drawn(gain, resamples[:, :even]), _drawn(gain, resamples[:, even:])]
    rows = np.arange(len(resamples))
    rise, fall = np.zeros(len(resamples)), np.zeros(len(resamples))
    for sought, measured in (halves, halves[::-1]):
        height = measured[rows, sought.argmax(1)]
        rise, fall = rise + height / 2, fall + (height - measured[:, -1]) / 2
    return rise, fall


def _ends(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, _TAILS)
    return float(low), float(high)


def _quantiles(every: Array) -> tuple[Array, Array]:
    low, high = np.quantile(every, _TAILS, axis=0)
    return low, high


def as_lists(values: Any) -> Any:
    """Arrays as the lists that JSON holds, rounded to six digits after the point."""
    return np.round(np.asarray(values, dtype=np.float64), 6).tolist()
