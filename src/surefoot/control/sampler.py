"""What a rollout asks of its policies, step by step and after the last one: by hand-written nets, or by the module itself.

With hand-written nets a step asks the policy alone. Values, log-probabilities and distributions of all steps are worked out after
the last one, in a few large passes; random numbers are drawn before the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from .flat import FlatNets
from .flat_heads import Array
from .nets import MLPActorCritic

ROWS_OF_A_PASS = 4_096


class Sampler(Protocol):
    """The policies of S seeds during one rollout. It knows no environments: what is shown may be normalised on the way."""

    def act(self, step: int, observations: Array) -> Array:
        """Numbers [S, N] (Discrete) or actions [S, N, A] (Box), not yet clipped, for float32 observations [S, N, D]."""
        ...

    def judge(self, observations: Array, actions: Array) -> tuple[Array, Array, Array]:
        """logp, values [S, R] and the distribution [S, R, ...] of rows of each seed: observations [S, R, D]."""
        ...

    def values(self, seed: int, observations: Array) -> Array:
        """V [n] of one seed's float32 observations [n, D]."""
        ...


def sampler_of(
    actor_critic: MLPActorCritic, space: Any, num_steps: int, num_envs: int, generator: torch.Generator
) -> FlatSampler | ModuleSampler:
    """For one seed: by hand where the actor-critic has hand-written nets."""
    nets = actor_critic.nets()
    if nets is None:
        return ModuleSampler(actor_critic, generator)
    return FlatSampler(nets, space, num_steps, num_envs, [generator])


class FlatSampler:
    """By nets on flat memory, of one seed or several: NumPy in, NumPy out.

    A seed draws from its own generator what it would draw alone, and all of it before the first step.
    """

    def __init__(self, nets: FlatNets, space: Any, num_steps: int, num_envs: int, generators: Sequence[torch.Generator]) -> None:
        """`space` is the action space of one environment, `num_envs` the number of a seed's environments."""
        from gymnasium.spaces import Discrete

        nets.attach()
        self._nets, self._part = nets, nets.part(slice(0, nets.num_seeds))
        self._is_discrete = isinstance(space, Discrete)
        width = 1 if self._is_discrete else math.prod(space.shape)
        draw = torch.rand if self._is_discrete else torch.randn  # uniform or normal, [T, S, width, N]
        drawn = [draw(num_steps, width, num_envs, generator=generator).numpy() for generator in generators]
        self._noise = np.stack(drawn, axis=1)

    def act(self, step: int, observations: Array) -> Array:
        actions = self._part.act(observations, self._noise[step])
        return actions if self._is_discrete else actions.swapaxes(-1, -2)

    def judge(self, observations: Array, actions: Array) -> tuple[Array, Array, Array]:
        pieces: list[tuple[Array, Array, Array]] = []
        for start in range(0, observations.shape[1], ROWS_OF_A_PASS):
            seen, done = (x[:, start : start + ROWS_OF_A_PASS] for x in (observations, actions))
            outputs, values = self._part.forward(seen)
            if self._is_discrete:
                done = np.eye(outputs.shape[1], dtype=np.float32)[done]
            logp = self._part.log_prob(outputs, done.swapaxes(-1, -2))
            dist = np.moveaxis(np.stack(self._part.dist(outputs), axis=1), -1, 1)  # [S, n, K, A]
            pieces.append((logp, values, dist[:, :, 0] if self._is_discrete else dist))
        logp, values, dist = (np.concatenate(column, axis=1) for column in zip(*pieces, strict=True))
        return logp, values, dist

    def values(self, seed: int, observations: Array) -> Array:
        values: Array = self._nets.part(slice(seed, seed + 1)).forward(observations[None])[1][0]
        return values


class ModuleSampler:
    """By the module of one seed, whatever its head: a pass of the policy at each step, which samples by itself."""

    def __init__(self, actor_critic: MLPActorCritic, generator: torch.Generator) -> None:
        self._actor_critic, self._generator = actor_critic, generator

    @torch.no_grad()
    def act(self, step: int, observations: Array) -> Array:
        policy = self._actor_critic
        dist, _ = policy(torch.from_numpy(observations[0]))
        actions: Array = policy.policy_head.sample(dist, self._generator).numpy()
        return actions[None]

    @torch.no_grad()
    def judge(self, observations: Array, actions: Array) -> tuple[Array, Array, Array]:
        pieces: list[tuple[Array, Array, Array]] = []
        for start in range(0, observations.shape[1], ROWS_OF_A_PASS):
            seen, done = (torch.from_numpy(x[0, start : start + ROWS_OF_A_PASS]) for x in (observations, actions))
            dist, values = self._actor_critic(seen)
            logp = self._actor_critic.policy_head.log_prob(dist, done)
            pieces.append((logp.numpy(), values.squeeze(-1).numpy(), dist.numpy()))
        logps, critic, dists = (np.concatenate(column)[None] for column in zip(*pieces, strict=True))
        return logps, critic, dists

    @torch.no_grad()
    def values(self, seed: int, observations: Array) -> Array:
        values: Array = self._actor_critic(torch.from_numpy(observations))[1].squeeze(-1).numpy()
        return values
