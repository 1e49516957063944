"""The parts of control that no item of the details names: refusals, shapes, sampling, what a batch holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from control_toys import ByAutograd
from surefoot.build_control import build_control
from surefoot.config import Config, ControlConfig, PPOConfig
from surefoot.control import Collector, make_actor_critic, make_envs, to_batch
from surefoot.control.nets import CategoricalHead, GaussianHead
from surefoot.errors import ConfigError, TrainingError
from surefoot.ppo import ppo_update
from surefoot.types import PPOBatch


class Spaces(gymnasium.Env[Any, Any]):
    """Has the given spaces, and remembers the last action."""

    last: Any = None

    def __init__(self, observed: gymnasium.Space[Any], acted: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = observed, acted

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Spaces.last = action
        return self.observation_space.sample(), 0.0, False, False, {}


def envs_of(observed: gymnasium.Space[Any], acted: gymnasium.Space[Any]) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Spaces(observed, acted)] * 3, autoreset_mode=AutoresetMode.DISABLED)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PLANE = Box(-1, 1, (2, 3), np.float32)


@pytest.mark.parametrize(
    "observed, acted, match",
    [(Discrete(3), Discrete(2), r"Observations are Discrete\(3\)"), (PLANE, MultiDiscrete([2, 2]), r"Actions are MultiDiscrete")],
)
def test_a_space_without_a_head_is_refused_by_name(
    observed: gymnasium.Space[Any], acted: gymnasium.Space[Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        make_actor_critic(envs_of(observed, acted), (4,), generator())


@pytest.mark.parametrize(
    "acted, actions, dist", [(Discrete(5), (12, 1), (12, 1, 5)), (Box(-1, 1, (2,), np.float32), (12, 1, 2), (12, 1, 2, 2))]
)
def test_a_rollout_becomes_rows_of_one_step_that_the_policy_evaluates_as_it_sampled_them(
    acted: gymnasium.Space[Any], actions: tuple[int, ...], dist: tuple[int, ...]
) -> None:
    envs = envs_of(PLANE, acted)
    actor_critic = make_actor_critic(envs, (4,), generator())
    rollout = Collector(envs, seed=0).collect(actor_critic, 4, generator())
    batch = to_batch(rollout, gamma=0.9, lam=0.9, keep_dist=True)
    assert batch.mask.all() and batch.mask.shape == (12, 1)
    assert (tuple(batch.actions.shape), tuple(batch.dist_old.shape)) == (actions, dist)
    order = torch.randperm(12, generator=generator())
    seen = actor_critic.evaluate(batch[order].states, batch[order].actions)
    torch.testing.assert_close(seen.logp.detach(), batch.logp_old[order])
    torch.testing.assert_close(seen.values.detach(), batch.values_old[order])
    torch.testing.assert_close(seen.next_values, rollout.next_values.flatten()[order][:, None])
    torch.testing.assert_close(actor_critic.kl(batch.dist_old[order], seen.dist).detach(), torch.zeros(12, 1), atol=1e-6, rtol=0)
    assert to_batch(rollout, gamma=0.9, lam=0.9, keep_dist=False).dist_old is None


def test_a_discrete_space_that_starts_elsewhere_gets_its_own_numbers() -> None:
    envs = envs_of(PLANE, Discrete(2, start=10))
    rollout = Collector(envs, seed=0).collect(make_actor_critic(envs, (4,), generator()), 5, generator())
    assert set(rollout.actions.flatten().tolist()) == {0, 1} and int(Spaces.last) in (10, 11)


def test_environments_that_lose_the_last_observation_are_refused() -> None:
    envs = SyncVectorEnv([lambda: Spaces(PLANE, Discrete(2))])
    with pytest.raises(ConfigError, match=r"autoreset_mode is .*NEXT_STEP.* Make them with AutoresetMode.DISABLED"):
        Collector(envs, seed=0)


def test_an_unknown_environment_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"control.env = 'CartPool-v1': .* no such environment. Did you mean CartPole-v"):
        make_envs(ControlConfig(env="CartPool-v1"))


def test_rollouts_go_on_where_the_last_one_stopped_and_equal_seeds_repeat_them() -> None:
    def observed(sizes: tuple[int, ...]) -> list[torch.Tensor]:
        envs, draws = make_envs(ControlConfig(num_envs=2)), generator()
        actor_critic = make_actor_critic(envs, (4,), draws)
        collector = Collector(envs, seed=3)
        return [collector.collect(actor_critic, size, draws).observations for size in sizes]

    whole, (first, second) = observed((40,))[0], observed((15, 25))
    assert torch.equal(torch.cat((first, second), dim=1), whole)


def test_episode_returns_and_lengths_span_rollouts() -> None:
    envs, draws = make_envs(ControlConfig(num_envs=1)), generator()
    actor_critic, collector = make_actor_critic(envs, (4,), draws), Collector(envs, seed=3)
    rollouts = [collector.collect(actor_critic, 7, draws) for _ in range(20)]
    lengths = [n for rollout in rollouts for n in rollout.episode_lengths]
    ended = torch.cat([rollout.ended[0] for rollout in rollouts]).nonzero().flatten().tolist()
    assert lengths == np.diff([-1, *ended]).tolist() and max(lengths) > 7
    assert [r for rollout in rollouts for r in rollout.episode_returns] == lengths  # CartPole pays 1 a step


@pytest.mark.parametrize("head, size", [(CategoricalHead, 3), (GaussianHead, 2)])
def test_samples_follow_the_distribution(head: Any, size: int) -> None:
    """-E[log pi] is the entropy; 20,000 samples are within 5 standard errors of it. The mode is the likeliest action."""
    policy = head(4, size, generator())
    with torch.no_grad():
        dist = (100 * policy(torch.randn(1, 4, generator=generator(1)))).expand(20_000, *policy(torch.zeros(4)).shape)
        logp = policy.log_prob(dist, policy.sample(dist, generator(2)))
        assert abs(float(logp.mean() + policy.entropy(dist[0]))) < 5 * float(logp.std()) / 20_000**0.5
        assert float(policy.log_prob(dist[0], policy.mode(dist[0]))) >= float(logp.max()) - 1e-6


def test_means_that_ran_far_away_round_more_and_are_no_other_policy() -> None:
    """Means near 160 with a deviation of 0.2: float32 leaves 1e-5 of a mean, some 1e-4 of a log-probability."""
    cfg = Config.model_validate({"control": {"env": "Pendulum-v1", "num_envs": 1, "num_steps": 256}})
    parts = build_control(cfg, lambda line: None)
    with torch.no_grad():
        for name, weight in parts.actor_critic.named_parameters():
            if name.startswith("policy_head.mean"):
                weight.mul_(30_000)
        parts.actor_critic.get_parameter("policy_head.log_std").fill_(-1.5)
    rollout = parts.collector.collect(parts.actor_critic, 256, parts.generator)
    batch = to_batch(rollout, gamma=0.99, lam=0.95, keep_dist=False)

    def first(batch: PPOBatch) -> float:
        given: dict[str, Any] = {"optimizer": parts.optimizer, "runtime": parts.runtime, "generator": parts.generator}
        ppo = PPOConfig(rollout_batch_size=256, num_mini_batches=4, num_ppo_epochs=1, micro_batch_size=64, learning_rate=1e-12)
        slow = ByAutograd(parts.actor_critic)  # whose products are of other sizes than the collector's
        return ppo_update(slow, batch, ppo, beta=0.0, kl_coef=0.0, **given).first_log_ratio

    assert first(batch) > 1e-4
    assert batch.logp_rounding is not None and batch.logp_rounding.max() < 0.02
    with pytest.raises(TrainingError, match="Before the first step"):
        first(replace(batch, logp_old=batch.logp_old + 0.02))
    with pytest.raises(TrainingError, match="Before the first step"):
        first(replace(batch, logp_rounding=None))
