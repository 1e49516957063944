"""PPO (8.3.3 to 8.3.5) for tokens and control alike: `ppo_loss` of some rows, and `ppo_update`, which learns from a rollout.

`ppo_loss` is the only place where masks are applied and means are taken. Neither function looks into `states` or `dist`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .config import PPOConfig, Rule
from .core import (
    clip_active,
    clipped_surrogate,
    clipped_value_loss,
    doubling_rule,
    exponential_rule,
    importance_ratio,
    kl_estimate,
    kl_penalized_surrogate,
    masked_mean,
    policy_gradient,
    proportional_rule,
    standardize,
    value_loss,
    zero_outside,
)
from .errors import ConfigError, TrainingError
from .micro_batches import micro_batches
from .ppo_by_hand import SeedUpdate, fits, nets_of, update_by_hand
from .ppo_decisions import Stepped, carried_out, decisions, mean_count, reads_kl_after
from .ppo_figures import NUM_PARTS, LossParts, Seen, stacked, statistics
from .types import ActorCritic, Evaluation, Nets, PPOBatch, Runtime, UpdateStats

ExactKL = Callable[[Any, Any], Float[Tensor, "B T"]]


def ppo_loss(
    evaluation: Evaluation,
    rows: PPOBatch,
    cfg: PPOConfig,
    *,
    kl: ExactKL,
    beta: float,
    kl_coef: float,
    count: int,
    critic_only: bool = False,
) -> tuple[Float[Tensor, ""], LossParts[Tensor]]:
    r"""-surrogate + vf_coef * value loss - ent_coef * entropy + kl_coef * tether (8.3.3 to 8.3.5). Minimised.

    The tether is there where kl_in = "loss"; in the reward it costs nothing a second time.

    Every term is aggregated alike. token_mean: the sum over valid steps / count. sequence_mean: the sum over rows of the mean
    over the row's valid steps / count. `count` is `mean_count` of the WHOLE minibatch, all micro-batches and ranks, so that
    losses and gradients add up to those of the minibatch, however it was cut. `critic_only` leaves vf_coef * value loss alone.

    `kl` is the exact KL of the actor-critic. The tether KL(policy || SFT) by k2 weighs each sample by its ratio, detached: rows
    are samples of pi_old, and E_old[r grad k2] = E_theta[(log pi_theta - log pi_sft) grad log pi_theta] is the gradient of that
    KL. Prefixes stay those of pi_old, in the exact tethers too.

    Masked slots are emptied before any arithmetic; inside `kl` that is up to the actor-critic.
    """
    mask = rows.mask
    logp, logp_old = zero_outside(evaluation.logp, mask), zero_outside(rows.logp_old, mask)
    values, values_old = zero_outside(evaluation.values, mask), zero_outside(rows.values_old, mask)
    advantages, returns = zero_outside(rows.advantages, mask), zero_outside(rows.returns, mask)
    ratio = importance_ratio(logp, logp_old)
    kl_old_new = zero_outside(_kl_old_new(evaluation, rows, logp, logp_old, kl, cfg), mask)
    row_length = mask.sum(dim=1, keepdim=True).clamp(min=1) if cfg.loss_aggregation == "sequence_mean" else 1

    def mean(x: Tensor) -> Tensor:
        return masked_mean(x / row_length, mask, count)

    surrogate = _surrogate(logp, logp_old, ratio, advantages, kl_old_new, cfg, beta)
    plain = value_loss(values, returns)
    clip_v = cfg.cliprange_value
    value = plain if clip_v is None else clipped_value_loss(values, values_old, returns, cliprange=clip_v)

    loss_policy, loss_value, tether = -mean(surrogate), mean(value), torch.zeros_like(logp)
    loss = cfg.vf_coef * loss_value
    if not critic_only:
        loss = loss + loss_policy - cfg.ent_coef * mean(evaluation.entropy)
        if cfg.kl_in == "loss" and kl_coef > 0:
            tether = zero_outside(_tether(evaluation, rows, logp, ratio, kl, cfg), mask)
            loss = loss + kl_coef * mean(tether)

    high = cfg.cliprange if cfg.cliprange_high is None else cfg.cliprange_high
    is_cut = clip_active(ratio, advantages, epsilon=cfg.cliprange, epsilon_high=high) & (cfg.objective == "clip")
    total = partial(_total, mask=mask)
    return loss, LossParts(
        loss_policy=loss_policy.detach() * count,
        loss_value=loss_value.detach() * count,
        loss_total=loss.detach() * count,
        kl_old_new=total(kl_old_new),
        kl_tether=total(tether),
        clipped=total(is_cut),
        outside=total((ratio > 1 + high) | (ratio < 1 - cfg.cliprange)),
        value_clipped=total(value > plain),
        ratio_gap=total(ratio - 1),
        ratio_gap_squared=total((ratio - 1) ** 2),
        abs_log_ratio=total((logp - logp_old).abs()),
        entropy=total(evaluation.entropy),
    )


def _total(x: Tensor, mask: Tensor) -> Float[Tensor, ""]:
    """The sum over valid steps, without gradient."""
    return zero_outside(x.detach().float(), mask).sum()


def _surrogate(
    logp: Tensor, logp_old: Tensor, ratio: Tensor, advantages: Tensor, kl_old_new: Tensor, cfg: PPOConfig, beta: float
) -> Float[Tensor, "B T"]:
    """What the objective of `cfg` maximises, a step."""
    match cfg.objective:
        case "clip":
            return clipped_surrogate(ratio, advantages, epsilon=cfg.cliprange, epsilon_high=cfg.cliprange_high)
        case "penalty":
            penalty = kl_estimate(logp_old, logp, "k1") if cfg.beta_estimator == "k1" else kl_old_new
            return kl_penalized_surrogate(ratio, advantages, penalty, beta=beta)
        case "policy_gradient":
            return policy_gradient(logp, advantages)


def _kl_old_new(
    evaluation: Evaluation, rows: PPOBatch, logp: Tensor, logp_old: Tensor, kl: ExactKL, cfg: PPOConfig
) -> Float[Tensor, "B T"]:
    """KL(pi_old || pi_theta), exact where the rollout kept `dist_old`, else k3; with gradient where the penalty is made of it."""
    penalty = cfg.beta_estimator if cfg.objective == "penalty" else ""
    if rows.dist_old is None and penalty == "exact":
        raise ConfigError(
            'ppo.beta_estimator = "exact" needs the distributions of the rollout. Give PPOBatch.dist_old, or use "k3".'
        )
    if rows.dist_old is None or penalty == "k3":
        return kl_estimate(logp_old, logp, "k3")
    with torch.set_grad_enabled(penalty == "exact" and torch.is_grad_enabled()):
        return kl(rows.dist_old, evaluation.dist)


def _tether(
    evaluation: Evaluation, rows: PPOBatch, logp: Tensor, ratio: Tensor, kl: ExactKL, cfg: PPOConfig
) -> Float[Tensor, "B T"]:
    """The KL between policy and reference that stands in the loss, in the direction and by the estimator of `cfg`."""
    name, reference = ("logp_ref", rows.logp_ref) if cfg.kl_estimator == "k2" else ("dist_ref", rows.dist_ref)
    if reference is None:
        raise ConfigError(f'ppo.kl_in = "loss" with kl_estimator = "{cfg.kl_estimator}" needs PPOBatch.{name}, which is None.')
    if isinstance(reference, Tensor) and cfg.kl_estimator == "k2":
        return ratio.detach() * kl_estimate(logp, zero_outside(reference, rows.mask), "k2")
    if cfg.kl_direction == "policy_sft":
        return kl(evaluation.dist, reference)
    return kl(reference, evaluation.dist)


def ppo_update(
    actor_critic: ActorCritic,
    batch: PPOBatch,
    cfg: PPOConfig,
    *,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    generator: torch.Generator,
    beta: float,
    kl_coef: float,
    critic_only: bool = False,
    skipped_in_row: int = 0,
    half_precision: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> UpdateStats:
    """Learns from one rollout: epochs x minibatches x micro-batches.

    `batch` is the whole rollout, the same on every rank, and `generator` (CPU) has the same state on every rank: each epoch draws
    one order of all rows, and a rank takes its share of each minibatch. So one seed gives one result for any number of ranks.
    Learning rates (`optim.set_learning_rates`) and coefficients are the caller's and hold for the whole update.

    Advantages are standardised here over all valid steps (`whiten_advantages`), then multiplied by `batch.weights`. Before the
    first step the policy is the rollout's, and a ratio other than 1 is an error; `half_precision` says that float32 weights
    compute in less (autocast), and then its mean may be off by rounding. `target_kl` is looked at before each step. A step
    whose loss, figures or gradient norm are not finite on any rank is not taken; figures of UpdateStats leave such a
    minibatch out, and are 0 where none is left. `critic_only` moves no weight of the policy, not even by a shared trunk.
    `kl_after` is measured by a pass over the rollout where a rule of beta reads it, and otherwise is that of the last
    minibatch before its step.

    Where the actor-critic has hand-written gradients (`types.NetsOwner`) and the update needs no more, they take the place of
    autograd on `ppo_loss`, with the same result up to rounding.

    Raises: ConfigError (rows do not divide); TrainingError (no valid step, a first ratio other than 1); Diverged
    (`max_skipped_steps` in a row, counted on from `skipped_in_row`); Interrupted (`should_stop` said so on a rank: the step at
    hand is finished, the update is not, and the caller goes back to its last checkpoint).
    """
    batch = _prepared(batch, cfg)
    if (nets := nets_of(actor_critic, batch, cfg, optimizer, runtime, kl_coef=kl_coef)) is not None:
        own = SeedUpdate(actor_critic, batch, optimizer, generator, beta, skipped_in_row)
        return update_by_hand(nets, [own], cfg, runtime=runtime, critic_only=critic_only, should_stop=should_stop)[0]
    loss_of = partial(ppo_loss, kl=actor_critic.kl, beta=beta, kl_coef=kl_coef, critic_only=critic_only)

    def gradients(chosen: Tensor) -> Seen:
        optimizer.zero_grad(set_to_none=True)
        return _gradients(actor_critic, batch, chosen, cfg, runtime, loss_of, should_stop)

    def step() -> Stepped:
        if critic_only:
            for _, weight in actor_critic.named_policy_parameters():
                weight.grad = None  # AdamW then leaves the weight and its moments alone
        return runtime.step(actor_critic, optimizer, cfg.max_grad_norm)

    course = decisions(
        actor_critic,
        batch,
        cfg,
        runtime=runtime,
        generator=generator,
        skipped_in_row=skipped_in_row,
        half_precision=half_precision,
    )
    tally = carried_out(course, gradients, step)
    optimizer.zero_grad(set_to_none=True)
    is_measured = reads_kl_after(cfg, critic_only=critic_only)
    kl_after = _measured_kl(actor_critic, batch, cfg, runtime) if is_measured else tally.last_kl
    log_ratio_max = float(runtime.max(torch.tensor(tally.highest_log_ratio, device=batch.mask.device)))
    return statistics(tally, batch, cfg, kl_after=kl_after, log_ratio_max=log_ratio_max)


def ppo_update_seeds(
    nets: Nets,
    seeds: Sequence[SeedUpdate],
    cfg: PPOConfig,
    *,
    runtime: Runtime,
    critic_only: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[UpdateStats]:
    """`ppo_update` of several seeds side by side: each comes out as it would alone, up to the rounding of the products.

    `nets` hold all the actor-critics. A seed has its own rollout, optimiser, generator and beta; `cfg` is the same for all.

    Raises: ConfigError where these updates need autograd; otherwise as `ppo_update`, of the first seed that raises.
    """
    have_gradients = all(fits(each.batch, cfg, kl_coef=0.0) for each in seeds)
    if runtime.world_size > 1 or not have_gradients or not nets.accepts([each.optimizer for each in seeds]):
        raise ConfigError(
            "Seeds are trained side by side in one process on the CPU, in float32, by AdamW over all weights, and the exact "
            "penalty needs dist_old. Train them one after the other."
        )
    prepared = [replace(each, batch=_prepared(each.batch, cfg)) for each in seeds]
    return update_by_hand(nets, prepared, cfg, runtime=runtime, critic_only=critic_only, should_stop=should_stop)


def next_coefficient(rule: Rule, coef: float, kl: float, *, target: float, rate: float, horizon: float, steps: float) -> float:
    """The coefficient (beta, or kl_coef) of the next update, by the rule of 8.3.4 that the configuration names; once an update.

    `kl` and `target` share a unit: nats a step for beta (`kl_after`), nats a sequence for kl_coef. `steps` counts as `horizon`.
    """
    match rule:
        case "fixed":
            return coef
        case "exponential":
            return exponential_rule(coef, kl, target=target, rate=rate)
        case "doubling":
            return doubling_rule(coef, kl, target=target)
        case "proportional":
            return proportional_rule(coef, kl, target=target, horizon=horizon, steps=steps)


def next_beta(cfg: PPOConfig, beta: float, stats: UpdateStats, *, steps: int) -> float:
    """Beta after an update over `steps` valid steps (8.3.4): by `kl_after`, and as it was where no step was taken."""
    if cfg.objective != "penalty" or not stats.steps:
        return beta
    return next_coefficient(
        cfg.beta_controller,
        beta,
        stats.kl_after,
        target=cfg.beta_target,
        rate=cfg.beta_rate,
        horizon=cfg.beta_horizon,
        steps=steps,
    )


def _prepared(batch: PPOBatch, cfg: PPOConfig) -> PPOBatch:
    """The batch with standardised and weighed advantages; refuses one that cannot be cut or holds no valid step."""
    rows, parts = len(batch), cfg.num_mini_batches
    if rows % parts:
        allowed = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise ConfigError(f"ppo.num_mini_batches = {parts} does not divide the {rows} rows of a rollout. Use one of {allowed}.")
    if not batch.mask.any():
        raise TrainingError(
            f"None of the {rows} rows of the rollout has a valid step. Look at the reward source and the prompts."
        )
    advantages = standardize(batch.advantages, batch.mask) if cfg.whiten_advantages else batch.advantages
    return replace(batch, advantages=advantages if batch.weights is None else advantages * batch.weights)


def _share(batch: PPOBatch, chosen: Tensor, cfg: PPOConfig, runtime: Runtime) -> Iterator[PPOBatch]:
    """This rank's part of the chosen rows, in micro-batches of like length (little padding); equally many on every rank."""
    mine = runtime.shard(len(chosen))
    chosen = chosen.to(batch.mask.device)
    lengths = batch.mask[chosen].sum(1) if batch.lengths is None else batch.lengths[chosen]
    most = max(len(micro_batches(of_rank, cfg)) for of_rank in lengths.chunk(runtime.world_size))
    rows = chosen[mine.start : mine.stop]
    for micro in micro_batches(lengths[mine.start : mine.stop], cfg, at_least=most):
        yield batch[rows[micro]]


def _gradients(
    actor_critic: ActorCritic,
    batch: PPOBatch,
    chosen: Tensor,
    cfg: PPOConfig,
    runtime: Runtime,
    loss_of: Callable[..., tuple[Tensor, LossParts[Tensor]]],
    should_stop: Callable[[], bool],
) -> Seen:
    """Adds the gradients of this rank's share of a minibatch to the weights, and sums what all ranks saw."""
    mask = batch.mask[chosen]
    count = mean_count(mask, cfg.loss_aggregation)
    sums = torch.zeros(NUM_PARTS, device=mask.device)
    log_ratios = torch.full((2,), -torch.inf, device=mask.device)
    for rows in _share(batch, chosen, cfg, runtime):
        evaluation = actor_critic.evaluate(rows.states, rows.actions)
        loss, parts = loss_of(evaluation, rows, cfg, count=count)
        loss.backward()
        sums += stacked(parts)
        gap = (evaluation.logp.detach() - rows.logp_old).float()
        log_ratios = torch.maximum(log_ratios, torch.stack((gap, gap.abs())).masked_fill(~rows.mask, -torch.inf).amax(dim=(1, 2)))
    *everywhere, stops = runtime.sum(torch.cat((sums, sums.new_tensor([should_stop()])))).tolist()
    highest, highest_abs = log_ratios.tolist()
    return Seen(everywhere, (highest, highest_abs), valid_steps=int(mask.sum()), count=count, is_stopping=stops > 0)


@torch.no_grad()
def _measured_kl(actor_critic: ActorCritic, batch: PPOBatch, cfg: PPOConfig, runtime: Runtime) -> float:
    """KL(pi_old || pi_theta) in nats a valid step over the whole rollout, with the weights as they are."""
    total = torch.zeros((), device=batch.mask.device)
    for chosen in torch.arange(len(batch)).chunk(cfg.num_mini_batches):
        for rows in _share(batch, chosen, cfg, runtime):
            evaluation = actor_critic.evaluate(rows.states, rows.actions)
            logp, logp_old = zero_outside(evaluation.logp, rows.mask), zero_outside(rows.logp_old, rows.mask)
            total += zero_outside(_kl_old_new(evaluation, rows, logp, logp_old, actor_critic.kl, cfg), rows.mask).sum()
    return float(runtime.sum(total)) / int(batch.mask.sum())
