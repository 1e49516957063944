"""PPO of a language model (8.3.5, third stage): sample, score, tether, update; one rollout a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from surefoot.config import Config, PPOConfig
from surefoot.errors import Diverged, Paused, RewardError
from surefoot.faults import fault_point
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PromptSet
from surefoot.lm.roles import LanguageActorCritic
from surefoot.optim import set_learning_rates
from surefoot.ppo import next_beta, next_coefficient, ppo_update
from surefoot.progress import Progress
from surefoot.runs import RunFolder, hash_folder, read_jsonl
from surefoot.runtime.single import SingleRuntime
from surefoot.stages.alarms import alarm_metrics
from surefoot.stages.beginning import Look, looked
from surefoot.stages.cards import write_card
from surefoot.stages.clock import Clock
from surefoot.stages.countermeasures import Suspects, countered, store_of
from surefoot.stages.held_out import HeldOut
from surefoot.stages.held_out import Look as HeldOutLook
from surefoot.stages.inputs import digest, source_digest
from surefoot.stages.judging import Judge, judged
from surefoot.stages.ppo_state import Carried, Learner, check_limits, check_rollout, gone_back, last_good
from surefoot.stages.replay import is_replayed, replay_rows
from surefoot.stages.rollouts import Rollout, RunningDeviation, rollout, sample_rows
from surefoot.types import Completions, Prompts, RewardSource, RolloutEngine, Runtime, Scores, UpdateStats

NUM_SAMPLES_KEPT = 8  # answers of each rollout that go into samples.jsonl


@dataclass(frozen=True, slots=True)
class PPOParts:
    """What PPO needs. Parts vary alone: another engine, reward source or runtime changes nothing else."""

    policy: LanguageActorCritic
    engine: RolloutEngine
    reward: RewardSource
    prompts: PromptSet
    judges: Mapping[str, Judge] = field(default_factory=dict)
    runtime: Runtime = field(default_factory=SingleRuntime)
    held_out: HeldOut | None = None
    reference: tuple[Backbone, RolloutEngine] | None = None  # the SFT model, where alarms have its answers labelled too


@dataclass(frozen=True, slots=True)
class PPOStep:
    """What one rollout and its update showed. `words` are metrics that are text, `ringing` the alarms that ring, in words."""

    update: int
    total: int
    metrics: Mapping[str, float]
    stats: UpdateStats
    rollout: Rollout
    seconds: Mapping[str, float]
    words: Mapping[str, str]
    ringing: Mapping[str, str]


def steps(parts: PPOParts, cfg: Config, folder: RunFolder | None = None) -> Iterator[PPOStep]:
    """Yields after every update. Stop whenever you like: the policy is the parts' own.

    A run that diverges goes back to its last checkpoint, and yields the updates after it again.
    """
    if cfg.ppo.alarms == "label":
        store_of(cfg, folder)  # refused now, not when the first alarm rings
    learner = Learner.fresh(parts.policy, cfg)
    at = Carried(beta=cfg.ppo.beta, kl_coef=cfg.ppo.kl_coef)
    if folder is not None and (state := folder.restore()) is not None:
        at = learner.load(state)
    while True:
        try:
            yield from _updates(parts, cfg, folder, learner, at)
            return
        except Diverged as trouble:
            at = gone_back(trouble, learner, folder, cfg, at.rollbacks)


def _updates(parts: PPOParts, cfg: Config, folder: RunFolder | None, learner: Learner, at: Carried) -> Iterator[PPOStep]:
    """The updates after `at`, as long as they go well."""
    ppo, policy, runtime = cfg.ppo, parts.policy, parts.runtime
    saved = at.update
    if at.is_far:
        return
    parts.engine.load_weights(runtime.full_weights(policy), at.update)
    for update in range(at.update + 1, ppo.num_updates + 1):
        clock = Clock()
        fault_point("rollout", update)
        index = _index(parts, cfg, update)
        prompts = parts.prompts.take(index, policy.backbone.codec.pad_id)
        drawn_from = learner.sampling.get_state()
        completions = parts.engine.generate(prompts, learner.sampling)
        clock.lap("rollout")
        _check_stop(folder, update)
        scores = _scored(parts, prompts, completions, folder, learner, at, drawn_from)
        clock.lap("reward")
        _check_stop(folder, update)
        running = at.running.seen(scores.value[scores.valid])
        seen = rollout(policy, prompts, completions, scores, ppo, kl_coef=at.kl_coef, running=running)
        check_rollout(seen, update)
        clock.lap("evaluate")
        rate = set_learning_rates(learner.optimizer, ppo, update - 1, ppo.num_updates)
        fault_point("backward", update)
        stats = _learned(parts, learner, seen, at, ppo, update, _never if saved < at.update else partial(_is_stopping, folder))
        learner.check(seen.batch, update)
        clock.lap("update")
        parts.engine.load_weights(runtime.full_weights(policy), update)
        metrics = _metrics(seen, stats, at, ppo, rate, update)
        judgements = judged(parts.judges, prompts.text, completions.text)
        metrics |= {f"judge/{name}": sum(numbers) / len(numbers) for name, numbers in judgements.items()}
        at, ringing, look = _watched(_moved(at, seen, stats, ppo, update, running), metrics, seen, judgements, parts, ppo)
        metrics |= {**look.metrics, **alarm_metrics(ringing)} if look is not None else {}
        words = look.words if look is not None else {}
        clock.lap("judges")
        if parts.held_out is not None and parts.held_out.is_due(update, ppo.num_updates):
            answered = parts.held_out.look(policy, parts.engine, parts.reward, partial(_check_stop, folder, update))
            metrics |= answered.metrics
            at = replace(at, is_far=answered.is_far)
            if folder is not None:
                _keep_look(folder, answered, parts.held_out.plan.stop_kl, update, ppo.num_updates)
            clock.lap("held_out")
        step = PPOStep(update, ppo.num_updates, metrics, stats, seen, clock.laps, words, ringing)
        if folder is not None:
            _record(folder, step, policy, ppo, judgements)
        at = countered(at, ringing, Suspects(seen, judgements, parts.prompts, index, parts.reference), cfg, update, folder)
        check_limits(seen, stats, ppo, update, last_good(folder))  # before the save: no run is resumed behind what stopped it
        if folder is not None:
            if update % ppo.save_every == 0 or update == ppo.num_updates or at.is_far or folder.stop_requested:
                folder.save(update, learner.state(at))
                saved = update
            folder.check_stop()
        yield step
        if at.is_far:
            return


def _keep_look(folder: RunFolder, look: HeldOutLook, stop_kl: float | None, update: int, planned: int) -> None:
    """Records the answers of a look at held-out prompts, and why the run ends with it where it does."""
    folder.samples(update, look.rows)
    if look.is_far:
        kl = look.metrics["held_out/kl"]
        folder.note(
            f"update {update} of {planned} is the last: KL of {kl:.3g} nats a sequence passes overoptimize.stop_kl = {stop_kl}"
        )


def _learned(
    parts: PPOParts, learner: Learner, seen: Rollout, at: Carried, cfg: PPOConfig, update: int, should_stop: Callable[[], bool]
) -> UpdateStats:
    """The update of policy and critic by a rollout."""
    return ppo_update(
        parts.policy,
        seen.batch,
        cfg,
        optimizer=learner.optimizer,
        runtime=parts.runtime,
        generator=learner.shuffling,
        beta=at.beta,
        kl_coef=at.kl_coef,
        critic_only=update <= cfg.critic_warmup_steps,
        skipped_in_row=at.skipped_in_row,
        half_precision=parts.policy.backbone.autocast is not None,
        should_stop=should_stop,
    )


def _index(parts: PPOParts, cfg: Config, update: int) -> list[int]:
    """The update's prompts, each as often as it is answered: the next of the seed's order, which begins again at its end."""
    each = cfg.ppo.num_samples_per_prompt
    count = cfg.ppo.rollout_batch_size // each
    index = parts.prompts.cyclic((update - 1) * count, count, cfg.seed)
    return [i for i in index for _ in range(each)]


def _scored(
    parts: PPOParts,
    prompts: Prompts,
    completions: Completions,
    folder: RunFolder | None,
    learner: Learner,
    at: Carried,
    drawn_from: Tensor,
) -> Scores:
    """What the reward says. Where it cannot, the state before this rollout is saved, so that it is sampled again, the same."""
    try:
        return parts.reward.score(prompts, completions)
    except (Paused, RewardError):
        if folder is not None and at.update > 0 and not folder.has_saved(at.update):
            learner.sampling.set_state(drawn_from)
            folder.save(at.update, learner.state(at))
        raise


def _is_stopping(folder: RunFolder | None) -> bool:
    return folder is not None and folder.stop_requested


def _never() -> bool:
    """While an update may not be broken off: the state before it is not on the disk."""
    return False


def _moved(at: Carried, seen: Rollout, stats: UpdateStats, cfg: PPOConfig, update: int, running: RunningDeviation) -> Carried:
    """The coefficients after this update: beta by `kl_after`, the tether by the rollout's mean KL a sequence.

    Both stand still while the critic warms up: the KLs are 0 as long as the policy does not move, and say nothing of beta and
    kl_coef.

    Raises: Diverged where `kl_after` is not a number.
    """
    if update <= cfg.critic_warmup_steps:
        return replace(at, update=update, skipped_in_row=stats.skipped_in_row, running=running)
    if math.isnan(stats.kl_after):
        raise Diverged(f"KL(pi_old || pi_theta) after update {update} is not a number: the weights have diverged.")
    beta = next_beta(cfg, at.beta, stats, steps=int(seen.batch.mask.sum()))
    kl_coef = next_coefficient(
        cfg.kl_controller,
        at.kl_coef,
        max(seen.metrics["objective/kl"], 0.0),  # k1's mean may fall below 0 by chance; a KL cannot
        target=cfg.kl_target,
        rate=cfg.kl_rate,
        horizon=cfg.kl_horizon,
        steps=cfg.rollout_batch_size,
    )
    return replace(at, update=update, beta=beta, kl_coef=kl_coef, skipped_in_row=stats.skipped_in_row, running=running)


def _metrics(seen: Rollout, stats: UpdateStats, at: Carried, cfg: PPOConfig, rate: float, update: int) -> dict[str, float]:
    """One line of metrics.jsonl. Coefficients are those that held during the update."""
    out = dict(seen.metrics) | {
        "policy/approxkl_avg": stats.approx_kl,
        "policy/kl_after": stats.kl_after,
        "policy/clipfrac_avg": stats.clip_fraction,
        "policy/outside_fraction": stats.outside_fraction,
        "policy/entropy_avg": stats.entropy,
        "loss/policy_avg": stats.loss_policy,
        "loss/value_avg": stats.loss_value,
        "loss/total_avg": stats.loss_total,
        "val/clipfrac_avg": stats.value_clip_fraction,
        "val/ratio": stats.ratio_mean,
        "val/ratio_var": stats.ratio_var,
        "val/ratio_max": stats.ratio_max,
        "val/first_log_ratio": stats.first_log_ratio,
        "critic/explained_variance": stats.explained_variance,
        "grad_norm": stats.grad_norm,
        "grad_norm_clipped": stats.grad_norm_clipped,
        "optimizer/steps": stats.steps,
        "optimizer/skipped_steps": stats.skipped,
        "optimizer/stopped_early": float(stats.stopped_early),
        "optimizer/rollbacks": at.rollbacks,
        "lr": rate,
        "episode": update * cfg.rollout_batch_size,
        "kl/coef": at.kl_coef,
    }
    if cfg.kl_in == "loss":
        out["kl/in_loss"] = stats.kl_tether
    if cfg.kl_controller != "fixed":
        out["kl/target"] = cfg.kl_target
    if cfg.objective == "penalty":
        out["kl/beta"] = at.beta
    return out


def _watched(
    at: Carried,
    metrics: Mapping[str, float],
    seen: Rollout,
    judgements: Mapping[str, Sequence[float]],
    parts: PPOParts,
    cfg: PPOConfig,
) -> tuple[Carried, dict[str, str], Look | None]:
    """The watch moved on by one update, the alarms that ring, and what was looked at; nothing is where alarms are off."""
    if cfg.alarms == "off":
        return at, {}, None
    codec = parts.policy.backbone.codec
    look = looked(at.beginning, seen, judgements, at.watch.seen + 1, lambda token: codec.pieces([token])[0])
    watch, ringing = at.watch.after({**metrics, **look.metrics}, cfg, look.words)
    return replace(at, watch=watch, beginning=look.beginning), ringing, look


def _record(
    folder: RunFolder, step: PPOStep, policy: LanguageActorCritic, cfg: PPOConfig, judgements: Mapping[str, Sequence[float]]
) -> None:
    """What a step leaves in the run folder."""
    folder.record(step.update, {**step.metrics, **step.words})
    folder.samples(step.update, sample_rows(step.rollout, NUM_SAMPLES_KEPT))
    if is_replayed(step.update, step.total):
        folder.replay(step.update, replay_rows(step.rollout, policy, cfg, judgements))
    folder.timing(step.update, step.seconds)
    if step.stats.skipped:
        folder.note(f"update {step.update}: {step.stats.skipped} steps were not taken. The first: {step.stats.skip_reason}")


def _check_stop(folder: RunFolder | None, update: int) -> None:
    """Heeds a stop in the middle of a rollout, where the state before it can be had again: a rollout may take minutes."""
    if folder is not None and (update == 1 or folder.has_saved(update - 1)):
        folder.check_stop()


def inputs(parts: PPOParts, cfg: Config) -> dict[str, str]:
    """What the run was made from, as hashes for its manifest."""
    reward = source_digest(cfg.reward_source.every)
    further = {} if cfg.ppo.start is None else {"start": hash_folder(Path(cfg.ppo.start) / "final")}
    if parts.held_out is not None:
        further["held_out"] = digest(parts.held_out.prompts.ids)
    return {"model": parts.policy.backbone.fingerprint, "prompts": digest(parts.prompts.ids), "reward": reward, **further}


def run(cfg: Config, folder: RunFolder, progress: Progress, **given: Any) -> None:
    from surefoot.build import build_ppo

    parts = build_ppo(cfg, progress.say, **given)
    folder.declare(inputs(parts, cfg))
    progress.start("ppo", cfg.ppo.num_updates, "updates")
    for step in steps(parts, cfg, folder):
        tokens = int(step.rollout.batch.mask.sum())
        progress.update(step.update, {**step.metrics, "timing/tokens_per_second": tokens / max(sum(step.seconds.values()), 1e-9)})
    policy = parts.policy
    last = read_jsonl(folder.path / "metrics.jsonl")[-1]  # not of the loop: a run resumed after its last update has no step left
    with folder.final() as final:
        policy.backbone.save(final, merge=policy.policy_adapter)
        write_card(final, "ppo", cfg, policy.backbone.source, last)
    folder.finish(base=policy.backbone.source, reference=policy.backbone.source)
