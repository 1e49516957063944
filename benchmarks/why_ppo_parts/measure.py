"""What one update did, measured on samples of pi_old that no update has seen. Sums over the actions are exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.core import importance_ratio, kl_categorical
from surefoot.types import ActorCritic, PPOBatch


@dataclass(frozen=True, slots=True)
class Outcome:
    """J before and after an update, and how far the policy moved. `change_se` is 0 where J is exact.

    `ratio_mean`, `ratio_mean_se`, `ratio_var` and `ratio_max` are of fresh samples of pi_old; `ratio_var_exact` sums over all
    actions of the fresh states. `kl` is KL(pi_old || pi_theta) in nats a step, exact over actions.
    """

    return_before: float
    return_after: float
    change: float
    change_se: float
    kl: float
    ratio_mean: float
    ratio_mean_se: float
    ratio_var: float
    ratio_var_exact: float
    ratio_max: float
    samples: int


class Task(Protocol):
    """A problem whose J can be measured: exactly, or on many fresh samples with common random numbers."""

    actor_critic: ActorCritic

    def rollout(self) -> PPOBatch:
        """What an update learns from; `dist_old` is kept."""
        ...

    def before(self) -> Before:
        """J of the policy as it stands, and fresh samples of it; to be asked `after` the update."""
        ...


class Before(Protocol):
    def after(self) -> Outcome: ...


def ratio_figures(
    logits_old: Float[Tensor, "N A"], logits_new: Float[Tensor, "N A"], actions: Int[Tensor, " N"]
) -> dict[str, float]:
    r"""How far pi_theta is from pi_old on N fresh states, whose `actions` pi_old drew (8.3.2, 8.3.4).

    kl is the mean of sum_a pi_old log(pi_old / pi_theta), ratio_var_exact that of sum_a pi_theta^2 / pi_old - 1, both without
    sampling noise in the actions. r - 1 has mean 0 whatever the state, so the steps of one episode are uncorrelated and
    ratio_mean_se = std / sqrt(N) needs no correction for episodes. Everything in float64.
    """
    old, new = torch.log_softmax(logits_old.double(), -1), torch.log_softmax(logits_new.double(), -1)
    chosen = actions[:, None]
    ratio = importance_ratio(new.gather(1, chosen), old.gather(1, chosen)).squeeze(1)
    return {
        "kl": float(kl_categorical(old, new).mean()),
        "ratio_mean": float(ratio.mean()),
        "ratio_mean_se": float(ratio.std()) / math.sqrt(len(ratio)),
        "ratio_var": float(ratio.var()),
        "ratio_var_exact": float((2 * new - old).clamp(max=700).exp().sum(-1).mean()) - 1,  # e^709 would be inf
        "ratio_max": float(ratio.max()),
        "samples": len(ratio),
    }
