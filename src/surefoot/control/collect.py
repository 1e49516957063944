"""Rollouts of vector environments. An episode that ended and the next one's first observation never stand in one transition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import gae
from ..errors import ConfigError, TrainingError
from ..types import PPOBatch
from .environments import TRAINING, episode_seed, flat, for_envs, observation_size
from .nets import ControlStates, MLPActorCritic
from .normalize import Normalizer

if TYPE_CHECKING:
    from gymnasium.vector import SyncVectorEnv


@dataclass(frozen=True, slots=True)
class Rollout:
    """T steps of each of N environments. `next_values` are V of the observation that followed, the last of an episode included.

    `observations` and `rewards` are as PPO sees them, `episode_returns` as the environment paid them.
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


class Collector:
    """Environments in the middle of their episodes.

    An episode is a function of the run's seed, its environment's number, its own number, and the actions: it begins with a seed
    made of the first three. So `state` holds the actions since each episode began, and `restore` plays them again.
    """

    def __init__(self, envs: SyncVectorEnv, *, seed: int, normalizer: Normalizer | None = None) -> None:
        """Raises ConfigError where an episode's last observation would be lost: the collector resets, not `envs`."""
        from gymnasium.vector import AutoresetMode

        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.DISABLED:
            raise ConfigError(f"The environments' autoreset_mode is {mode}. Make them with AutoresetMode.DISABLED.")
        count = envs.num_envs
        self.envs, self.seed = envs, seed
        self.normalizer = normalizer or Normalizer(observation_size(envs.single_observation_space), count)
        self._episodes = np.zeros(count, dtype=np.int64)
        self._returns, self._lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        self._actions: list[list[Tensor]] = [[] for _ in range(count)]  # since the episode began
        self._raw = flat(envs.reset(seed=[self._seed(i) for i in range(count)])[0])
        self._check(self._raw)
        self.normalizer.learn(self._raw)

    @torch.no_grad()
    def collect(self, actor_critic: MLPActorCritic, num_steps: int, generator: torch.Generator) -> Rollout:
        """`num_steps` of each environment, from where the last call stopped.

        Raises: TrainingError where an observation or a reward is not finite.
        """
        steps: list[tuple[Tensor, ...]] = []
        last_observations: list[tuple[int, int, Tensor]] = []  # environment, step, observation
        returns: list[float] = []
        lengths: list[int] = []
        space, normalizer = self.envs.single_action_space, self.normalizer
        shown = torch.from_numpy(normalizer.observed(self._raw))
        for t in range(num_steps):
            observations = shown
            dist, values = actor_critic(observations)
            actions = actor_critic.policy_head.sample(dist, generator)
            logp = actor_critic.policy_head.log_prob(dist, actions)
            seen, rewards, terminated, truncated, _ = self.envs.step(for_envs(actions.numpy(), space))
            ended, raw = terminated | truncated, flat(seen)
            self._returns += rewards
            self._lengths += 1
            self._check(raw, rewards)
            last = raw
            if ended.any():
                returns += self._returns[ended].tolist()
                lengths += self._lengths[ended].tolist()
                raw = self._begin(ended)
            normalizer.learn(raw)
            paid = normalizer.paid(rewards, ended)
            for i in np.flatnonzero(ended):
                last_observations.append((int(i), t, torch.from_numpy(normalizer.observed(last[i : i + 1])[0])))
            self._raw, shown = raw, torch.from_numpy(normalizer.observed(raw))
            outcome = (torch.as_tensor(paid, dtype=torch.float32), torch.as_tensor(terminated), torch.as_tensor(ended))
            steps.append((observations, actions, logp, values.squeeze(-1), *outcome, dist))
        observed, acted, logps, critic, paid_for, over, closed, dists = (
            torch.stack(column, dim=1) for column in zip(*steps, strict=True)
        )
        next_values = torch.cat((critic[:, 1:], actor_critic(shown)[1]), dim=1)
        if last_observations:
            which, when, what = zip(*last_observations, strict=True)
            next_values[list(which), list(when)] = actor_critic(torch.stack(what))[1].squeeze(-1)
        self._remember(acted, closed)
        episodes = tuple(returns), tuple(lengths)
        return Rollout(observed, acted, logps, critic, next_values, paid_for, over, closed, dists, *episodes)

    def state(self) -> dict[str, Tensor]:
        """All of it: where each episode is, and by which actions it came there."""
        since = [action for chunks in self._actions for action in chunks]
        return {
            "observations": torch.from_numpy(self._raw.copy()),
            "episodes": torch.from_numpy(self._episodes.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "returns": torch.from_numpy(self._returns.copy()),
            "actions": torch.cat(since) if since else torch.zeros(0),
            **{f"normalizer.{name}": tensor for name, tensor in self.normalizer.tensors().items()},
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> list[int]:
        """Goes to where `state` was taken, by playing each episode again from its seed.

        Returns the environments that came elsewhere, since they do not repeat themselves; they begin another episode.
        """
        prefix = "normalizer."
        self.normalizer.load({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
        self._episodes, self._lengths, self._returns = (tensors[n].numpy().copy() for n in ("episodes", "lengths", "returns"))
        since = tensors["actions"].split(self._lengths.tolist())
        self._actions = [[actions] if len(actions) else [] for actions in since]
        self._raw = flat(self.envs.reset(seed=[self._seed(i) for i in range(len(since))])[0])
        for i, actions in enumerate(since):
            if len(actions):
                self._raw[i] = self._replayed(i, actions)
        strayed = (self._raw != tensors["observations"].numpy()).any(axis=1)
        if strayed.any():
            for env in np.flatnonzero(strayed).tolist():
                self._actions[env] = []
            self._raw = self._begin(strayed)
        return np.flatnonzero(strayed).tolist()

    def _replayed(self, env: int, actions: Tensor) -> np.ndarray:
        """The observation after `actions`; not a number where the episode ended on the way."""
        given = for_envs(actions.numpy(), self.envs.single_action_space)
        for step, action in enumerate(given, start=1):
            seen, _, terminated, truncated, _ = self.envs.envs[env].step(action)
            if terminated or truncated:
                return np.full_like(self._raw[env], np.nan)
            if step == len(given):
                return flat(np.asarray(seen)[None])[0]
        raise AssertionError("an episode is replayed only where it has actions")

    def _begin(self, chosen: np.ndarray) -> np.ndarray:
        """Begins the next episode of the chosen environments; returns the observations of all."""
        self._episodes[chosen] += 1
        self._returns[chosen], self._lengths[chosen] = 0.0, 0
        seeds = [self._seed(i) if chosen[i] else None for i in range(len(chosen))]
        raw = flat(self.envs.reset(seed=seeds, options={"reset_mask": chosen})[0])
        self._check(raw)
        return raw

    def _seed(self, env: int) -> int:
        return episode_seed(self.seed, TRAINING, env, int(self._episodes[env]))

    def _remember(self, actions: Tensor, ended: Bool[Tensor, "N T"]) -> None:
        """Keeps the actions since each episode began."""
        for i, ends in enumerate(ended):
            last = ends.nonzero()
            if len(last):
                self._actions[i] = []
            since = actions[i, int(last[-1]) + 1 if len(last) else 0 :]
            if len(since):
                self._actions[i].append(since)

    def _check(self, raw: np.ndarray, rewards: np.ndarray | None = None) -> None:
        """Raises TrainingError where a number is not finite: a policy that has seen one is lost."""
        if np.isfinite(raw.sum(dtype=np.float64)) and (rewards is None or np.isfinite(rewards.sum())):
            return
        what, given, bad = "an observation", raw, ~np.isfinite(raw).all(axis=1)
        if rewards is not None and not bad.any():
            what, given, bad = "a reward", rewards, ~np.isfinite(rewards)
        for i in np.flatnonzero(bad):
            raise TrainingError(
                f"The environment gave {what} that is not finite, {given[i]}: environment {i}, step {self._lengths[i]} of its "
                f"episode {self._episodes[i]}. Nothing was learned from it, and the last checkpoint stands. Mend the environment."
            )


def to_batch(rollout: Rollout, *, gamma: float, lam: float, keep_dist: bool) -> PPOBatch:
    """Rows [N*T, 1] with advantages and the critic's targets. `keep_dist` where the exact KL(pi_old || pi_theta) is wanted."""
    advantages = gae(
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
