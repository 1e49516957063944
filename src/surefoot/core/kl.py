r"""Kullback-Leibler divergences, exact and estimated (8.3.4). Nats, unreduced.

KL(p||q) takes its expectation under p, the FIRST argument. Which policy stands first is the caller's choice and the source of
most errors: the arguments are called p and q so that each call has to say it.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def kl_categorical(logits_p: Float[Tensor, "*batch V"], logits_q: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    r"""KL(p||q) = sum_a p(a) log(p(a) / q(a)) over the last axis, exact (8.3.4). Nats.

    Logits need no normalising. 0 log 0 = 0: logits of -inf are allowed in p, and there in q too, with finite gradients; q = 0
    where p > 0 gives +inf. Computed in float32 at least, whatever the logits are. Rounding can leave a value just below 0.

    Where the chapter differs: 8.3.5 writes the tether as KL(SFT || policy); practice is KL(policy || SFT), which samples of the
    policy can estimate. They are not equal: for p = (0.5, 0.5) and q = (0.9, 0.1), KL(p||q) = 0.5108 and KL(q||p) = 0.3681.
    """
    logp_p = torch.log_softmax(logits_p.to(torch.promote_types(logits_p.dtype, torch.float32)), dim=-1)
    logp_q = torch.log_softmax(logits_q.to(torch.promote_types(logits_q.dtype, torch.float32)), dim=-1)
    p = logp_p.exp()
    zeros = torch.zeros_like(p)
    # p = 0 empties both logarithms before they meet: -inf - -inf is NaN, forwards and backwards. NaN is not 0 and stays NaN.
    return (p * (torch.where(p == 0, zeros, logp_p) - torch.where(p == 0, zeros, logp_q))).sum(-1)


def kl_gaussian(
    mean_p: Float[Tensor, "*batch D"],
    log_std_p: Float[Tensor, "*#batch D"],
    mean_q: Float[Tensor, "*batch D"],
    log_std_q: Float[Tensor, "*#batch D"],
) -> Float[Tensor, "*batch"]:
    r"""KL(p||q) of Gaussians with independent dimensions, summed over the last axis, exact (8.3.4). Nats.

    A dimension adds log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2. The standard deviations may be shared by the
    rows.

    Where the chapter differs: it calls the closed form an approximation. It is the divergence itself: for p = N(0, 1) and q =
    N(1, 2^2) it is 0.443147, and so is the integral.
    """
    gap = log_std_p - log_std_q
    return (torch.expm1(2 * gap) / 2 - gap + ((mean_p - mean_q) * torch.exp(-log_std_q)) ** 2 / 2).sum(-1)


def kl_estimate(
    logp_p: Float[Tensor, "*shape"], logp_q: Float[Tensor, "*shape"], kind: Literal["k1", "k2", "k3"]
) -> Float[Tensor, "*shape"]:
    r"""An estimate of KL(p||q) from the log-probabilities of samples of p (8.3.4). Nats; d = logp_p - logp_q.

    | kind | formula        | value                            | expected gradient where p moves      | where q moves |
    |------|----------------|----------------------------------|--------------------------------------|---------------|
    | k1   | d              | unbiased, often negative         | 0: useless as a loss                 | of KL(p||q)   |
    | k2   | d^2 / 2        | biased, second-order close, >= 0 | of KL(p||q)                          | another       |
    | k3   | exp(-d) - 1 + d| unbiased, >= 0                   | of KL(q||p), the other direction     | of KL(p||q)   |

    "Where p moves": the samples come from the very policy that is differentiated, as with a tether in the loss. "Where q
    moves": the samples are pi_old's and pi_theta is q, as in PPO-Penalty. k1 and k3 need q > 0 only where p > 0, and p > 0
    wherever q > 0 (k3).

    Source: Schulman 2020, "Approximating KL divergence"; the gradients, Tang and Munos 2025.

    Raises: ValueError for another kind.
    """
    difference = logp_p - logp_q
    match kind:
        case "k1":
            return difference
        case "k2":
            return difference**2 / 2
        case "k3":
            return torch.expm1(-difference) + difference
        case _:
            raise ValueError(f"There is no KL estimator {kind!r}. Use 'k1', 'k2' or 'k3'.")
