r"""What the policy maximises (8.3.1 to 8.3.4). All of it is unreduced: one number a step, masked and averaged by the caller."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def policy_gradient(logp: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""log pi(a_t|s_t) * A_t, whose gradient is the policy gradient (8.3.1). Maximised.

    `logp` in nats; `advantages` in the unit of the reward, without gradient. The value means nothing: only its gradient does,
    and only for samples of the policy that is differentiated.

    Where the chapter differs: 8.3.1 says that small steps guarantee J(new) >= J(old). That is the motivation, not a guarantee. In
    state 1 the policy goes on to state 2 with probability 0.5 (else the reward is 0), and there takes an action that pays 2 with
    probability 0.5 (else 0). Let the two probabilities become 0.60 and 0.41. All ratios stay within 1 +- 0.2, the surrogate with
    exact advantages rises by 0.010, and J falls from 0.500 to 0.492.

    Source: Williams 1992 (REINFORCE); Schulman et al. 2017, eq. 2.
    """
    return logp * advantages


def importance_ratio(logp: Float[Tensor, "*shape"], logp_old: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""r_t = pi_theta(a_t|s_t) / pi_old(a_t|s_t) = exp(logp - logp_old) (8.3.2). Without unit; 1 before the first step.

    Its expectation under pi_old is 1, as long as pi_old tries everything that pi_theta may do. float32 overflows to inf beyond a
    difference of 88 nats: that is for the caller's finite guard.

    Where the chapter differs: its identity between gradients under the new and the old policy puts r_t where the product r_0
    ... r_t of ratios belongs, so it holds at theta_old alone. In the two states of `policy_gradient`, moved to 0.60 and 0.41,
    the left side is 0.29028 for the second state's logit, the right side with r_t 0.24190, and with the product 0.29028.

    Source: Schulman et al. 2017, section 3; the product, Precup, Sutton and Singh 2000.
    """
    return torch.exp(logp - logp_old)


def clipped_surrogate(
    ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], *, epsilon: float, epsilon_high: float | None = None
) -> Float[Tensor, "*shape"]:
    r"""PPO-Clip, min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) (8.3.3). Maximised; slope 0 beyond the clip, A elsewhere.

    In the unit of the advantage. `epsilon_high` sets the upper edge apart from the lower (Yu et al. 2025, DAPO); by default
    they are equal. On the edge itself the slope is A.

    Where the chapter differs, with epsilon = 0.2:
    - A < 0, r <= 1 - epsilon: it has the two terms the wrong way round. For A = -1, r = 0.5 the first is -0.5 and the SECOND,
      -0.8, is the smaller. Its conclusion (flat) holds.
    - A < 0, r > 1 + epsilon is missing: no clip. For A = -1, r = 1.5 the value is -1.5, and it has no lower bound.
    - "Both parts are equal" for A > 0, r < 1 + epsilon fails below 1 - epsilon (A = 1, r = 0.5: 0.5 and 0.8), and for A < 0,
      r > 1 - epsilon it fails above 1 + epsilon (A = -1, r = 1.5: -1.5 and -1.2). The minimum is the first part all the same.
    - The clip takes away the incentive beyond 1 +- epsilon; it does not bound the ratio. One step of size 10 on the logit of an
      action of probability 0.5 with A = 1 leads to the ratio 1.987.
    - "No hyper-parameter" (8.3.4): epsilon is one.

    Source: Schulman et al. 2017, eq. 7.
    """
    clipped = ratio.clamp(1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high))
    return torch.minimum(ratio * advantages, clipped * advantages)


def clip_active(
    ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], *, epsilon: float, epsilon_high: float | None = None
) -> Bool[Tensor, "*shape"]:
    r"""True where the clip cuts the gradient: A > 0 and r > 1 + epsilon, or A < 0 and r < 1 - epsilon (8.3.3).

    At most as many steps as |r - 1| > epsilon, which also counts those that the clip leaves alone. An advantage of 0 has no
    gradient to cut.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    return ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - epsilon))


def kl_penalized_surrogate(
    ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], kl: Float[Tensor, "*shape"], *, beta: float
) -> Float[Tensor, "*shape"]:
    r"""PPO-Penalty, r A - beta KL(pi_old || pi_theta) (8.3.4). Maximised.

    `kl` in nats a step, with gradient: exact, or any estimate over samples of pi_old. `beta` in units of the advantage per nat,
    moved between updates by `coefficient.py`.

    Source: Schulman et al. 2017, eq. 8.
    """
    return ratio * advantages - beta * kl
