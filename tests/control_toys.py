"""Actor-critics of control, rollouts of random observations, and the same update by hand and by autograd, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from surefoot.config import PPOConfig
from surefoot.control import ControlStates, MLPActorCritic
from surefoot.control.nets import ActionHead, CategoricalHead, GaussianHead
from surefoot.types import Evaluation, PPOBatch

HEADS: dict[str, tuple[type[ActionHead], int]] = {"discrete": (CategoricalHead, 3), "box": (GaussianHead, 2)}


class ByAutograd:
    """The same actor-critic without its hand-written gradients."""

    def __init__(self, actor_critic: MLPActorCritic) -> None:
        self.module = actor_critic

    def evaluate(self, states: Any, actions: Tensor) -> Evaluation:
        return self.module.evaluate(states, actions)

    def kl(self, dist_p: Any, dist_q: Any) -> Tensor:
        return self.module.kl(dist_p, dist_q)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()

    def named_policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_policy_parameters()

    def named_critic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_critic_parameters()


def actor_critic_of(kind: str, hidden: tuple[int, ...] = (16, 8), seed: int = 0) -> MLPActorCritic:
    """With distributions that are far from uniform, and deviations other than 1."""
    head, size = HEADS[kind]
    generator = torch.Generator().manual_seed(seed)
    actor_critic = MLPActorCritic(5, head, size, hidden, generator)
    with torch.no_grad():
        for name, weight in actor_critic.named_parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
            if name.startswith("policy_head"):
                weight *= 1.5
    return actor_critic


@torch.no_grad()
def rollout_of(actor_critic: MLPActorCritic, rows: int = 48, *, seed: int = 1, moved: float = 0.0) -> PPOBatch:
    """`moved` shifts what the rollout says of pi_old and of V, so that ratios, KLs and clips are not those of the first step."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    observations = normal(rows, 1, 5)
    dist, values = actor_critic(observations)
    dist = dist + moved * normal(*dist.shape)
    actions = actor_critic.policy_head.sample(dist.squeeze(1), generator).unsqueeze(1)
    values = values.squeeze(-1)
    return PPOBatch(
        states=ControlStates(observations, values),
        actions=actions,
        logp_old=actor_critic.policy_head.log_prob(dist, actions),
        values_old=values + moved * normal(rows, 1),
        advantages=normal(rows, 1),
        returns=normal(rows, 1),
        mask=torch.ones(rows, 1, dtype=torch.bool),
        dist_old=dist,
    )


def with_holes(batch: PPOBatch) -> PPOBatch:
    """Every fifth row masked, with NaN in everything that is a number there."""
    mask = batch.mask.clone()
    mask[::5] = False

    def poisoned(x: Tensor) -> Tensor:
        return x.masked_fill(~mask.view(-1, *[1] * (x.dim() - 1)), torch.nan) if x.is_floating_point() else x

    states: Any = batch.states
    return replace(
        batch,
        mask=mask,
        states=ControlStates(poisoned(states.observations), states.next_values),
        actions=poisoned(batch.actions),
        dist_old=None if batch.dist_old is None else poisoned(batch.dist_old),  # type: ignore[arg-type]
        **{name: poisoned(getattr(batch, name)) for name in ("logp_old", "values_old", "advantages", "returns")},
    )


def settings(**given: Any) -> PPOConfig:
    return PPOConfig(**{"rollout_batch_size": 48, "num_mini_batches": 3, "num_ppo_epochs": 4, "learning_rate": 3e-3, **given})


class Counting(gymnasium.Env[np.ndarray, np.ndarray]):
    """Shows [its first number, the step], terminates at step 3 or is cut at step 5, by the action; pays the action."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.first, self.count = float(self.np_random.uniform()), 0
        return np.array([self.first, 0.0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        is_terminated = self.count >= 3 and action[0] > 0
        return np.array([self.first, self.count]), float(action[0]), bool(is_terminated), self.count >= 5, {}
