r"""From human choices to rewards (8.3.5): the reward model's loss, the tether, and what optimising too hard does."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from .masking import zero_outside


def ranking_loss(
    chosen: Float[Tensor, "*shape"],
    rejected: Float[Tensor, "*shape"],
    margin: Float[Tensor, "*shape"] | float | None = None,
    target: Float[Tensor, "*shape"] | float | None = None,
) -> Float[Tensor, "*shape"]:
    r"""-log sigmoid(d), d = R(x, y_w) - R(x, y_l) - margin (8.3.5). Nats; minimised.

    `margin` is the lead that the chosen answer should have, in the unit of the scores: 0 by default, larger where the
    preference is stronger (Llama 2, 2023). `target` is the share of votes for the chosen answer, 1 by default: the loss is then
    -t log sigmoid(R_w - R_l - margin) - (1 - t) log sigmoid(R_l - R_w - margin), and with margin 0 it is least at sigmoid(R_w -
    R_l) = t.

    An identical pair costs ln 2 = 0.6931 and teaches the model nothing; a difference of -1000 costs 1000, without overflow.

    Source: Bradley and Terry 1952; Christiano et al. 2017; Ouyang et al. 2022, eq. 1.
    """
    lead = chosen - rejected
    required = 0.0 if margin is None else margin
    if target is None:
        return -logsigmoid(lead - required)
    return -target * logsigmoid(lead - required) - (1 - target) * logsigmoid(-lead - required)


def pair_accuracy(chosen: Float[Tensor, "*shape"], rejected: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""1 where R(x, y_w) > R(x, y_l), 0 where it is smaller, 1/2 for a tie (8.3.5): a constant model scores 0.5. NaN scores 0."""
    return torch.where(chosen == rejected, 0.5, (chosen > rejected).to(chosen.dtype))


def tethered_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, coef: float
) -> Float[Tensor, "B T"]:
    r"""r_t = -coef * kl_t on every valid token, and the score on top at the last valid one (8.3.5).

    `kl` is the tether, one number a token in nats, exact or estimated; `coef` is in units of the score per nat. Their sum over
    a row is score - coef * KL(sequence). Masked slots get 0; a row without a valid token gets zeros and its score is lost:
    count such rows.

    Where the chapter differs: it subtracts eta * KL(SFT || policy) from the loss; practice, and the default, is KL(policy ||
    SFT) in the reward. `kl_categorical` shows that the two differ in value.

    Source: Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022.
    """
    tokens_from_here = mask.flip(1).cumsum(1).flip(1)
    is_last = mask & (tokens_from_here == 1)
    return -coef * zero_outside(kl, mask) + zero_outside(scores[:, None].expand_as(kl), is_last)


def best_of_n_kl(n: int) -> float:
    r"""KL(best of n || policy) = log n - (n - 1) / n, in nats a sequence (8.3.5).

    Exact where no two answers tie in score; an upper bound where answers repeat (Beirami et al. 2024).

    Source: Stiennon et al. 2020, appendix G.3.

    Raises: ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"Best of n takes the best of at least one answer, not of {n}.")
    return math.log(n) - (n - 1) / n


def gold_reward_best_of_n(kl: Float[Tensor, "*shape"], *, a: float, b: float) -> Float[Tensor, "*shape"]:
    r"""R(d) = d (a - b d), d = sqrt(KL): the true reward under best-of-n against a learned reward model (8.3.5).

    `kl` in nats a sequence from the start policy; R counts from that policy's own reward. The top is at d = a / (2 b): beyond
    it the learned score rises and the true reward falls. 0 for a KL of 0, and for an estimate below 0.

    Source: Gao, Schulman and Hilton 2023, eq. 1 (alpha_bon, beta_bon).
    """
    distance = _distance(kl)
    return distance * (a - b * distance)


def gold_reward_rl(kl: Float[Tensor, "*shape"], *, a: float, b: float) -> Float[Tensor, "*shape"]:
    r"""R(d) = d (a - b log d), d = sqrt(KL): the true reward under RL against a learned reward model (8.3.5).

    As `gold_reward_best_of_n`, with the top at d = exp(a / b - 1). 0 for a KL of 0, the limit of d log d.

    Source: Gao, Schulman and Hilton 2023, eq. 1 (alpha_RL, beta_RL).
    """
    distance = _distance(kl)
    return distance * (a - b * torch.where(distance > 0, distance, torch.ones_like(distance)).log())


def _distance(kl: Tensor) -> Tensor:
    """sqrt(kl), and 0 with a gradient of 0 where kl is 0 or below; the square root's own gradient is infinite there."""
    return zero_outside(torch.where(kl > 0, kl, torch.ones_like(kl)).sqrt(), kl > 0)
