r"""Advantages and the critic's losses (8.3.5). Everything is in the unit of the reward, losses in its square."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .masking import moments, zero_outside


def td_errors(
    rewards: Float[Tensor, "*shape"],
    values: Float[Tensor, "*shape"],
    next_values: Float[Tensor, "*shape"],
    terminated: Bool[Tensor, "*shape"],
    *,
    gamma: float,
) -> Float[Tensor, "*shape"]:
    r"""delta_t = r_t + gamma V(s_{t+1}) - V(s_t), with V(s_{t+1}) = 0 where `terminated` (8.3.5).

    `next_values` may hold anything there, NaN included. Where a time limit cut the episode, it holds the value of the cut state.

    Source: Sutton 1988; Schulman et al. 2016, section 3.
    """
    return rewards + gamma * zero_outside(next_values, ~terminated) - values


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    ended: Bool[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T"]:
    r"""Generalised advantage estimates, A_t = sum_k (gamma lam)^k delta_{t+k} (8.3.5).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t). Two flags end things, and they differ: `terminated` (no state follows, V(s_{t+1})
    is dropped) and `ended` (the next column is another episode or padding, the sum stops). A time limit sets `ended` alone;
    `terminated` implies `ended`, set or not. The last column ends as well.

    lam = 1 is the discounted return less the value, lam = 0 is `td_errors`. Nothing behind an end reaches the steps before it,
    NaN included. Values outside the mask are not defined. A + V are the critic's targets (TD(lambda) returns).

    Source: Schulman et al. 2016, eq. 16.
    """
    deltas = td_errors(rewards, values, next_values, terminated, gamma=gamma)
    goes_on = ~(ended | terminated)
    advantages = torch.empty_like(deltas)
    following = deltas.new_zeros(deltas.shape[0])
    for t in reversed(range(deltas.shape[1])):
        following = deltas[:, t] + gamma * lam * zero_outside(following, goes_on[:, t])
        advantages[:, t] = following
    return advantages


def value_loss(values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""(V - R)^2 / 2 (8.3.5). Minimised; with the factor 1/2, so that vf_coef = 1 here is 0.5 in Stable-Baselines3.

    Where the chapter differs: it ADDS this loss to an objective that is maximised; it must be subtracted. From V = 0 towards R
    = 1 with a step of 0.1, the chapter's sign leads to V = -0.1 and a loss of 0.605, and subtraction to V = 0.1 and 0.405 (both
    from 0.5).
    """
    return (values - returns) ** 2 / 2


def clipped_value_loss(
    values: Float[Tensor, "*shape"], values_old: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], *, cliprange: float
) -> Float[Tensor, "*shape"]:
    r"""max((V - R)^2, (clip(V, V_old +- cliprange) - R)^2) / 2, the larger of the two losses (8.3.5). Minimised.

    `values_old` are the rollout's; `cliprange` is in the unit of the reward. The gradient is 0 where V has left the range
    towards R.

    Source: OpenAI Baselines, ppo2; Huang et al. 2022, "The 37 implementation details of PPO", detail 9.
    """
    # not V_old + clip(V - V_old): that rounds, and would find 1 or 2 % of the steps clipped where none is
    clipped = values.clamp(values_old - cliprange, values_old + cliprange)
    return torch.maximum(value_loss(values, returns), value_loss(clipped, returns))


def explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    r"""1 - Var(R - V) / Var(R) over the mask (8.3.5). 1 for a perfect critic, 0 for a constant one, below 0 for a harmful one.

    Blind to a constant offset. Returns that do not vary leave the quotient undefined; it is then 1 where R - V does not vary
    either and 0 where it does (scikit-learn's convention), so that the metric is always a number. "Do not vary" means a
    standard deviation below the rounding of their mean. An empty mask gives 1.
    """
    residuals, targets = moments(returns - values, mask), moments(returns, mask)
    rounding = torch.finfo(targets.m2.dtype).eps
    is_constant = targets.variance <= (rounding * targets.mean) ** 2
    is_exact = residuals.variance <= (rounding * residuals.mean) ** 2
    quotient = residuals.variance / torch.where(is_constant, torch.ones_like(targets.variance), targets.variance)
    return 1 - torch.where(is_constant, ~is_exact, quotient)
