r"""Rules that move a KL coefficient between updates: `beta` of PPO-Penalty and `kl_coef` of the tether (8.3.4).

Floats in, a float out, once an update. `kl` and `target` are in the same unit (nats a step or nats a sequence): a target per
token and a target per sequence differ by the length. Every rule keeps 0 at 0 and other coefficients within [1e-6, 1e4].
"""

from __future__ import annotations

import math

_LOW, _HIGH = 1e-6, 1e4


def exponential_rule(coef: float, kl: float, *, target: float, rate: float, low: float = _LOW, high: float = _HIGH) -> float:
    r"""coef * exp(rate * (kl - target)), held in [low, high] (8.3.4). A coefficient of 0 stays 0.

    Computed in log space, so that a KL of 1e6 nats, or inf, gives `high` and not an overflow.

    Where the chapter differs: the gap is absolute, so `rate` carries the unit 1/nat and must change with the unit of the KL.
    With rate = 0.1, twice the target moves the coefficient by 0.1 % at a target of 0.01 nats a token, and by 5.4 % at 0.53 nats
    a sequence of 53 such tokens. `doubling_rule` and `proportional_rule` see only kl / target and answer alike.

    Raises: ValueError for a target that is not positive, a negative coefficient or rate, a KL that is not a number, or bounds
    that are not 0 < low <= high.
    """
    _check(coef, kl, target)
    if not rate >= 0:
        raise ValueError(f"The rate of a KL coefficient must be 0 or more, not {rate}: a negative one runs away from the target.")
    if not 0 < low <= high:
        raise ValueError(f"The bounds of a KL coefficient must satisfy 0 < low <= high, not low = {low} and high = {high}.")
    if coef == 0:
        return 0.0
    exponent = rate * (kl - target) if rate > 0 else 0.0  # 0 * inf is NaN
    log_coef = min(math.log(coef) + exponent, math.log(high) + 1)  # far enough above `high` to land on it exactly
    return min(max(math.exp(log_coef), low), high)


def doubling_rule(coef: float, kl: float, *, target: float) -> float:
    r"""coef * 2 where kl > 1.5 target, coef / 2 where kl < target / 1.5, coef between (8.3.4).

    Where the source differs: it has no bounds. Ours are [1e-6, 1e4]: without them a long run of small KLs halves the
    coefficient down to 0, and 0 never comes back.

    Source: Schulman et al. 2017, section 4.

    Raises: ValueError for a target that is not positive, a negative coefficient, or a KL that is not a number.
    """
    _check(coef, kl, target)
    if kl > 1.5 * target:
        return _hold(coef * 2)
    if kl < target / 1.5:
        return _hold(coef / 2)
    return _hold(coef)


def proportional_rule(coef: float, kl: float, *, target: float, horizon: float, steps: float) -> float:
    r"""coef * (1 + clip(kl / target - 1, -0.2, 0.2) * steps / horizon), Ziegler's controller (8.3.4).

    `steps` are the episodes since the last call and `horizon` is counted in episodes: after `horizon` of them at twice the
    target the coefficient is about exp(0.2) = 1.22 times as large. Held in [1e-6, 1e4].

    Source: Ziegler et al. 2019, section 2.2 (log-space proportional control).

    Raises: ValueError as `doubling_rule`; for a horizon that is not positive or negative steps; and for steps of 5 horizons or
    more, which would make the coefficient 0 or negative.
    """
    _check(coef, kl, target)
    if not 0 <= steps < 5 * horizon:
        raise ValueError(
            f"The proportional rule needs 0 <= steps < 5 * horizon, not steps = {steps} and horizon = {horizon}. "
            "Use a longer horizon."
        )
    error = min(max(kl / target - 1, -0.2), 0.2)
    return _hold(coef * (1 + error * steps / horizon))


def _hold(coef: float) -> float:
    return 0.0 if coef == 0 else min(max(coef, _LOW), _HIGH)


def _check(coef: float, kl: float, target: float) -> None:
    if not 0 < target < math.inf:
        raise ValueError(
            f"The KL target must be a positive number of nats, not {target}. To keep a coefficient fixed, use no rule."
        )
    if not 0 <= coef < math.inf:
        raise ValueError(f"A KL coefficient must be 0 or a positive number, not {coef}.")
    if math.isnan(kl):
        raise ValueError("The KL that a coefficient rule was given is not a number. Check the update that measured it.")
