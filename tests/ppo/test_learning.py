"""Problems so small that their solution is known (item 57 of the details): PPO finds it, or stays where it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.config import PPOConfig
from surefoot.core import gae, kl_estimate, tethered_rewards
from surefoot.optim import make_optimizer
from surefoot.ppo import ppo_update
from surefoot.runtime import SingleRuntime
from surefoot.types import PPOBatch
from toys import TokenActorCritic, largest_difference, weights_of

ROWS, STEPS, TARGET = 64, 4, 2


def settings(**given: Any) -> PPOConfig:
    sizes = {"rollout_batch_size": ROWS, "num_mini_batches": 2, "micro_batch_size": ROWS, "num_ppo_epochs": 2}
    return PPOConfig(**{**sizes, "learning_rate": 2e-2, **given})


@torch.no_grad()
def answers(
    policy: TokenActorCritic, generator: torch.Generator, sft: TokenActorCritic, *, kl_coef: float, teach: str
) -> PPOBatch:
    """Answers of STEPS tokens whose state is the position; the score is the share of TARGET tokens, or as `teach` says."""
    states = torch.arange(STEPS).expand(ROWS, STEPS)
    probabilities = policy.judge(states)[0].softmax(-1).flatten(0, 1)
    actions = torch.multinomial(probabilities, 1, generator=generator).view(ROWS, STEPS)
    seen, reference = policy.evaluate(states, actions), sft.evaluate(states, actions)
    scores = (actions == TARGET).float().mean(dim=1)
    if teach == "shuffled":
        scores = scores[torch.randperm(ROWS, generator=generator)]
    mask = torch.ones(ROWS, STEPS, dtype=torch.bool)
    rewards = tethered_rewards(scores, kl_estimate(seen.logp, reference.logp, "k1"), mask, coef=kl_coef)
    last = torch.arange(STEPS).expand(ROWS, STEPS) == STEPS - 1
    advantages = gae(rewards, seen.values, seen.next_values, last, last, gamma=1.0, lam=0.95)
    returns = advantages + seen.values
    return PPOBatch(
        states, actions, seen.logp, seen.values, advantages, returns, mask, dist_old=seen.dist, logp_ref=reference.logp
    )


def trained(seed: int, cfg: PPOConfig, *, kl_coef: float = 0.0, teach: str = "scores") -> TokenActorCritic:
    policy, sft = TokenActorCritic(STEPS, 4, seed=seed), TokenActorCritic(STEPS, 4, seed=seed)
    optimizer, runtime, generator = make_optimizer(policy, cfg), SingleRuntime(), torch.Generator().manual_seed(seed)
    for _ in range(40):
        batch = answers(policy, generator, sft, kl_coef=kl_coef if cfg.kl_in == "reward" else 0.0, teach=teach)
        ppo_update(policy, batch, cfg, optimizer=optimizer, runtime=runtime, generator=generator, beta=1.0, kl_coef=kl_coef)
    return policy


def probability_of_target(policy: TokenActorCritic) -> Tensor:
    with torch.no_grad():
        return policy.judge(torch.arange(STEPS)[None])[0].softmax(-1)[0, :, TARGET]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("objective", ["clip", "penalty", "policy_gradient"])
def test_emitting_one_token_is_solved(objective: Any, seed: int) -> None:
    start = probability_of_target(TokenActorCritic(STEPS, 4, seed=seed))
    end = probability_of_target(trained(seed, settings(objective=objective)))
    assert float(start.max()) < 0.6 and float(end.min()) > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_rewards_teach_nothing(seed: int) -> None:
    assert float(probability_of_target(trained(seed, settings(), teach="shuffled")).mean()) < 0.6


def test_a_learning_rate_of_0_is_flat() -> None:
    policy = TokenActorCritic(STEPS, 4)
    cfg, generator, before = settings(), torch.Generator().manual_seed(0), weights_of(policy)
    optimizer, runtime = make_optimizer(policy, cfg), SingleRuntime()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    kls = []
    for _ in range(5):
        batch = answers(policy, generator, policy, kl_coef=0.0, teach="scores")
        stats = ppo_update(policy, batch, cfg, optimizer=optimizer, runtime=runtime, generator=generator, beta=0, kl_coef=0)
        kls.append(stats.approx_kl)
    assert largest_difference(before, weights_of(policy)) == 0 and kls == [0.0] * 5


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_a_huge_tether_stays_where_none_goes_far(kl_in: Any) -> None:
    """The tether counts in the unit of the reward, so advantages keep theirs: `whiten_advantages` is off."""
    cfg = settings(whiten_advantages=False, learning_rate=5e-3, kl_in=kl_in, kl_estimator="k1" if kl_in == "reward" else "k2")
    start = probability_of_target(TokenActorCritic(STEPS, 4))

    def moved(coef: float) -> float:
        return float((probability_of_target(trained(0, cfg, kl_coef=coef)) - start).abs().max())

    assert moved(0.0) > 0.2 > 0.05 > moved(100.0)
