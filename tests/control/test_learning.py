"""The one `ppo_update` learns in Gymnasium: CartPole and a target to be hit; and it does not where advantages are zeroed."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from surefoot.config import Config, ControlConfig
from surefoot.control import Collector, make_actor_critic, make_envs
from surefoot.optim import make_optimizer
from surefoot.runtime import SingleRuntime
from surefoot.stages import control_course
from surefoot.stages.control_course import ControlStep, Parts
from surefoot.stages.ppo_control import steps

PPO: dict[str, Any] = {
    "num_ppo_epochs": 4,
    "learning_rate": 4e-3,
    "lr_scheduler": "linear",
    "gamma": 0.98,
    "lam": 0.8,
    "max_grad_norm": 0.5,
}


def settings(*, timesteps: int, **ppo: Any) -> Config:
    return Config.model_validate(
        {"control": {"total_timesteps": timesteps, "num_envs": 8, "num_steps": 32}, "ppo": {**PPO, **ppo}}
    )


def parts_for(cfg: Config, seed: int, envs: VectorEnv | None = None) -> Parts:
    envs, generator = make_envs(cfg.control) if envs is None else envs, torch.Generator().manual_seed(seed)
    actor_critic = make_actor_critic(envs, cfg.control.hidden_sizes, generator)
    optimizer = make_optimizer(actor_critic, cfg.ppo, eps=1e-5)
    return Parts(Collector(envs, seed=seed), actor_critic, optimizer, SingleRuntime(), generator)


def last_step(cfg: Config, seed: int, envs: VectorEnv | None = None) -> ControlStep:
    *_, last = steps(parts_for(cfg, seed, envs), cfg)
    return last


def test_cartpole_is_learned_within_20_000_steps() -> None:
    """Seeds 0 to 4 reach 113, 172, 173, 188 and 173 (the first 100 episodes of a random policy: 22), the last bits apart."""
    lasts = [last_step(settings(timesteps=20_000), seed) for seed in range(3)]
    assert all(last.timesteps == 20_224 and len(last.progress.returns) == 100 for last in lasts)
    assert fmean(last.metrics["rollout/ep_rew_mean"] for last in lasts) >= 120


def test_cartpole_is_not_learned_where_advantages_are_zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.ppo.standardize", lambda advantages, mask: torch.zeros_like(advantages))
    assert last_step(settings(timesteps=8_000), seed=0).metrics["rollout/ep_rew_mean"] < 40


def test_cartpole_is_learned_by_the_penalty_and_its_beta_moves() -> None:
    """Seeds 0 to 3 reach 96, 95, 86 and 86 here."""
    cfg = settings(timesteps=10_000, objective="penalty", beta_controller="doubling", beta_target=0.01)
    history = list(steps(parts_for(cfg, 0), cfg))
    assert history[-1].metrics["rollout/ep_rew_mean"] >= 70  # a random policy: 22
    for before, after in pairwise(history):
        factor = 2 if before.stats.kl_after > 0.015 else 0.5 if before.stats.kl_after < 0.01 / 1.5 else 1
        assert after.beta == pytest.approx(before.beta * factor)
    assert len({step.beta for step in history}) > 3


class Target(gymnasium.Env[np.ndarray, np.ndarray]):
    """One step: pays minus the distance between the action and half of the observation."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.shown = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.shown, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.shown, -float(np.abs(action - 0.5 * self.shown).sum()), True, False, {}


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_a_target_is_hit_with_continuous_actions(objective: str) -> None:
    """A standard normal misses half of a uniform observation by 0.83 on average; the trained policy comes within 0.3."""
    cfg = settings(timesteps=6_400, objective=objective, learning_rate=1e-2)
    envs = SyncVectorEnv([Target] * 8, autoreset_mode=AutoresetMode.DISABLED)
    parts = parts_for(cfg, 0, envs)
    history = list(steps(parts, cfg))
    assert history[0].metrics["rollout/ep_rew_mean"] < -0.6 < -0.3 < history[-1].metrics["rollout/ep_rew_mean"]
    observed = torch.tensor([[-1.0], [0.0], [1.0]])
    with torch.no_grad():
        chosen = parts.actor_critic.policy_head.mode(parts.actor_critic(observed)[0])
    torch.testing.assert_close(chosen, 0.5 * observed, atol=0.15, rtol=0)


def test_a_stage_yields_each_rollout_and_warms_the_critic_up() -> None:
    cfg = settings(timesteps=1_024, critic_warmup_steps=2, objective="penalty", beta_controller="doubling", beta_target=1.0)
    parts = parts_for(cfg, 0)
    before = [p.detach().clone() for _, p in parts.actor_critic.named_policy_parameters()]
    stream = steps(parts, cfg)
    first, second = next(stream), next(stream)
    assert (first.update, first.timesteps, second.update, second.timesteps) == (1, 256, 2, 512)
    assert all(torch.equal(a, p) for a, (_, p) in zip(before, parts.actor_critic.named_policy_parameters(), strict=True))
    third, fourth = stream
    assert fourth.timesteps == 1_024 and (second.beta, third.beta, fourth.beta) == (1, 1, 0.5)
    assert not all(torch.equal(a, p) for a, (_, p) in zip(before, parts.actor_critic.named_policy_parameters(), strict=True))


def test_metrics_carry_the_names_of_stable_baselines() -> None:
    step = last_step(settings(timesteps=512), seed=0)
    train = ["approx_kl", "clip_fraction", "entropy_loss", "explained_variance", "policy_gradient_loss", "value_loss", "loss"]
    others = ["train/learning_rate", "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/total_timesteps"]
    assert {*(f"train/{key}" for key in train), *others} <= step.metrics.keys()
    assert "kl/beta" not in step.metrics and "train/std" not in step.metrics
    assert ControlConfig(total_timesteps=513, num_envs=8, num_steps=32).num_updates == 3
    assert control_course.RECENT == 100
