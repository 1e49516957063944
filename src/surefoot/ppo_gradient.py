"""The partial derivatives of `ppo_loss` by what the actor-critic says, in closed form, for nets that are differentiated by hand.

`ppo_loss` under autograd is the oracle: a test holds every objective and option against it. Arrays are NumPy's, which spends a
third of torch's time on a small operation; a minibatch of 64 steps is made of little else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .config import PPOConfig
from .types import Judgement

Array = np.ndarray[Any, np.dtype[Any]]

# rows of the table whose sums are LossParts; the last one is the entropy as the loss weighs it
_POLICY, _VALUE, _TOTAL, _KL, _, _CLIPPED, _OUTSIDE, _VALUE_CLIPPED, _GAP, _GAP_SQUARED, _ABS_LOG_RATIO, _ENTROPY = range(12)
_WEIGHED_ENTROPY = 12


class Columns(NamedTuple):
    """Of each chosen step of S seeds, [S, n]: what the rollout holds. `mask` None: every step counts."""

    logp_old: Array
    values_old: Array
    advantages: Array
    returns: Array
    mask: Array | None


def loss_slopes(
    judged: Judgement,
    rows: Columns,
    cfg: PPOConfig,
    *,
    beta: Array | float,
    weight: Array | float,
    critic_only: bool = False,
) -> tuple[Judgement, Array, Array]:
    r"""d loss / d (logp, values, entropy, exact KL), each [S, n], for the loss of `ppo_loss` without a tether (8.3.3 to 8.3.5).

    `weight` [S, n] is what a step weighs in the mean: mask / count, and with sequence_mean mask / (row length * count). `beta`
    is a number, or [S, 1]. With w the weight, r the ratio and A the advantage:

    | term                     | by                | partial derivative                                        |
    |--------------------------|-------------------|-----------------------------------------------------------|
    | clip                     | logp              | -w r A, and 0 where the clip cuts                         |
    | penalty                  | logp              | -w r A, + w beta (r - 1) with k3, - w beta with k1        |
    | penalty, exact           | kl                | w beta                                                    |
    | policy_gradient          | logp              | -w A                                                      |
    | vf_coef * value loss     | values            | w vf_coef (V - R), and 0 where clipped V is worse         |
    | -ent_coef * entropy      | entropy           | -w ent_coef                                               |

    Also returns, of each seed: the sums of LossParts [S, 12] (losses as means: times `count` they are sums), and the largest
    log ratio and |log ratio|, [2, S] (-inf without a valid step).
    """
    (logp, values, entropy, kl), (logp_old, values_old, advantages, returns, mask) = _emptied(judged, rows)
    table = np.zeros((13, *logp.shape), logp.dtype)
    log_ratio = logp - logp_old
    gap = np.expm1(log_ratio, out=table[_GAP])
    ratio = gap + 1
    penalty = cfg.beta_estimator if cfg.objective == "penalty" else ""
    if kl is None or penalty == "k3":
        kl = np.subtract(gap, log_ratio, out=table[_KL])
    else:
        table[_KL] = kl
    high = cfg.cliprange if cfg.cliprange_high is None else cfg.cliprange_high
    clipped_ratio = np.minimum(np.maximum(ratio, 1 - cfg.cliprange), 1 + high)
    np.not_equal(clipped_ratio, ratio, out=table[_OUTSIDE], casting="unsafe")

    surrogate, by_logp, by_kl = _surrogate(cfg, logp, log_ratio, ratio, clipped_ratio, advantages, kl, beta, table)
    by_logp *= weight
    np.multiply(surrogate, weight, out=table[_POLICY])
    value, by_value = _value(cfg, values, values_old, returns, table)
    np.multiply(value, weight, out=table[_VALUE])
    by_value *= cfg.vf_coef * weight
    np.multiply(gap, gap, out=table[_GAP_SQUARED])
    np.abs(log_ratio, out=table[_ABS_LOG_RATIO])
    table[_ENTROPY] = entropy
    np.multiply(entropy, weight, out=table[_WEIGHED_ENTROPY])

    highest = _highest(log_ratio, table[_ABS_LOG_RATIO], mask)
    sums = np.add.reduce(table, axis=-1).T
    sums[:, _POLICY] *= -1
    sums[:, _TOTAL] = cfg.vf_coef * sums[:, _VALUE]
    if critic_only:
        return Judgement(None, by_value, None, None), sums[:, :12], highest
    sums[:, _TOTAL] += sums[:, _POLICY] - cfg.ent_coef * sums[:, _WEIGHED_ENTROPY]
    by_entropy = np.full_like(logp, -cfg.ent_coef) * weight if cfg.ent_coef else None
    by_kl = None if by_kl is None else by_kl * weight
    return Judgement(by_logp, by_value, by_entropy, by_kl), sums[:, :12], highest


def _emptied(judged: Judgement, rows: Columns) -> tuple[Judgement, Columns]:
    """Zeros outside the mask, before any arithmetic: what stands there may be NaN."""
    if (mask := rows.mask) is None:
        return judged, rows
    said = (None if x is None else np.where(mask, x, 0) for x in judged)
    logp_old, values_old, advantages, returns = (np.where(mask, x, 0) for x in rows[:4])
    return Judgement(*said), Columns(logp_old, values_old, advantages, returns, mask)


def _surrogate(
    cfg: PPOConfig,
    logp: Array,
    log_ratio: Array,
    ratio: Array,
    clipped_ratio: Array,
    advantages: Array,
    kl: Array,
    beta: Array | float,
    table: Array,
) -> tuple[Array, Array, Array | None]:
    """The objective, and the derivative of MINUS it by logp and by the exact KL, all unweighed."""
    if cfg.objective == "policy_gradient":
        return logp * advantages, -advantages, None
    gain = ratio * advantages
    if cfg.objective == "clip":
        surrogate = np.minimum(gain, clipped_ratio * advantages)
        is_cut = np.less(surrogate, gain, out=table[_CLIPPED], casting="unsafe")
        return surrogate, np.where(is_cut, 0, -gain), None
    match cfg.beta_estimator:
        case "exact":
            return gain - beta * kl, -gain, np.broadcast_to(np.asarray(beta, logp.dtype), logp.shape)
        case "k1":
            return gain + beta * log_ratio, -gain - beta, None
        case "k3":
            return gain - beta * kl, beta * (ratio - 1) - gain, None


def _value(cfg: PPOConfig, values: Array, values_old: Array, returns: Array, table: Array) -> tuple[Array, Array]:
    """The value loss and its derivative by the values. Where both losses tie outside the range, autograd halves the slope."""
    error = values - returns
    plain = error * error * 0.5
    if cfg.cliprange_value is None:
        return plain, error
    clipped = np.minimum(np.maximum(values, values_old - cfg.cliprange_value), values_old + cfg.cliprange_value)
    other = (clipped - returns) ** 2 * 0.5
    np.greater(other, plain, out=table[_VALUE_CLIPPED], casting="unsafe")
    share = np.where(clipped == values, 1, np.where(plain > other, 1, np.where(plain == other, 0.5, 0)))
    return np.maximum(plain, other), error * share.astype(error.dtype)


def _highest(log_ratio: Array, magnitude: Array, mask: Array | None) -> Array:
    if mask is not None:
        log_ratio, magnitude = (np.where(mask, x, -np.inf) for x in (log_ratio, magnitude))
    return np.stack((np.maximum.reduce(log_ratio, axis=-1), np.maximum.reduce(magnitude, axis=-1)))
