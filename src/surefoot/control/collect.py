"""Rollouts of vector environments. An episode that ended and the next one's first observation never stand in one transition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ConfigError, TrainingError
from ..types import PPOBatch
from .columns import gae_by_column
from .environments import TRAINING, bring_to, episode_seed, flat, observation_size
from .nets import ControlStates, MLPActorCritic
from .normalize import Normalizer
from .sampler import Sampler, sampler_of
from .vector import Envs

ROUNDING = 16 * 2**-23  # of a mean, by itself: a sum of 64 products in float32, in one order and in another


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


@dataclass(frozen=True, slots=True)
class Ends:
    """The episodes that ended in a rollout: returns, lengths, and (environment, step, last observation as the critic sees it)."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    last: list[tuple[int, int, np.ndarray]] = field(default_factory=list)


class Collector:
    """Environments in the middle of their episodes.

    An episode is a function of the run's seed, its environment's number, its own number, and the actions: it begins with a seed
    made of the first three. So `state` holds the actions since each episode began, and `restore` plays them again.
    """

    def __init__(self, envs: Envs, *, seed: int, normalizer: Normalizer | None = None) -> None:
        """Raises ConfigError where an episode's last observation would be lost: the collector resets, not `envs`."""
        from gymnasium.vector import AutoresetMode

        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.DISABLED:
            raise ConfigError(f"The environments' autoreset_mode is {mode}. Make them with AutoresetMode.DISABLED.")
        count = envs.num_envs
        self.envs, self.seed = envs, seed
        self.normalizer = normalizer or Normalizer(observation_size(envs.single_observation_space), count)
        self._for_envs = bring_to(envs.single_action_space)
        self._episodes = np.zeros(count, dtype=np.int64)
        self._returns, self._lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        self._actions: list[list[Tensor]] = [[] for _ in range(count)]  # since the episode began
        self._raw = flat(envs.reset(seed=[self._seed(i) for i in range(count)])[0])
        self._check(self._raw)
        self.normalizer.learn(self._raw)

    def collect(self, actor_critic: MLPActorCritic, num_steps: int, generator: torch.Generator) -> Rollout:
        """`num_steps` of each environment, from where the last call stopped.

        Raises: TrainingError where an observation or a reward is not finite.
        """
        sampler = sampler_of(actor_critic, self.envs.single_action_space, num_steps, self.envs.num_envs, generator)
        return collect_together([self], sampler, num_steps)[0]

    def shown(self) -> Float[np.ndarray, "N D"]:
        """What the policy sees next."""
        return self.normalizer.observed(self._raw)

    def step(self, actions: np.ndarray, t: int, ends: Ends) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Takes actions as sampled: rewards as PPO sees them, terminated, ended. What ends at step `t` is entered in `ends`."""
        seen, rewards, terminated, truncated, _ = self.envs.step(self._for_envs(actions))
        ended, raw = terminated | truncated, flat(seen)
        self._returns += rewards
        self._lengths += 1
        self._check(raw, rewards)
        last, is_over = raw, ended.any()
        if is_over:
            ends.returns.extend(self._returns[ended].tolist())
            ends.lengths.extend(self._lengths[ended].tolist())
            raw = self._begin(ended)
        self.normalizer.learn(raw)
        paid = self.normalizer.paid(rewards, ended)
        if is_over:
            for i in np.flatnonzero(ended):
                ends.last.append((int(i), t, self.normalizer.observed(last[i : i + 1])[0]))
        self._raw = raw
        return paid, terminated, ended

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
        given = self._for_envs(actions.numpy())
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

    def remember(self, rollout: Rollout) -> None:
        """Keeps the actions of a rollout since each episode began, so that they can be played again."""
        for i, ends in enumerate(rollout.ended):
            last = ends.nonzero()
            if len(last):
                self._actions[i] = []
            since = rollout.actions[i, int(last[-1]) + 1 if len(last) else 0 :]
            if len(since):
                self._actions[i].append(since)

    def _check(self, raw: np.ndarray, rewards: np.ndarray | None = None) -> None:
        """Raises TrainingError where a number is not finite: a policy that has seen one is lost."""
        seen = raw.reshape(-1)
        if math.isfinite(seen.dot(seen)) and (rewards is None or math.isfinite(rewards.dot(rewards))):
            return  # the cheapest sums that no single bad number leaves finite
        what, given, bad = "an observation", raw, ~np.isfinite(raw).all(axis=1)
        if rewards is not None and not bad.any():
            what, given, bad = "a reward", rewards, ~np.isfinite(rewards)
        for i in np.flatnonzero(bad):
            raise TrainingError(
                f"The environment gave {what} that is not finite, {given[i]}: environment {i}, step {self._lengths[i]} of its "
                f"episode {self._episodes[i]}. Nothing was learned from it, and the last checkpoint stands. Mend the environment."
            )


def collect_together(collectors: Sequence[Collector], sampler: Sampler, num_steps: int) -> list[Rollout]:
    """One rollout of each collector, a seed each, all of them a step at a time; `sampler` holds their policies.

    Raises: as `Collector.collect`.
    """
    num_envs, size = collectors[0].shown().shape
    shape = (len(collectors), num_steps, num_envs)
    observations = np.empty((len(collectors), num_steps + 1, num_envs, size), np.float32)
    rewards, terminated, ended = (np.empty(shape, kind) for kind in (np.float32, bool, bool))
    chosen: list[np.ndarray] = []
    ends = [Ends() for _ in collectors]
    for seed, collector in enumerate(collectors):
        observations[seed, 0] = collector.shown()
    for t in range(num_steps):
        actions = sampler.act(t, observations[:, t])
        chosen.append(actions)
        for seed, collector in enumerate(collectors):
            rewards[seed, t], terminated[seed, t], ended[seed, t] = collector.step(actions[seed], t, ends[seed])
            observations[seed, t + 1] = collector.shown()
    seen, acted, paid, over, closed = (
        np.ascontiguousarray(x.swapaxes(1, 2))  # [S, N, T, ...]
        for x in (observations[:, :-1], np.stack(chosen, axis=1), rewards, terminated, ended)
    )
    judged = sampler.judge(*(x.reshape(len(x), -1, *x.shape[3:]) for x in (seen, acted)))
    logp, values, dist = (x.reshape(*paid.shape, *x.shape[2:]) for x in judged)
    rollouts = []
    for seed, collector in enumerate(collectors):
        following = _following(sampler, seed, values[seed], observations[seed, -1], ends[seed])
        rollout = Rollout(
            observations=torch.from_numpy(seen[seed]),
            actions=torch.from_numpy(acted[seed]),
            logp=torch.from_numpy(logp[seed]),
            values=torch.from_numpy(values[seed]),
            next_values=torch.from_numpy(following),
            rewards=torch.from_numpy(paid[seed]),
            terminated=torch.from_numpy(over[seed]),
            ended=torch.from_numpy(closed[seed]),
            dist=torch.from_numpy(dist[seed]),
            episode_returns=tuple(ends[seed].returns),
            episode_lengths=tuple(ends[seed].lengths),
        )
        collector.remember(rollout)
        rollouts.append(rollout)
    return rollouts


def _following(sampler: Sampler, seed: int, values: np.ndarray, after: np.ndarray, ends: Ends) -> np.ndarray:
    """V [N, T] of what followed each step: the next row, or the last observation of an episode, which no row holds."""
    following = np.concatenate((values[:, 1:], sampler.values(seed, after)[:, None]), axis=1)
    if ends.last:
        envs, times, observed = zip(*ends.last, strict=True)
        following[list(envs), list(times)] = sampler.values(seed, np.stack(observed))
    return following


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
        logp_rounding=rows(gaussian_rounding(rollout.actions, rollout.dist)) if rollout.actions.is_floating_point() else None,
    )


def gaussian_rounding(actions: Tensor, dist: Tensor) -> Float[Tensor, "N T"]:
    r"""What rounding may do to logp of a normal, in nats: ROUNDING sum_i |a_i - mean_i| |mean_i| / s_i^2, from d logp / d mean.

    Next to nothing unless the means have run far away, as they do where nothing limits an update. `dist` [N, T, 2, A].
    """
    mean, log_std = dist.unbind(dim=2)
    return ROUNDING * ((actions.reshape(mean.shape) - mean).abs() * mean.abs() * (-2 * log_std).exp()).sum(dim=-1)
