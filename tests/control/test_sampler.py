"""The two samplers behind one loop, by hand-written nets and by the module: what they say is what the module says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from control_toys import Counting
from surefoot.config import ControlConfig
from surefoot.control import (
    Collector,
    FlatNets,
    FlatSampler,
    MLPActorCritic,
    SteppedEnvs,
    collect_together,
    make_actor_critic,
    make_envs,
    to_batch,
)
from surefoot.control.flat_heads import FlatCategorical, FlatGaussian
from surefoot.control.nets import CategoricalHead, GaussianHead
from surefoot.control.sampler import ModuleSampler, sampler_of

WORLDS = {"box": lambda: SteppedEnvs([Counting] * 3), "discrete": lambda: make_envs(ControlConfig(num_envs=3))}


class OwnCategorical(CategoricalHead):
    """Has no hand-written twin."""


class OwnGaussian(GaussianHead):
    """Has no hand-written twin."""


def made(kind: str, is_own: bool, seed: int = 0) -> tuple[SteppedEnvs, MLPActorCritic]:
    envs, generator = WORLDS[kind](), torch.Generator().manual_seed(seed)
    actor_critic = make_actor_critic(envs, (8, 4), generator)
    if is_own:
        actor_critic.policy_head.__class__ = OwnCategorical if kind == "discrete" else OwnGaussian
    return envs, actor_critic


@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("is_own", [False, True])
def test_a_rollout_is_one_that_the_module_evaluates_as_it_was_sampled(kind: str, is_own: bool) -> None:
    """V behind an end is that of the episode's last observation. An observation of the box world is [first number, step]."""
    envs, actor_critic = made(kind, is_own)
    generator = torch.Generator().manual_seed(1)
    sampler = sampler_of(actor_critic, envs.single_action_space, 40, 3, generator)
    assert isinstance(sampler, ModuleSampler if is_own else FlatSampler)
    rollout = Collector(envs, seed=5).collect(actor_critic, 40, generator)
    batch = to_batch(rollout, gamma=0.9, lam=0.9, keep_dist=True)
    seen = actor_critic.evaluate(batch.states, batch.actions)  # type: ignore[arg-type]
    assert batch.dist_old is not None
    torch.testing.assert_close(seen.logp.detach(), batch.logp_old, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.values.detach(), batch.values_old, atol=1e-5, rtol=0)
    kl = actor_critic.kl(batch.dist_old, seen.dist).detach()
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-6, rtol=0)
    assert rollout.ended.any() and len(rollout.episode_lengths) == int(rollout.ended.sum())
    within = ~rollout.ended[:, :-1]
    torch.testing.assert_close(rollout.next_values[:, :-1][within], rollout.values[:, 1:][within])
    if kind == "box":
        env, t = rollout.ended.nonzero()[0].tolist()
        last = rollout.observations[env, t] + torch.tensor([0.0, 1.0])
        with torch.no_grad():
            assert rollout.next_values[env, t].item() == pytest.approx(actor_critic(last[None])[1].item(), abs=1e-5)
        assert rollout.observations[env, t + 1, 1] == 0
        assert rollout.rewards.abs().max() <= 1 < rollout.actions.abs().max()  # clipped for the environment alone


@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_rollouts_of_several_collectors_are_those_of_each_alone(kind: str) -> None:
    pairs = [made(kind, False, seed) for seed in range(3)]
    collectors = [Collector(envs, seed=seed) for seed, (envs, _) in enumerate(pairs)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    nets = FlatNets([actor_critic for _, actor_critic in pairs])
    together = []
    for _ in range(2):  # the second from the middle of episodes
        sampler = FlatSampler(nets, collectors[0].envs.single_action_space, 30, 3, generators)
        together = collect_together(collectors, sampler, 30)
    for seed in range(3):
        envs, actor_critic = made(kind, False, seed)
        collector, generator = Collector(envs, seed=seed), torch.Generator().manual_seed(seed)
        alone = [collector.collect(actor_critic, 30, generator) for _ in range(2)][1]
        for name in ("observations", "actions", "logp", "values", "next_values", "rewards", "ended", "dist"):
            torch.testing.assert_close(getattr(together[seed], name), getattr(alone, name), atol=1e-6, rtol=0)
        assert together[seed].episode_returns == pytest.approx(alone.episode_returns)
        assert torch.equal(collectors[seed].state()["actions"], collector.state()["actions"])


def test_an_actor_critic_with_another_forward_is_asked_itself() -> None:
    class Shifted(MLPActorCritic):
        def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            dist, values = super().forward(observations)
            return dist, values + 100

    envs, actor_critic = made("discrete", False)
    actor_critic.__class__ = Shifted
    assert actor_critic.nets() is None
    assert Collector(envs, seed=0).collect(actor_critic, 5, torch.Generator()).values.min() > 50


def test_flat_samples_follow_the_distribution() -> None:
    """20,000 draws: frequencies within 5 standard errors of softmax; mean and deviation within those of the normal."""
    generator = torch.Generator().manual_seed(0)
    outputs = np.repeat(np.array([[[0.3], [-1.0], [2.0]]], np.float32), 20_000, axis=2)
    noise = torch.rand(1, 1, 20_000, generator=generator).numpy()
    drawn = FlatCategorical.act(outputs, np.zeros((1, 0, 1), np.float32), noise)
    p = torch.softmax(torch.tensor([0.3, -1.0, 2.0]), 0).numpy()
    found = np.bincount(drawn[0], minlength=3) / 20_000
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()
    noise = torch.randn(1, 3, 20_000, generator=generator).numpy()
    actions: Any = FlatGaussian.act(outputs, np.log(np.full((1, 3, 1), 0.5, np.float32)), noise)
    assert np.abs(actions.mean(axis=2)[0] - [0.3, -1.0, 2.0]).max() < 5 * 0.5 / 20_000**0.5
    assert np.abs(actions.std(axis=2) - 0.5).max() < 0.02
