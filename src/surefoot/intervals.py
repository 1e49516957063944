"""Shares with their intervals, and the exact binomial test. No torch and no numpy, so that the annotation page can use them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from surefoot.errors import DataError


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the range that holds the truth in 95 % (or as asked) of all repetitions; `count` observations."""

    value: float
    low: float
    high: float
    count: int

    def as_list(self) -> list[float]:
        """[low, high], the form that verdict.json keeps."""
        return [self.low, self.high]


def wilson_interval(wins: float, count: float, *, confidence: float = 0.95) -> Interval:
    r"""Wilson's score interval of a share p = wins / count, (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Stays inside [0, 1] and has width at p = 0 and p = 1, where the normal interval has none. Ties may enter as half a win: the
    variance is then overstated, never understated. `count` may be an effective number of observations.

    Raises: DataError when count is below 1 or wins is outside [0, count].
    """
    if count < 1 or not 0 <= wins <= count:
        raise DataError(f"an interval needs 1 or more observations and between 0 and that many wins; got {wins} wins of {count}.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = wins / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low = 0.0 if wins == 0 else (centre - spread) / scale  # exact at the ends, where rounding leaves 1e-17
    high = 1.0 if wins == count else (centre + spread) / scale
    return Interval(share, low, high, int(count))


def binomial_at_most(wins: int, count: int, share: float = 0.5) -> float:
    """P(X <= wins) of X ~ Binomial(count, share), exact: the sum of C(count, k) share^k (1 - share)^(count - k).

    The terms are taken as logarithms, so thousands of observations neither overflow nor vanish before they are added.
    """
    if not 0 <= share <= 1 or count < 0:
        raise DataError(f"a binomial needs a share from 0 to 1 and a count of 0 or more; got {share} and {count}.")
    if wins >= count:
        return 1.0
    if wins < 0 or share == 1:
        return 0.0
    if share == 0:
        return 1.0
    whole = math.lgamma(count + 1)
    terms = [
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * math.log(share) + (count - k) * math.log1p(-share))
        for k in range(wins + 1)
    ]
    return min(1.0, math.fsum(terms))


def binomial_at_least(wins: int, count: int, share: float = 0.5) -> float:
    """P(X >= wins), by the mirrored lower tail, so that a small one keeps its digits."""
    return binomial_at_most(count - wins, count, 1 - share)
