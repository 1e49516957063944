"""CartPole-v1 as rows for PPO, and J on fresh episodes: the mean length of an episode, 500 at most.

J before and after an update is measured on the same start states and the same uniform numbers (common random numbers), new ones
at every update. The episodes of pi_old are the fresh samples of its ratio as well.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.config import ControlConfig
from surefoot.control import Collector, MLPActorCritic, make_actor_critic, make_envs, to_batch
from surefoot.types import PPOBatch

from .measure import Outcome, ratio_figures

LIMIT = 500  # steps after which CartPole-v1 cuts an episode


class CartPoleTask:
    """`num_envs` environments of `num_steps` a rollout; `fresh` episodes before and after every update."""

    def __init__(self, seed: int, *, num_envs: int, num_steps: int, fresh: int, gamma: float = 0.99, lam: float = 0.95) -> None:
        import gymnasium

        self.generator = torch.Generator().manual_seed(seed)
        rows = num_envs * num_steps
        envs = make_envs(ControlConfig(env="CartPole-v1", num_envs=num_envs, num_steps=num_steps, batch_size=rows))
        self.actor_critic = make_actor_critic(envs, (64, 64), self.generator)
        self.collector, self.num_steps, self.gamma, self.lam = Collector(envs, seed=seed), num_steps, gamma, lam
        self.fresh_seeds = itertools.count(1_000_000 * (seed + 1))
        self.fresh_envs = gymnasium.make_vec("CartPole-v1", num_envs=fresh, vectorization_mode="vector_entry_point")

    def rollout(self) -> PPOBatch:
        rollout = self.collector.collect(self.actor_critic, self.num_steps, self.generator)
        return to_batch(rollout, gamma=self.gamma, lam=self.lam, keep_dist=True)

    def before(self) -> CartPoleBefore:
        seed = next(self.fresh_seeds)
        return CartPoleBefore(self, seed, *play(self.actor_critic, self.fresh_envs, seed))


def logits_of(policy: MLPActorCritic, observations: Float[Tensor, "N 4"]) -> Float[Tensor, "N 2"]:
    """The policy alone: its critic would double the time."""
    return policy.policy_head(policy.policy_body(observations))


@torch.no_grad()
def play(policy: MLPActorCritic, envs: object, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One episode in each environment: lengths [E], and observations, logits and actions of all steps together.

    An action is drawn by inverting its distribution at a uniform number that belongs to (seed, step, environment), so two
    policies that agree take the same actions.
    """
    observed = envs.reset(seed=seed)[0]
    uniforms = np.random.default_rng(seed).random((LIMIT, envs.num_envs))
    is_alive, lengths = np.ones(envs.num_envs, dtype=bool), np.zeros(envs.num_envs, dtype=int)
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for t in range(LIMIT):
        observations = torch.as_tensor(observed, dtype=torch.float32)
        logits = logits_of(policy, observations)
        actions = torch.as_tensor(uniforms[t]) > torch.softmax(logits.double(), -1)[:, 0]
        steps.append((observations, logits, actions.long(), torch.as_tensor(is_alive)))
        lengths += is_alive
        observed, _, terminated, truncated, _ = envs.step(actions.numpy().astype(int))
        is_alive = is_alive & ~(terminated | truncated)
        if not is_alive.any():
            break
    *columns, alive = (torch.cat(column) for column in zip(*steps, strict=True))
    return torch.as_tensor(lengths, dtype=torch.float64), *(column[alive] for column in columns)


@dataclass(frozen=True, slots=True)
class CartPoleBefore:
    """Fresh episodes of pi_old, and the seed from which the new policy's are drawn as well."""

    task: CartPoleTask
    seed: int
    lengths: Float[Tensor, " E"]
    observations: Float[Tensor, "N 4"]
    logits: Float[Tensor, "N 2"]
    actions: Int[Tensor, " N"]

    @torch.no_grad()
    def after(self) -> Outcome:
        policy = self.task.actor_critic
        lengths = play(policy, self.task.fresh_envs, self.seed)[0]
        change = lengths - self.lengths
        figures = ratio_figures(self.logits, logits_of(policy, self.observations), self.actions)
        noise = float(change.std()) / math.sqrt(len(change))
        return Outcome(float(self.lengths.mean()), float(lengths.mean()), float(change.mean()), noise, **figures)
