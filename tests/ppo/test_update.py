"""`ppo_update`: what is refused, skipped, stopped, measured, and what moves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.config import PPOConfig
from surefoot.core import standardize
from surefoot.errors import ConfigError, Interrupted, TrainingError
from surefoot.optim import make_optimizer
from surefoot.ppo import next_coefficient, ppo_update
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


class Spoiled(TokenActorCritic):
    """Adds `spoil(call)` to the log-probs of each evaluation, so that single minibatches can be poisoned."""

    spoils: tuple[float, ...] = ()
    calls = 0

    def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
        seen = super().evaluate(states, actions)
        spoil = self.spoils[self.calls] if self.calls < len(self.spoils) else 0.0
        self.calls += 1
        return replace(seen, logp=seen.logp + spoil)


def spoiled(*spoils: float) -> tuple[Spoiled, PPOBatch]:
    policy = Spoiled(5, 4)
    batch = rollout(policy, rows=8, steps=6, num_states=5, generator=torch.Generator().manual_seed(1), lengths=LENGTHS)
    policy.spoils, policy.calls = spoils, 0
    return policy, batch


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_minibatch_is_skipped_counted_explained_and_the_others_are_learned_from(poison: float) -> None:
    policy, batch = spoiled(0.0, poison)
    stats = update(policy, batch, settings())
    assert (stats.steps, stats.skipped, stats.skipped_in_row) == (3, 1, 0)
    assert "loss_policy" in stats.skip_reason and stats.skip_reason.endswith("not finite")
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(policy).values())
    assert all(math.isfinite(getattr(stats, name)) for name in stats.__slots__ if name != "skip_reason")


def test_skips_in_a_row_end_in_an_alarm_with_the_weights_untouched() -> None:
    policy, batch = spoiled(*[math.nan] * 4)
    before = weights_of(policy)
    with pytest.raises(
        TrainingError, match=r"3 optimizer steps in a row were refused \(ppo.max_skipped_steps = 3\): .*not finite"
    ):
        update(policy, batch, settings(max_skipped_steps=3))
    assert largest_difference(before, weights_of(policy)) == 0


def test_skips_in_a_row_are_carried_from_update_to_update() -> None:
    policy, batch = spoiled(0.0, 0.0, math.nan, math.nan)
    stats = update(policy, batch, settings())
    assert (stats.skipped, stats.skipped_in_row) == (2, 2)
    policy, batch = spoiled(math.nan)
    with pytest.raises(TrainingError, match="5 optimizer steps in a row"):
        update(policy, batch, settings(), skipped_in_row=4)


@pytest.mark.parametrize("name", ["advantages", "returns", "logp_old", "values_old"])
def test_the_reason_names_the_part_of_the_rollout_that_was_not_finite(name: str) -> None:
    policy, batch = fresh()
    broken = getattr(batch, name).clone()
    broken[0, 0] = math.nan
    cfg = settings(num_mini_batches=1, cliprange_value=0.2, whiten_advantages=False)
    stats = update(policy, replace(batch, **{name: broken}), cfg)
    assert stats.skipped == 2 and f"the rollout's {name}" in stats.skip_reason


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_norm_that_is_not_finite_takes_no_step_although_the_loss_is_fine(poison: float) -> None:
    policy, batch = fresh()
    policy.value_head.bias.register_hook(lambda gradient: torch.full_like(gradient, poison))
    before = weights_of(policy)
    stats = update(policy, batch, settings())
    assert (stats.steps, stats.skipped, stats.skip_reason) == (0, 4, f"the gradient norm is {poison}")
    assert largest_difference(before, weights_of(policy)) == 0


def test_a_minibatch_whose_rows_are_all_masked_is_counted_and_explained() -> None:
    policy, batch = fresh()
    mask = batch.mask.clone()
    mask[1:] = False
    stats = update(policy, replace(batch, mask=mask), settings())
    assert (stats.steps, stats.skipped, stats.skip_reason) == (2, 2, "every row of the minibatch is masked")


def test_a_rollout_without_a_valid_step_is_an_alarm() -> None:
    policy, batch = fresh()
    with pytest.raises(TrainingError, match="None of the 8 rows of the rollout has a valid step"):
        update(policy, replace(batch, mask=torch.zeros_like(batch.mask)), settings())


def test_rows_that_do_not_divide_into_minibatches_are_refused_with_the_numbers_that_do() -> None:
    policy, batch = fresh()
    with pytest.raises(ConfigError, match=r"num_mini_batches = 4 does not divide the 6 rows .* Use one of 1, 2, 3, 6\."):
        update(policy, batch[torch.arange(6)], settings(num_mini_batches=4))


@pytest.mark.parametrize("flips_at", [0, 1, 2])
def test_a_stop_request_finishes_the_minibatch_and_raises(flips_at: int) -> None:
    policy, batch = spoiled()
    answers = iter([call == flips_at for call in range(9)])
    before = weights_of(policy)
    with pytest.raises(Interrupted):
        update(policy, batch, settings(), should_stop=lambda: next(answers))
    assert policy.calls == flips_at + 1
    assert largest_difference(before, weights_of(policy)) > 0


def test_statistics_of_an_update_of_one_step_are_those_of_a_policy_that_has_not_moved() -> None:
    policy, batch = fresh()
    stats = update(policy, batch, settings(num_mini_batches=1, num_ppo_epochs=1))
    assert (stats.approx_kl, stats.kl_after, stats.clip_fraction, stats.outside_fraction, stats.ratio_var) == (0, 0, 0, 0, 0)
    assert (stats.ratio_mean, stats.ratio_max, stats.first_log_ratio, stats.steps) == (1, 1, 0, 1)
    with torch.no_grad():
        entropy = TokenActorCritic(5, 4).evaluate(batch.states, batch.actions).entropy[batch.mask].mean()
    assert stats.entropy == pytest.approx(float(entropy), rel=1e-5)


@pytest.mark.parametrize("objective", ["clip", "penalty", "policy_gradient"])
def test_only_an_objective_that_clips_reports_clipped_gradients_while_all_report_ratios_outside(objective: Any) -> None:
    policy, batch = fresh()
    stats = update(policy, batch, settings(objective=objective, learning_rate=5e-2, num_ppo_epochs=4))
    assert stats.outside_fraction > 0.1 and stats.ratio_max > 1.2
    assert (stats.clip_fraction > 0.05) == (objective == "clip")
    assert stats.clip_fraction <= stats.outside_fraction


def test_means_are_over_valid_steps_of_all_minibatches_and_not_means_of_means() -> None:
    """With learning rate 0 every minibatch sees the same policy, so the mean over two epochs is that over the batch."""
    policy, batch = fresh()
    optimizer = make_optimizer(policy, settings())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    stats = update(policy, batch, settings(micro_batch_size=1), optimizer=optimizer)
    expected = ((batch.values_old - batch.returns) ** 2)[batch.mask].mean() / 2
    assert stats.loss_value == pytest.approx(float(expected), rel=1e-5)


def test_kl_after_is_measured_after_the_last_step_where_a_rule_of_beta_reads_it() -> None:
    policy, batch = fresh()
    cfg = settings(objective="penalty", beta_controller="doubling", num_mini_batches=1, num_ppo_epochs=1)
    stats = update(policy, batch, cfg)
    with torch.no_grad():
        exact = policy.kl(batch.dist_old, policy.evaluate(batch.states, batch.actions).dist)[batch.mask].mean()
    assert stats.approx_kl == pytest.approx(0, abs=1e-7)
    assert stats.kl_after == pytest.approx(float(exact), rel=1e-4) and stats.kl_after > 1e-4


def test_ratio_and_explained_variance_have_the_values_of_hand() -> None:
    """Ratio 1 in the first epoch and 1.5 in the second, nothing moves: mean 1.25, variance 0.25^2, maximum 1.5."""
    policy, batch = spoiled(0.0, math.log(1.5))
    cfg = settings(num_mini_batches=1)
    optimizer = make_optimizer(policy, cfg)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    stats = update(policy, batch, cfg, optimizer=optimizer)
    assert (stats.ratio_mean, stats.ratio_var, stats.ratio_max) == pytest.approx((1.25, 0.0625, 1.5), rel=1e-5)
    gap, returns = (batch.returns - batch.values_old)[batch.mask], batch.returns[batch.mask]
    expected = 1 - gap.var(unbiased=False) / returns.var(unbiased=False)
    assert stats.explained_variance == pytest.approx(float(expected), rel=1e-4)


def test_an_update_by_sequence_divides_by_rows() -> None:
    """The gradient as well: plain SGD moves the critic's bias by the learning rate times the mean over rows of the mean gap."""
    policy, batch = fresh()
    sizes = {"num_mini_batches": 1, "num_ppo_epochs": 1}
    cfg, before = settings(loss_aggregation="sequence_mean", max_grad_norm=None, **sizes), weights_of(policy)
    stats = update(policy, batch, cfg, optimizer=torch.optim.SGD(policy.parameters(), lr=0.1))

    def by_row(x: Tensor) -> float:
        return float(((x * batch.mask).sum(dim=1) / LENGTHS).mean())

    gap = batch.values_old - batch.returns
    assert stats.loss_value == pytest.approx(by_row(gap**2) / 2, rel=1e-5)
    moved = float(policy.value_head.bias.detach() - before["value_head.bias"])
    assert moved == pytest.approx(-0.1 * by_row(gap), rel=1e-4)


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_kl_after_is_that_of_the_last_minibatch_where_no_rule_reads_it(objective: Any) -> None:
    policy, batch = spoiled()
    stats = update(policy, batch, settings(objective=objective))
    assert policy.calls == 4 and 0 < stats.approx_kl < stats.kl_after


@pytest.mark.parametrize("whiten", [True, False])
def test_advantages_are_left_as_they_are_where_whitening_is_off(whiten: bool) -> None:
    """At ratio 1 the policy loss is minus the mean advantage: 0 when whitened."""
    policy, batch = fresh()
    batch = replace(batch, advantages=batch.advantages + 5)
    stats = update(policy, batch, settings(num_mini_batches=1, num_ppo_epochs=1, whiten_advantages=whiten))
    assert stats.loss_policy == pytest.approx(0 if whiten else -float(batch.advantages[batch.mask].mean()), abs=1e-5)


@pytest.mark.parametrize("dtype, gap, is_refused", [("float32", 2e-4, True), ("bfloat16", 2e-4, False), ("bfloat16", 0.03, True)])
def test_the_first_ratio_is_held_to_the_precision_of_the_weights(dtype: str, gap: float, is_refused: bool) -> None:
    policy, batch = fresh()
    policy.register_parameter("frozen", torch.nn.Parameter(torch.zeros(1, dtype=getattr(torch, dtype)), requires_grad=False))
    policy.named_policy_parameters = lambda: ((n, p) for n, p in policy.named_parameters() if n.startswith(("trunk", "policy")))  # type: ignore[method-assign]
    batch = replace(batch, logp_old=batch.logp_old - gap)
    if is_refused:
        with pytest.raises(TrainingError, match=r"Before the first step the policy differs from the rollout's.*dropout"):
            update(policy, batch, settings())
    else:
        assert update(policy, batch, settings()).first_log_ratio == pytest.approx(gap, rel=0.01)


@pytest.mark.parametrize("gap, is_refused", [(2e-4, False), (0.03, True)])
def test_float32_weights_that_compute_in_half_precision_are_held_to_its_bound(gap: float, is_refused: bool) -> None:
    policy, batch = fresh()
    batch = replace(batch, logp_old=batch.logp_old - gap)
    if is_refused:
        with pytest.raises(TrainingError, match=r"where the mean must stay below 0\.02"):
            update(policy, batch, settings(), half_precision=True)
    else:
        assert update(policy, batch, settings(), half_precision=True).first_log_ratio == pytest.approx(gap, rel=0.01)


@pytest.mark.parametrize("objective", ["clip", "penalty", "policy_gradient"])
@pytest.mark.parametrize("whiten", [True, False])
def test_weights_multiply_advantages_after_they_are_standardised(objective: Any, whiten: bool) -> None:
    cfg = settings(objective=objective, whiten_advantages=whiten)
    (weighed, batch), (by_hand, _) = fresh(), fresh()
    weights = torch.linspace(0.2, 1.8, batch.mask.numel()).reshape(batch.mask.shape)
    update(weighed, replace(batch, weights=weights), cfg)
    advantages = standardize(batch.advantages, batch.mask) if whiten else batch.advantages
    update(by_hand, replace(batch, advantages=advantages * weights), cfg.model_copy(update={"whiten_advantages": False}))
    assert largest_difference(weights_of(weighed), weights_of(by_hand)) == 0
    plain, _ = fresh()
    update(plain, batch, cfg)
    assert largest_difference(weights_of(weighed), weights_of(plain)) > 1e-4


def test_equal_seeds_give_equal_bytes_and_another_order_does_not() -> None:
    weights = []
    for seed in (3, 3, 4):
        policy, batch = fresh()
        cfg = settings()
        ppo_update(
            policy,
            batch,
            cfg,
            optimizer=make_optimizer(policy, cfg),
            runtime=SingleRuntime(),
            generator=torch.Generator().manual_seed(seed),
            beta=0,
            kl_coef=0,
        )
        weights.append(weights_of(policy))
    assert largest_difference(weights[0], weights[1]) == 0 < largest_difference(weights[0], weights[2])


@pytest.mark.parametrize(
    "rule, expected",
    [("fixed", 2.0), ("doubling", 4.0), ("exponential", 2 * math.exp(0.3)), ("proportional", 2 * (1 + 0.2 * 50 / 100))],
)
def test_every_rule_moves_a_coefficient_as_named(rule: Any, expected: float) -> None:
    moved = next_coefficient(rule, 2.0, 0.04, target=0.01, rate=10.0, horizon=100, steps=50)
    assert moved == pytest.approx(expected)
