"""Rollouts by nets on flat memory, of one seed or several: NumPy in, NumPy out, and nothing in the loop that can wait.

A step asks the policy alone. Values, log-probabilities and distributions of all steps are worked out after the last one, in
a few large passes; random numbers are drawn before the first.
"""

from __future__ import annotations

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
        nets.attach()
        part = nets.part(slice(0, self.num_seeds))
        noise = self._noise(num_steps, generators)
        shape = (num_steps, self.num_seeds, self._each)
        observations = np.empty((*shape, self._observations.shape[-1]), np.float32)
        width = () if self._is_discrete else (self._space_size(),)
        actions = np.empty((*shape, *width), np.int64 if self._is_discrete else np.float32)
        rewards, terminated, ended = (np.empty((num_steps, self.envs.num_envs), kind) for kind in (np.float32, bool, bool))
        finals: list[tuple[int, int, Array]] = []  # step, environment, observation
        episodes: list[tuple[int, float, int]] = []  # environment, return, length
        for t in range(num_steps):
            observations[t] = self._observations
            chosen = part.act(observations[t], noise[t])
            actions[t] = chosen if self._is_discrete else chosen.swapaxes(-1, -2)
            seen, rewards[t], terminated[t], truncated, info = self.envs.step(self._for_envs(actions[t]))
            self._observations = self._flat(seen)
            np.logical_or(terminated[t], truncated, out=ended[t])
            self._returns += rewards[t]
            self._lengths += 1
            if ended[t].any():
                for i in np.flatnonzero(ended[t]):
                    finals.append((t, int(i), np.asarray(info["final_obs"][i], np.float32).reshape(-1)))
                    episodes.append((int(i), float(self._returns[i]), int(self._lengths[i])))
                self._returns[ended[t]], self._lengths[ended[t]] = 0.0, 0
        self._refuse_poison(observations, rewards)
        columns = judged_rows(nets, rows_of_seeds(observations), rows_of_seeds(actions), is_discrete=self._is_discrete)
        logp, values, dist = (x.reshape(self.num_seeds, self._each, num_steps, *x.shape[2:]) for x in columns)
        following = np.concatenate((values[..., 1:], part.forward(self._observations)[1][..., None]), axis=2)
        self._put_final_values(nets, following, finals)

        by_step = [np.moveaxis(x.reshape(*shape, *x.shape[3:]), 0, 2) for x in (observations, actions)]
        outcome = [x.reshape(shape).transpose(1, 2, 0) for x in (rewards, terminated, ended)]
        tables = [*by_step, logp, values, following, *outcome, dist]
        rollouts = []
        for seed in range(self.num_seeds):
            fields: list[Any] = [*(torch.from_numpy(table[seed]) for table in tables), *self._episodes_of(seed, episodes)]
            rollouts.append(Rollout(*fields))
        return rollouts

    def _put_final_values(self, nets: FlatNets, following: Array, finals: Sequence[tuple[int, int, Array]]) -> None:
        """V of the last observation of each episode that ended, where the next row holds another episode's first."""
        for seed in range(self.num_seeds):
            of_seed = [(t, i % self._each, observed) for t, i, observed in finals if i // self._each == seed]
            if of_seed:
                times, envs, observed = zip(*of_seed, strict=True)
                values = nets.part(slice(seed, seed + 1)).forward(np.stack(observed)[None])[1][0]
                following[seed, list(envs), list(times)] = values

    def _episodes_of(self, seed: int, episodes: Sequence[tuple[int, float, int]]) -> tuple[tuple[float, ...], tuple[int, ...]]:
        own = [(total, length) for i, total, length in episodes if i // self._each == seed]
        return tuple(total for total, _ in own), tuple(length for _, length in own)

    def _noise(self, num_steps: int, generators: Sequence[torch.Generator]) -> Array:
        """[T, S, 1, N] uniform numbers for Discrete, [T, S, A, N] normal ones for Box."""
        draw = torch.rand if self._is_discrete else torch.randn
        width = 1 if self._is_discrete else self._space_size()
        drawn = [draw(num_steps, width, self._each, generator=generator).numpy() for generator in generators]
        return np.stack(drawn, axis=1)

    def _for_envs(self, actions: Array) -> Array:
        """What the environments are given: numbers from the space's start on, or the action clipped to the box."""
        space = self._space
        if self._is_discrete:
            return actions.reshape(-1) + space.start
        clipped = np.minimum(np.maximum(actions.reshape(-1, *space.shape), space.low), space.high)
        return clipped.astype(space.dtype, copy=False)

    def _space_size(self) -> int:
        return int(np.prod(self._space.shape))

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


def judged_rows(nets: FlatNets, observations: Array, actions: Array, *, is_discrete: bool) -> tuple[Array, Array, Array]:
    """logp, values [S, R] and the distribution [S, R, A] or [S, R, 2, A] of rows of each seed."""
    part = nets.part(slice(0, nets.num_seeds))
    pieces: list[tuple[Array, Array, Array]] = []
    for start in range(0, observations.shape[1], ROWS_OF_A_PASS):
        seen, done = (x[:, start : start + ROWS_OF_A_PASS] for x in (observations, actions))
        outputs, values = part.forward(seen)
        if is_discrete:
            done = np.eye(outputs.shape[1], dtype=np.float32)[done]
        logp = part.log_prob(outputs, done.swapaxes(-1, -2))
        dist = np.stack(part.dist(outputs), axis=1)  # [S, K, A, n]
        dist = np.moveaxis(dist, -1, 1)
        pieces.append((logp, values, dist[:, :, 0] if is_discrete else dist))
    logp, values, dist = (np.concatenate(column, axis=1) for column in zip(*pieces, strict=True))
    return logp, values, dist
