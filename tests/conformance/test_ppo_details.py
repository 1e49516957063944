"""The details that decide whether PPO is right, by their numbers: those of the loss, the update, and control."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from surefoot.config import ControlConfig, PPOConfig
from surefoot.control import Collector, MLPActorCritic, make_actor_critic, make_envs, to_batch
from surefoot.control.nets import GaussianHead
from surefoot.core import gae, kl_gaussian, standardize, tethered_rewards
from surefoot.errors import TrainingError
from surefoot.optim import lr_share, make_optimizer, set_learning_rates
from surefoot.ppo import mean_count, ppo_loss, ppo_update
from surefoot.runtime import SingleRuntime
from surefoot.types import Evaluation, PPOBatch, UpdateStats
from toys import TokenActorCritic, largest_difference, rollout, weights_of

LENGTHS = torch.tensor([6, 1, 4, 2, 6, 3, 5, 6])


def settings(**given: Any) -> PPOConfig:
    return PPOConfig(**{"rollout_batch_size": 8, "num_mini_batches": 2, "num_ppo_epochs": 2, "learning_rate": 1e-2, **given})


def fresh(**given: Any) -> tuple[TokenActorCritic, PPOBatch]:
    policy = TokenActorCritic(5, 4, **given)
    return policy, rollout(policy, rows=8, steps=6, num_states=5, generator=torch.Generator().manual_seed(1), lengths=LENGTHS)


def update(policy: TokenActorCritic, batch: PPOBatch, cfg: PPOConfig, **given: Any) -> UpdateStats:
    defaults = {"beta": 1.0, "kl_coef": 0.0, "optimizer": make_optimizer(policy, cfg)}
    generator = torch.Generator().manual_seed(3)
    return ppo_update(policy, batch, cfg, runtime=SingleRuntime(), generator=generator, **{**defaults, **given})


def gradients(policy: TokenActorCritic, batch: PPOBatch, cfg: PPOConfig, sizes: list[int]) -> dict[str, Tensor]:
    """Of the loss over the whole batch, cut into micro-batches of these sizes."""
    policy.zero_grad()
    count = mean_count(batch.mask, cfg.loss_aggregation)
    for rows in torch.arange(len(batch)).split(sizes):
        part = batch[rows]
        evaluation = policy.evaluate(part.states, part.actions)
        ppo_loss(evaluation, part, cfg, kl=policy.kl, beta=0.5, kl_coef=0.3, count=count)[0].backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


class Recorder(TokenActorCritic):
    """Remembers which rows were evaluated: the first state of each is its number."""

    seen: ClassVar[list[list[int]]]

    def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
        self.seen.append(states[:, 0].tolist())
        return super().evaluate(states, actions)


def test_item_13_the_first_minibatch_has_ratio_1_and_an_update_checks_it() -> None:
    policy, batch = fresh()
    stats = update(policy, batch, settings(num_mini_batches=1, num_ppo_epochs=1))
    assert (stats.first_log_ratio, stats.clip_fraction, stats.ratio_max) == (0, 0, 1)
    policy, batch = fresh(dropout=0.5)
    with pytest.raises(TrainingError, match="dropout is on"):
        update(policy, batch, settings())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 100.0])
@pytest.mark.parametrize(
    "cfg",
    [
        settings(objective="clip", cliprange_value=0.2, ent_coef=0.1),
        settings(objective="clip", whiten_advantages=False),
        settings(objective="penalty", beta_estimator="k1"),
        settings(objective="penalty", beta_estimator="k3", loss_aggregation="sequence_mean"),
        settings(objective="policy_gradient", kl_in="loss", kl_estimator="k2"),
    ],
    ids=lambda cfg: f"{cfg.objective}-{cfg.beta_estimator}-{cfg.whiten_advantages}",
)
@pytest.mark.parametrize("where", ["evaluation", "rollout", "both"])
def test_item_22_what_stands_in_masked_slots_reaches_neither_loss_nor_weights(cfg: PPOConfig, poison: float, where: str) -> None:
    class Poisoned(TokenActorCritic):
        """Adds, so that a gradient of NaN would reach the weights."""

        def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
            seen = super().evaluate(states, actions)
            extra = torch.where(states < 5, 0.0, poison)  # masked slots hold state 5
            return replace(seen, **{name: getattr(seen, name) + extra for name in ("logp", "values", "next_values", "entropy")})

    results = []
    for is_poisoned in (False, True):
        policy = Poisoned(6, 4) if is_poisoned and where != "rollout" else TokenActorCritic(6, 4)
        batch = rollout(policy, rows=8, steps=6, num_states=5, generator=torch.Generator().manual_seed(1), lengths=LENGTHS)
        batch = replace(batch, states=torch.where(batch.mask, batch.states, 5), logp_ref=batch.logp_old - 0.3, dist_old=None)
        if is_poisoned and where != "evaluation":
            names = ("logp_old", "values_old", "advantages", "returns", "logp_ref")
            batch = replace(batch, **{name: torch.where(batch.mask, getattr(batch, name), poison) for name in names})
        stats = update(policy, batch, cfg, kl_coef=0.3)
        results.append((weights_of(policy), stats))
    assert largest_difference(results[0][0], results[1][0]) == 0
    assert results[0][1] == results[1][1] and results[0][1].steps == 4


def test_item_26_advantages_are_standardised_over_the_valid_steps_of_the_whole_batch() -> None:
    """An update on raw advantages, scaled and shifted, equals one on standardised advantages; two ranks: tests/runtime."""
    policy, batch = fresh()
    white = standardize(batch.advantages, batch.mask)
    assert float(white[batch.mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[batch.mask].var(unbiased=False)) == pytest.approx(1, rel=1e-5)
    update(policy, replace(batch, advantages=torch.where(batch.mask, 7 * batch.advantages - 40, 1e6)), settings())
    other, _ = fresh()
    update(other, replace(batch, advantages=white), settings(whiten_advantages=False))
    assert largest_difference(weights_of(policy), weights_of(other)) < 1e-5


def test_item_28_a_tether_in_the_reward_is_charged_there_and_nowhere_else() -> None:
    """Coefficient 1, scores 0: the return of a row is minus its KL; the loss has the gradient that it has without a tether."""
    policy, batch = fresh()
    kl = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    rewards = tethered_rewards(torch.zeros(8), kl, batch.mask, coef=1.0)
    ended = torch.zeros_like(batch.mask)
    returns = gae(rewards, torch.zeros(8, 6), torch.zeros(8, 6), ended, ended, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns[:, 0], -(kl * batch.mask).sum(dim=1))
    batch = replace(batch, logp_ref=batch.logp_old - 1, dist_ref=torch.zeros(8, 6, 4))
    without = gradients(policy, replace(batch, logp_ref=None, dist_ref=None), settings(kl_in="reward"), [8])
    within = gradients(policy, batch, settings(kl_in="reward"), [8])
    charged = gradients(policy, batch, settings(kl_in="loss", kl_estimator="exact"), [8])
    assert largest_difference(without, within) == 0 < largest_difference(within, charged)


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_item_29_a_huge_tether_pulls_towards_the_reference(kl_in: Any) -> None:
    """A bandit of two arms, reference 50:50, policy at 90:10 on the arm that pays 1: the tether wins, the policy comes back."""
    policy = TokenActorCritic(1, 2, width=1)
    with torch.no_grad():
        for p in policy.parameters():
            p.zero_()
        policy.policy_head.bias.copy_(torch.tensor([2.2, 0.0]))
    cfg = PPOConfig(
        rollout_batch_size=256, micro_batch_size=256, num_ppo_epochs=1, learning_rate=0.05, whiten_advantages=False, vf_coef=0,
        kl_in=kl_in, kl_estimator="k1" if kl_in == "reward" else "exact",
    )  # fmt: skip
    optimizer, generator = make_optimizer(policy, cfg), torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = rollout(policy, rows=256, steps=1, num_states=1, generator=generator)
        log_ratio = batch.logp_old - torch.log(torch.tensor(0.5))
        rewards = (batch.actions == 0).float() - (100.0 * log_ratio if kl_in == "reward" else 0.0)
        batch = replace(batch, advantages=rewards - rewards.mean(), returns=rewards, dist_ref=torch.zeros(256, 1, 2))
        ppo_update(policy, batch, cfg, optimizer=optimizer, runtime=SingleRuntime(), generator=generator, beta=0, kl_coef=100.0)
    share = float(policy.judge(torch.zeros(1, 1, dtype=torch.long))[0].detach().softmax(-1)[0, 0, 0])
    assert share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [1, 6, 1]])
def test_item_35_gradients_do_not_depend_on_micro_batches(sizes: list[int], aggregation: Any) -> None:
    """Two ranks: tests/runtime. Rows have 1 to 6 steps, so a mean of means differs (last line)."""
    cfg = settings(loss_aggregation=aggregation, objective="penalty", kl_in="loss", kl_estimator="exact", ent_coef=0.1)
    policy, batch = fresh()
    generator = torch.Generator().manual_seed(0)
    noise, dist_ref = torch.randn(8, 6, generator=generator), torch.randn(8, 6, 4, generator=generator)
    batch = replace(batch, logp_old=batch.logp_old + 0.1 * noise, dist_ref=dist_ref)
    whole = gradients(policy, batch, cfg, [8])
    assert largest_difference(whole, gradients(policy, batch, cfg, sizes)) < 1e-6
    rows_apart = [gradients(policy, batch[torch.tensor([row])], cfg, [1]) for row in range(8)]
    mean_of_means = {name: torch.stack([g[name] for g in rows_apart]).mean(dim=0) for name in whole}
    assert (largest_difference(whole, mean_of_means) < 1e-6) == (aggregation == "sequence_mean")


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_item_35_weights_after_an_update_do_not_depend_on_micro_batches(micro_batch_size: int) -> None:
    policy, batch = fresh()
    update(policy, batch, settings())
    other, _ = fresh()
    update(other, batch, settings(micro_batch_size=micro_batch_size))
    assert largest_difference(weights_of(policy), weights_of(other)) < 1e-5


def test_item_36_the_aggregation_is_named_and_sequences_of_1_and_9_tell_the_two_apart() -> None:
    """Value losses 1 (once) and 3 (nine times): 28 / 10 by token, 2 by sequence."""
    mask = torch.arange(9) < torch.tensor([[1], [9]])
    values = torch.tensor([[2.0**0.5], [6.0**0.5]]).expand(2, 9)
    zeros = torch.zeros(2, 9)
    rows, evaluation = (
        PPOBatch(zeros, zeros.long(), zeros, zeros, zeros, zeros, mask),
        Evaluation(zeros, values, zeros, zeros, zeros),
    )
    found = []
    for cfg in (settings(loss_aggregation="token_mean"), settings(loss_aggregation="sequence_mean")):
        count = mean_count(mask, cfg.loss_aggregation)
        found.append(float(ppo_loss(evaluation, rows, cfg, kl=lambda p, q: zeros, beta=0, kl_coef=0, count=count)[0]))
    assert found == pytest.approx([2.8, 2.0])


def test_item_37_the_value_clip_uses_the_rollouts_values_takes_the_larger_loss_and_halves_it() -> None:
    """V_old = 0, clip 0.2, R = 1: V = 0.5 gives max(0.25, 0.64) / 2 = 0.32; V = -1 gives max(4, 1.44) / 2 = 2."""
    mask, zeros = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    values = torch.tensor([[0.5, -1.0]])
    rows = PPOBatch(zeros, zeros.long(), zeros, zeros, zeros, torch.ones(1, 2), mask)
    cfg, evaluation = settings(cliprange_value=0.2), Evaluation(zeros, values, zeros, zeros, zeros)
    loss, parts = ppo_loss(evaluation, rows, cfg, kl=lambda p, q: zeros, beta=0, kl_coef=0, count=2)
    assert float(loss) == pytest.approx((0.32 + 2.0) / 2)
    assert float(parts.value_clipped) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_item_38_the_value_loss_moves_a_shared_trunk_and_no_weight_of_a_separate_policy(shared: bool) -> None:
    policy, batch = fresh(shared=shared)
    batch = replace(batch, advantages=torch.zeros_like(batch.advantages))
    found = gradients(policy, replace(batch, logp_old=batch.logp_old), settings(), [8])
    moved = {name for name, g in found.items() if float(g.abs().max()) > 0}
    assert moved == ({"trunk.weight"} if shared else {"critic_trunk.weight"}) | {"value_head.weight", "value_head.bias"}


@pytest.mark.parametrize("shared", [False, True])
def test_item_40_critic_warm_up_leaves_the_policy_bit_identical(shared: bool) -> None:
    policy, batch = fresh(shared=shared)
    optimizer = make_optimizer(policy, settings(weight_decay=0.1))
    before = weights_of(policy)
    update(policy, batch, settings(weight_decay=0.1), critic_only=True, optimizer=optimizer)
    after = weights_of(policy)
    policy_names = [name for name, _ in policy.named_policy_parameters()]
    assert all(torch.equal(before[name], after[name]) for name in policy_names)
    assert not torch.equal(before["value_head.weight"], after["value_head.weight"])
    assert all(p not in optimizer.state for _, p in policy.named_policy_parameters())  # no moments either
    update(policy, batch, settings(weight_decay=0.1), optimizer=optimizer)
    assert not any(torch.equal(before[name], weights_of(policy)[name]) for name in policy_names)


def test_item_41_gradients_are_clipped_and_the_norm_is_told_before_and_after() -> None:
    policy, batch = fresh()
    huge = replace(batch, returns=batch.returns * 1e4)
    stats = update(policy, huge, settings(max_grad_norm=0.5))
    assert stats.grad_norm > 100 and stats.grad_norm_clipped == 0.5
    moved = {}
    for limit in (0.5, None):  # under plain SGD a step is as long as the clipped norm allows
        policy, _ = fresh()
        before, optimizer = weights_of(policy), torch.optim.SGD(policy.parameters(), lr=1.0)
        update(policy, huge, settings(max_grad_norm=limit, num_mini_batches=1, num_ppo_epochs=1), optimizer=optimizer)
        moved[limit] = sum(float((before[name] - tensor).square().sum()) for name, tensor in weights_of(policy).items()) ** 0.5
    assert moved[0.5] == pytest.approx(0.5, rel=1e-3) and moved[None] > 100
    assert update(fresh()[0], batch, settings(max_grad_norm=None)).grad_norm_clipped > 0


def test_item_42_old_log_probs_stay_frozen_over_epochs() -> None:
    policy, batch = fresh()
    kept = {name: getattr(batch, name).clone() for name in ("logp_old", "values_old", "advantages", "returns", "dist_old")}
    stats = update(policy, batch, settings(num_ppo_epochs=8, num_mini_batches=1))
    assert all(torch.equal(getattr(batch, name), tensor) for name, tensor in kept.items())
    assert stats.kl_after > stats.approx_kl > 0  # measured from the rollout's policy on, not from the last epoch's


def test_item_43_each_row_is_used_once_an_epoch_in_another_order_each_epoch() -> None:
    Recorder.seen = []
    policy = Recorder(8, 4)
    batch = rollout(policy, rows=8, steps=6, num_states=8, generator=torch.Generator().manual_seed(1), lengths=LENGTHS)
    states = torch.arange(8)[:, None].expand(8, 6)
    seen = TokenActorCritic.evaluate(policy, states, batch.actions)
    batch = replace(batch, states=states, logp_old=seen.logp.detach(), values_old=seen.values.detach())
    Recorder.seen = []
    update(policy, batch, settings(num_ppo_epochs=3, num_mini_batches=2, micro_batch_size=3))
    rows = [row for micro in Recorder.seen for row in micro]
    epochs = [rows[start : start + 8] for start in (0, 8, 16)]
    assert all(Counter(epoch) == Counter(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [len(micro) for micro in Recorder.seen] == [3, 1] * 6


def test_item_44_target_kl_stops_before_the_step_that_would_follow_a_kl_above_one_and_a_half_times_it() -> None:
    cfg = settings(num_mini_batches=1, num_ppo_epochs=10, learning_rate=3e-2)
    kls = []
    for epochs in range(1, 8):  # the KL that the minibatch of epoch n sees, before its step
        policy, batch = fresh()
        kls.append(update(policy, batch, cfg.model_copy(update={"num_ppo_epochs": epochs})).kl_after)
    assert kls == sorted(kls)
    target = (kls[3] + kls[4]) / 2 / 1.5  # 1.5 targets lie between what epochs 4 and 5 see
    policy, batch = fresh()
    stats = update(policy, batch, cfg.model_copy(update={"target_kl": target}))
    assert (stats.steps, stats.stopped_early) == (4, True)
    assert stats.kl_after == pytest.approx(kls[4])
    policy, batch = fresh()
    stats = update(policy, batch, cfg.model_copy(update={"target_kl": 1e3}))
    assert (stats.steps, stats.stopped_early) == (10, False)


def test_item_47_the_learning_rate_reaches_its_planned_end() -> None:
    policy = TokenActorCritic(5, 4)
    cfg = settings(learning_rate=1e-3, lr_scheduler="cosine", lr_min_share=0.1, warmup_steps=3)
    optimizer = make_optimizer(policy, cfg)
    rates = [set_learning_rates(optimizer, cfg, step, 100) for step in range(101)]
    assert max(rates) == rates[3] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(1e-4) and rates[99] == pytest.approx(1e-4, rel=0.01)
    assert lr_share(settings(lr_scheduler="linear"), 100, 100) == 0


class Counting(gymnasium.Env[np.ndarray, int]):
    """Shows its step number; terminates after `lives` steps or is cut by a TimeLimit around it; pays 1."""

    observation_space = gymnasium.spaces.Box(0, 1000, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, lives: int) -> None:
        self.lives, self.step_number = lives, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        return np.full(1, self.step_number, np.float32), 1.0, self.step_number >= self.lives, False, {}


class ValueIsObservation(MLPActorCritic):
    """V(s) = s, so that what was bootstrapped can be read off."""

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(observations)[0], observations


def counting_envs(lives: int, limit: int | None) -> SyncVectorEnv:
    def make() -> gymnasium.Env[Any, Any]:
        env: gymnasium.Env[Any, Any] = Counting(lives)
        return env if limit is None else gymnasium.wrappers.TimeLimit(env, limit)

    return SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.DISABLED)


def counted(lives: int, limit: int | None) -> Any:
    envs, generator = counting_envs(lives, limit), torch.Generator().manual_seed(0)
    actor_critic = make_actor_critic(envs, (4,), generator)
    actor_critic.__class__ = ValueIsObservation
    collector = Collector(envs, seed=0)
    collector.collect(actor_critic, 2, generator)  # so that the next rollout starts in the middle of an episode
    return collector.collect(actor_critic, 7, generator)


def test_item_58_only_a_truncated_episode_bootstraps_from_its_last_observation() -> None:
    cut, over = counted(lives=100, limit=5), counted(lives=5, limit=None)
    assert cut.ended[0].tolist() == over.ended[0].tolist() == [False, False, True, False, False, False, False]
    assert not cut.terminated.any() and over.terminated[0].tolist() == over.ended[0].tolist()
    assert cut.next_values[0, 2] == 5  # V of observation 5, which no row holds
    gamma = 0.9
    for rollout_, expected in ((cut, 1 + gamma * 5 - 4), (over, 1 - 4)):  # the TD error of the last step: V(4) = 4
        batch = to_batch(rollout_, gamma=gamma, lam=0.0, keep_dist=False)
        assert float(batch.advantages.view(2, 7)[0, 2]) == pytest.approx(expected)


def test_item_58_a_constant_reward_with_a_time_limit_is_worth_1_over_1_minus_gamma() -> None:
    """Only bootstrapping at the limit makes the value the same everywhere: 1 + gamma V = V = 1 / (1 - 0.8) = 5."""
    cfg = PPOConfig(
        rollout_batch_size=64, num_ppo_epochs=4, micro_batch_size=64, gamma=0.8, learning_rate=3e-3, critic_learning_rate=3e-2
    )
    envs, generator = counting_envs(100, 4), torch.Generator().manual_seed(0)
    actor_critic = make_actor_critic(envs, (16,), generator)
    collector, optimizer = Collector(envs, seed=0), make_optimizer(actor_critic, cfg)
    for _ in range(60):
        batch = to_batch(collector.collect(actor_critic, 32, generator), gamma=0.8, lam=0.95, keep_dist=False)
        ppo_update(actor_critic, batch, cfg, optimizer=optimizer, runtime=SingleRuntime(), generator=generator, beta=0, kl_coef=0)
    with torch.no_grad():
        values = actor_critic(torch.arange(4.0)[:, None])[1].squeeze(-1)
    torch.testing.assert_close(values, torch.full((4,), 5.0), atol=0.5, rtol=0)


@pytest.mark.parametrize("limit", [5, None])
def test_item_59_no_transition_spans_a_reset(limit: int | None) -> None:
    """The environment shows its step number: within an episode it rises by 1 in every transition, and no step is lost."""
    seen = counted(lives=5, limit=limit)
    assert seen.observations[0, :, 0].tolist() == [2, 3, 4, 0, 1, 2, 3]
    following = seen.next_values[0].tolist()
    assert following == [3, 4, 5, 1, 2, 3, 4]
    assert seen.episode_returns == (5.0, 5.0) and seen.episode_lengths == (5, 5)


def test_item_60_weights_start_orthogonal_with_gains_sqrt_2_one_hundredth_and_1_in_separate_tanh_networks() -> None:
    envs = make_envs(ControlConfig(num_envs=2))
    actor_critic = make_actor_critic(envs, (64, 64), torch.Generator().manual_seed(0))
    envs.close()
    linear = {name: layer for name, layer in actor_critic.named_modules() if isinstance(layer, torch.nn.Linear)}
    gains = {name: torch.linalg.svdvals(layer.weight.detach()) for name, layer in linear.items()}
    expected = {
        "policy_body.0": 2**0.5,
        "policy_body.2": 2**0.5,
        "policy_head.logits": 0.01,
        "critic.0": 2**0.5,
        "critic.2": 2**0.5,
    }
    for name, gain in {**expected, "critic.4": 1.0}.items():
        torch.testing.assert_close(gains[name], torch.full_like(gains[name], gain), atol=1e-5, rtol=0)
        assert not linear[name].bias.detach().any()
    assert len(gains) == 6 and sum(isinstance(layer, torch.nn.Tanh) for layer in actor_critic.modules()) == 4
    policy = {id(p) for _, p in actor_critic.named_policy_parameters()}
    critic = {id(p) for _, p in actor_critic.named_critic_parameters()}
    assert not policy & critic and len(policy | critic) == len(list(actor_critic.parameters()))


def test_item_61_gaussian_log_probs_are_summed_over_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    head = GaussianHead(3, 2, generator)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([0.3, -0.7]))
        dist, actions = head(torch.randn(5, 3, generator=generator)), torch.randn(5, 2, generator=generator)
    theirs = torch.distributions.Independent(torch.distributions.Normal(dist[:, 0], dist[:, 1].exp()), 1)
    torch.testing.assert_close(head.log_prob(dist, actions), theirs.log_prob(actions))
    torch.testing.assert_close(head.entropy(dist), theirs.entropy())
    other = dist + 0.2
    torch.testing.assert_close(head.kl(dist, other), kl_gaussian(dist[:, 0], dist[:, 1], other[:, 0], other[:, 1]))
    normal = torch.distributions.Independent(torch.distributions.Normal(other[:, 0], other[:, 1].exp()), 1)
    torch.testing.assert_close(head.kl(dist, other), torch.distributions.kl_divergence(theirs, normal))


class Echo(gymnasium.Env[np.ndarray, np.ndarray]):
    """Remembers the largest action it was given; its box is [-0.1, 0.1]."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)
    largest = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        type(self).largest = max(type(self).largest, float(np.abs(action).max()))
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_item_61_actions_are_clipped_for_the_environment_and_stored_as_sampled() -> None:
    envs, generator = SyncVectorEnv([Echo], autoreset_mode=AutoresetMode.DISABLED), torch.Generator().manual_seed(0)
    actor_critic = make_actor_critic(envs, (4,), generator)
    rollout_ = Collector(envs, seed=0).collect(actor_critic, 20, generator)
    assert pytest.approx(0.1) == Echo.largest
    assert float(rollout_.actions.abs().max()) > 1
    torch.testing.assert_close(rollout_.logp, actor_critic.policy_head.log_prob(rollout_.dist, rollout_.actions))
