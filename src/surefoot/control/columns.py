"""Advantages of long rollouts of few environments, where `core.gae` spends its time on the start of operations."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import gae


def gae_by_column(
    rewards: Float[Tensor, "N T"],
    values: Float[Tensor, "N T"],
    next_values: Float[Tensor, "N T"],
    terminated: Bool[Tensor, "N T"],
    ended: Bool[Tensor, "N T"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "N T"]:
    """`core.gae` with two NumPy operations a column in place of a dozen of torch's (8.3.5).

    Where a TD error is not finite it is `core.gae` itself, which lets none of that pass an end.
    """
    bootstrapped = np.where(terminated.numpy(), 0, next_values.numpy())
    advantages = (rewards.numpy() + gamma * bootstrapped - values.numpy()).T.copy()  # TD errors first, [T, N]
    if not np.isfinite(advantages).all():
        return gae(rewards, values, next_values, terminated, ended, gamma=gamma, lam=lam)
    decays = np.where((ended | terminated).numpy(), 0, gamma * lam).astype(advantages.dtype).T.copy()
    for t in range(len(advantages) - 2, -1, -1):
        advantages[t] += decays[t] * advantages[t + 1]
    return torch.from_numpy(advantages.T.copy())
