"""Rollouts by nets on flat memory, of one seed or several: NumPy in, NumPy out, and nothing in the loop that can wait.

A step asks the policy alone. Values, log-probabilities and distributions of all steps are worked out after the last one, in
a few large passes; random numbers are drawn before the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, ModelError, TrainingError
from .collect import Rollout
from .flat import FlatNets
from .flat_heads import Array
from .nets import MLPActorCritic
from .vector import Envs

ROWS_OF_A_PASS = 4_096


class Sampler:
    """The policies of S seeds during one rollout: random numbers drawn before it, everything but the actions worked out after it.

    It knows no environments, so that what is shown may be normalised on the way. A seed draws from its own generator what it
    would draw alone, and all of it at once: a checkpoint between rollouts needs nothing but the generator.
    """

    def __init__(self, nets: FlatNets, space: Any, num_steps: int, num_envs: int, generators: Sequence[torch.Generator]) -> None:
        """`space` is the action space of one environment, `num_envs` the number of a seed's environments."""
        from gymnasium.spaces import Discrete

        nets.attach()
        self._nets, self._part = nets, nets.part(slice(0, nets.num_seeds))
        self.is_discrete = isinstance(space, Discrete)
        width = 1 if self.is_discrete else math.prod(space.shape)
        draw = torch.rand if self.is_discrete else torch.randn  # uniform or normal, [T, S, width, N]
        drawn = [draw(num_steps, width, num_envs, generator=generator).numpy() for generator in generators]
        self._noise = np.stack(drawn, axis=1)

    def act(self, step: int, observations: Array) -> Array:
        """Numbers [S, N] (Discrete) or actions [S, N, A] (Box), not yet clipped, for float32 observations [S, N, D]."""
        actions = self._part.act(observations, self._noise[step])
        return actions if self.is_discrete else actions.swapaxes(-1, -2)

    def judge(self, observations: Array, actions: Array) -> tuple[Array, Array, Array]:
        """logp, values [S, R] and the distribution [S, R, A] or [S, R, 2, A] of rows of each seed: observations [S, R, D]."""
        pieces: list[tuple[Array, Array, Array]] = []
        for start in range(0, observations.shape[1], ROWS_OF_A_PASS):
            seen, done = (x[:, start : start + ROWS_OF_A_PASS] for x in (observations, actions))
            outputs, values = self._part.forward(seen)
            if self.is_discrete:
                done = np.eye(outputs.shape[1], dtype=np.float32)[done]
            logp = self._part.log_prob(outputs, done.swapaxes(-1, -2))
            dist = np.moveaxis(np.stack(self._part.dist(outputs), axis=1), -1, 1)  # [S, n, K, A]
            pieces.append((logp, values, dist[:, :, 0] if self.is_discrete else dist))
        logp, values, dist = (np.concatenate(column, axis=1) for column in zip(*pieces, strict=True))
        return logp, values, dist

    def values(self, seed: int, observations: Array) -> Array:
        """V [n] of one seed's float32 observations [n, D]."""
        values: Array = self._nets.part(slice(seed, seed + 1)).forward(observations[None])[1][0]
        return values


class FlatCollector:
    """Environments of S seeds in the middle of their episodes, S times N of them, one seed's below the other's."""

    def __init__(self, envs: Envs, *, seed: int | Sequence[int], num_seeds: int = 1) -> None:
        """Raises ConfigError where an episode's last observation would be lost: `envs` must reset in the same step."""
        from gymnasium.spaces import Discrete
        from gymnasium.vector import AutoresetMode

        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f"The environments' autoreset_mode is {mode}. Make them with AutoresetMode.SAME_STEP.")
        self.envs, self.num_seeds = envs, num_seeds
        self._space: Any = envs.single_action_space
        self._is_discrete = isinstance(self._space, Discrete)
        self._each = envs.num_envs // num_seeds
        self._observations = self._flat(envs.reset(seed=seed)[0])
        self._returns, self._lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)

    def collect(self, actor_critic: MLPActorCritic, num_steps: int, generator: torch.Generator) -> Rollout:
        """`num_steps` of each environment, from where the last call stopped. Raises ModelError without hand-written gradients."""
        nets = actor_critic.nets()
        if nets is None:
            raise ModelError("The head of this actor-critic has no hand-written twin. Collect with control.Collector.")
        return self.collect_seeds(nets, num_steps, [generator])[0]

    def collect_seeds(self, nets: FlatNets, num_steps: int, generators: Sequence[torch.Generator]) -> list[Rollout]:
        """One rollout of each seed, which draws from its own generator what it would draw alone.

        Raises: TrainingError where an observation or a reward is not finite.
        """
        sampler = Sampler(nets, self._space, num_steps, self._each, generators)
        shape = (num_steps, self.num_seeds, self._each)
        observations = np.empty((*shape, self._observations.shape[-1]), np.float32)
        width = () if self._is_discrete else (math.prod(self._space.shape),)
        actions = np.empty((*shape, *width), np.int64 if self._is_discrete else np.float32)
        rewards, terminated, ended = (np.empty((num_steps, self.envs.num_envs), kind) for kind in (np.float32, bool, bool))
        finals: list[tuple[int, int, Array]] = []  # step, environment, observation
        episodes: list[tuple[int, float, int]] = []  # environment, return, length
        for t in range(num_steps):
            observations[t] = self._observations
            actions[t] = sampler.act(t, self._observations)
            seen, paid, terminated[t], truncated, info = self.envs.step(self._for_envs(actions[t]))
            self._observations = self._flat(seen)
            np.logical_or(terminated[t], truncated, out=ended[t])
            rewards[t] = paid
            self._returns += paid
            self._lengths += 1
            if ended[t].any():
                for i in np.flatnonzero(ended[t]):
                    finals.append((t, int(i), np.asarray(info["final_obs"][i], np.float32).reshape(-1)))
                    episodes.append((int(i), float(self._returns[i]), int(self._lengths[i])))
                self._returns[ended[t]], self._lengths[ended[t]] = 0.0, 0
        self._refuse_poison(observations, rewards)
        columns = sampler.judge(rows_of_seeds(observations), rows_of_seeds(actions))
        logp, values, dist = (x.reshape(self.num_seeds, self._each, num_steps, *x.shape[2:]) for x in columns)
        last = np.stack([sampler.values(seed, observed) for seed, observed in enumerate(self._observations)])
        following = np.concatenate((values[..., 1:], last[..., None]), axis=2)
        self._put_final_values(sampler, following, finals)

        by_step = [np.moveaxis(x.reshape(*shape, *x.shape[3:]), 0, 2) for x in (observations, actions)]
        outcome = [x.reshape(shape).transpose(1, 2, 0) for x in (rewards, terminated, ended)]
        tables = [*by_step, logp, values, following, *outcome, dist]
        rollouts = []
        for seed in range(self.num_seeds):
            fields: list[Any] = [*(torch.from_numpy(table[seed]) for table in tables), *self._episodes_of(seed, episodes)]
            rollouts.append(Rollout(*fields))
        return rollouts

    def _put_final_values(self, sampler: Sampler, following: Array, finals: Sequence[tuple[int, int, Array]]) -> None:
        """V of the last observation of each episode that ended, where the next row holds another episode's first."""
        for seed in range(self.num_seeds):
            of_seed = [(t, i % self._each, observed) for t, i, observed in finals if i // self._each == seed]
            if of_seed:
                times, envs, observed = zip(*of_seed, strict=True)
                following[seed, list(envs), list(times)] = sampler.values(seed, np.stack(observed))

    def _episodes_of(self, seed: int, episodes: Sequence[tuple[int, float, int]]) -> tuple[tuple[float, ...], tuple[int, ...]]:
        own = [(total, length) for i, total, length in episodes if i // self._each == seed]
        return tuple(total for total, _ in own), tuple(length for _, length in own)

    def _for_envs(self, actions: Array) -> Array:
        """What the environments are given: numbers from the space's start on, or the action clipped to the box."""
        space = self._space
        if self._is_discrete:
            return actions.reshape(-1) + space.start
        clipped = np.minimum(np.maximum(actions.reshape(-1, *space.shape), space.low), space.high)
        return clipped.astype(space.dtype, copy=False)

    def _flat(self, observations: Any) -> Array:
        return np.asarray(observations, dtype=np.float32).reshape(self.num_seeds, self._each, -1)

    @staticmethod
    def _refuse_poison(observations: Array, rewards: Array) -> None:
        for name, table in (("an observation", observations), ("a reward", rewards)):
            if not np.isfinite(table).all():
                step = int(np.argwhere(~np.isfinite(table))[0][0])
                raise TrainingError(f"The environment gave {name} that is not finite, {step} steps into the rollout.")


def rows_of_seeds(x: Array) -> Array:
    """[T, S, N, ...] as rows of each seed, [S, N*T, ...]."""
    moved = np.moveaxis(x, 0, 2)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])
