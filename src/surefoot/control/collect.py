"""Rollouts of vector environments. An episode that ended and the next one's first observation never stand in one transition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config import ControlConfig
from ..errors import ConfigError
from ..types import PPOBatch
from .columns import gae_by_column
from .nets import ControlStates, MLPActorCritic

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True, slots=True)
class Rollout:
    """T steps of each of N environments. `next_values` are V of the observation that followed, the last of an episode included.

    `terminated`: the episode came to its end, and nothing follows. `ended`: it, or a time limit, closed the episode.
    """

    observations: Float[Tensor, "N T D"]
    actions: Tensor
    logp: Float[Tensor, "N T"]
    values: Float[Tensor, "N T"]
    next_values: Float[Tensor, "N T"]
    rewards: Float[Tensor, "N T"]
    terminated: Bool[Tensor, "N T"]
    ended: Bool[Tensor, "N T"]
    dist: Tensor
    episode_returns: tuple[float, ...]
    episode_lengths: tuple[int, ...]


def make_envs(cfg: ControlConfig) -> gymnasium.vector.VectorEnv:
    """Raises ConfigError where Gymnasium is not installed or does not know the environment."""
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode
    except ImportError as missing:
        raise ConfigError("Control needs gymnasium 1.1 or newer: pip install surefoot[control].") from missing
    try:
        modes = {"autoreset_mode": AutoresetMode.SAME_STEP}
        return gymnasium.make_vec(cfg.env, num_envs=cfg.num_envs, vectorization_mode="sync", vector_kwargs=modes)
    except gymnasium.error.Error as unknown:
        raise ConfigError(f"control.env = {cfg.env!r} cannot be made: {unknown}") from unknown


class Collector:
    """Environments in the middle of their episodes."""

    def __init__(self, envs: gymnasium.vector.VectorEnv, *, seed: int) -> None:
        """Raises ConfigError where an episode's last observation would be lost: `envs` must reset in the same step."""
        from gymnasium.vector import AutoresetMode

        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f"The environments' autoreset_mode is {mode}. Make them with AutoresetMode.SAME_STEP.")
        self.envs = envs
        self._observations = self._flat(envs.reset(seed=seed)[0])
        self._returns, self._lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)

    @torch.no_grad()
    def collect(self, actor_critic: MLPActorCritic, num_steps: int, generator: torch.Generator) -> Rollout:
        """`num_steps` of each environment, from where the last call stopped."""
        steps: list[tuple[Tensor, ...]] = []
        last_observations: list[tuple[int, int, Tensor]] = []  # environment, step, observation
        returns: list[float] = []
        lengths: list[int] = []
        for t in range(num_steps):
            observations = self._observations
            dist, values = actor_critic(observations)
            actions = actor_critic.policy_head.sample(dist, generator)
            logp = actor_critic.policy_head.log_prob(dist, actions)
            seen, rewards, terminated, truncated, info = self.envs.step(self._for_envs(actions))
            ended = terminated | truncated
            self._returns += rewards
            self._lengths += 1
            for i in np.flatnonzero(ended):
                last_observations.append((int(i), t, self._flat(info["final_obs"][i][None])[0]))
                returns.append(float(self._returns[i]))
                lengths.append(int(self._lengths[i]))
            self._returns[ended], self._lengths[ended] = 0.0, 0
            self._observations = self._flat(seen)
            outcome = (torch.as_tensor(rewards, dtype=torch.float32), torch.as_tensor(terminated), torch.as_tensor(ended))
            steps.append((observations, actions, logp, values.squeeze(-1), *outcome, dist))
        columns = [torch.stack(column, dim=1) for column in zip(*steps, strict=True)]
        following = actor_critic(self._observations)[1]
        next_values = torch.cat((columns[3][:, 1:], following), dim=1)
        if last_observations:
            envs, times, observed = zip(*last_observations, strict=True)
            next_values[list(envs), list(times)] = actor_critic(torch.stack(observed))[1].squeeze(-1)
        observations, actions, logp, values, rewards, terminated, ended, dist = columns
        return Rollout(
            observations, actions, logp, values, next_values, rewards, terminated, ended, dist, tuple(returns), tuple(lengths)
        )

    def _for_envs(self, actions: Tensor) -> np.ndarray:
        """What the environments are given: numbers from the space's start on, or the action clipped to the box."""
        from gymnasium.spaces import Box, Discrete

        space = self.envs.single_action_space
        if isinstance(space, Discrete):
            return actions.numpy() + space.start
        assert isinstance(space, Box)
        return np.clip(actions.numpy().reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)

    @staticmethod
    def _flat(observations: np.ndarray) -> Float[Tensor, "N D"]:
        return torch.as_tensor(np.asarray(observations, dtype=np.float32)).flatten(1).clone()


def to_batch(rollout: Rollout, *, gamma: float, lam: float, keep_dist: bool) -> PPOBatch:
    """Rows [N*T, 1] with advantages and the critic's targets. `keep_dist` where the exact KL(pi_old || pi_theta) is wanted."""
    advantages = gae_by_column(
        rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended, gamma=gamma, lam=lam
    )

    def rows(x: Tensor) -> Tensor:
        return x.flatten(0, 1).unsqueeze(1)

    return PPOBatch(
        states=ControlStates(rows(rollout.observations), rows(rollout.next_values)),
        actions=rows(rollout.actions),
        logp_old=rows(rollout.logp),
        values_old=rows(rollout.values),
        advantages=rows(advantages),
        returns=rows(advantages + rollout.values),
        mask=torch.ones_like(rows(rollout.ended)),
        dist_old=rows(rollout.dist) if keep_dist else None,
    )
