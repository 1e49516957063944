"""Running statistics that bring observations and rewards to a scale of 1, as VecNormalize of Stable-Baselines3 does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-8  # under the root, so that what never moves is divided by 1e-4 and not by 0


class RunningMoments:
    """Mean and variance of every row seen so far, in float64 (Chan et al. 1979). Starts as 1e-4 rows of mean 0 and variance 1."""

    def __init__(self, size: int) -> None:
        self.mean, self.variance, self.count = np.zeros(size), np.ones(size), 1e-4

    def update(self, rows: np.ndarray) -> None:
        """Takes `rows` [N, size] in."""
        count = len(rows)
        is_one = count == 1  # the common case of a single environment, whose moments need no reductions
        mean = rows[0].astype(np.float64) if is_one else rows.mean(axis=0, dtype=np.float64)
        within = 0.0 if is_one else rows.var(axis=0, dtype=np.float64) * count
        total, gap = self.count + count, mean - self.mean
        between = gap**2 * self.count * count / total
        self.variance = (self.variance * self.count + within + between) / total
        self.mean = self.mean + gap * count / total
        self.count = total

    def tensors(self) -> dict[str, Tensor]:
        arrays = {"mean": self.mean, "variance": self.variance, "count": np.array(self.count)}
        return {name: torch.from_numpy(np.array(array, dtype=np.float64)) for name, array in arrays.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean, self.variance = tensors["mean"].numpy().copy(), tensors["variance"].numpy().copy()
        self.count = float(tensors["count"])


class Normalizer:
    """Observations less their mean over their deviation; rewards over the deviation of the discounted return. Both are clipped.

    `learn` and `paid` move the statistics and belong to training; `observed` moves nothing and is all that evaluation calls.
    Rewards keep their mean: subtracting it would change what the agent is paid for staying alive. Where `observations` and
    `rewards` are False, what comes in goes out.
    """

    def __init__(
        self,
        size: int,
        num_envs: int,
        *,
        observations: bool = False,
        rewards: bool = False,
        gamma: float = 0.99,
        clip: float = 10.0,
    ) -> None:
        self.gamma, self.clip = gamma, clip
        self.observations = RunningMoments(size) if observations else None
        self.rewards = RunningMoments(1) if rewards else None
        self._returns = np.zeros(num_envs)  # discounted, of the episodes at hand

    def learn(self, raw: Float[np.ndarray, "N D"]) -> None:
        """Takes observations into the statistics."""
        if self.observations is not None:
            self.observations.update(raw)

    def observed(self, raw: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        """What policy and critic see in place of `raw`."""
        if self.observations is None:
            return raw
        centred = (raw - self.observations.mean) / np.sqrt(self.observations.variance + EPSILON)
        return self._clipped(centred).astype(np.float32)

    def paid(self, rewards: Float[np.ndarray, " N"], ended: np.ndarray) -> Float[np.ndarray, " N"]:
        """What PPO is paid in place of `rewards`; takes them into the statistics."""
        if self.rewards is None:
            return rewards
        self._returns = self._returns * self.gamma + rewards
        self.rewards.update(self._returns[:, None])
        self._returns[ended] = 0.0
        return self._clipped(rewards / np.sqrt(self.rewards.variance + EPSILON))

    def _clipped(self, x: np.ndarray) -> np.ndarray:
        bounded: np.ndarray = np.minimum(np.maximum(x, -self.clip), self.clip)  # a third of np.clip's time on a few numbers
        return bounded

    def tensors(self) -> dict[str, Tensor]:
        """Everything that moves, by name; {} where nothing is normalised."""
        found: dict[str, Tensor] = {}
        if self.observations is not None:
            found |= {f"observations.{name}": tensor for name, tensor in self.observations.tensors().items()}
        if self.rewards is not None:
            found |= {f"rewards.{name}": tensor for name, tensor in self.rewards.tensors().items()}
            found["returns"] = torch.from_numpy(self._returns.copy())
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """What `tensors` gave. Other numbers of environments may take it: their episodes then begin with no return."""
        for name, moments in (("observations", self.observations), ("rewards", self.rewards)):
            if moments is not None:
                moments.load({key: tensors[f"{name}.{key}"] for key in ("mean", "variance", "count")})
        if self.rewards is not None and len(tensors["returns"]) == len(self._returns):
            self._returns = tensors["returns"].numpy().copy()
