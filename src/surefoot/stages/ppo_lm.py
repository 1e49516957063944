"""PPO of a language model (8.3.5, third stage): sample, score, tether, update; one rollout a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surefoot.config import Config, PPOConfig
from surefoot.errors import ConfigError, Paused, RewardError, TrainingError
from surefoot.faults import fault_point
from surefoot.lm.batches import PromptSet
from surefoot.lm.roles import LanguageActorCritic
from surefoot.optim import make_optimizer, set_learning_rates, trainable_names
from surefoot.ppo import next_coefficient, ppo_update
from surefoot.progress import Progress
from surefoot.runs import (
    RunFolder,
    State,
    flatten_optimizer,
    hash_folder,
    load_manifest,
    read_jsonl,
    restore_optimizer,
    saved_state,
)
from surefoot.runtime.single import SingleRuntime
from surefoot.stages.cards import write_card
from surefoot.stages.clock import Clock
from surefoot.stages.inputs import digest, source_digest
from surefoot.stages.judging import Judge, judged
from surefoot.stages.rollouts import Rollout, RunningDeviation, rollout, sample_rows
from surefoot.types import RewardSource, RolloutEngine, Runtime, UpdateStats

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


@dataclass(frozen=True, slots=True)
class PPOStep:
    """What one rollout and its update showed."""

    update: int
    total: int
    metrics: Mapping[str, float]
    stats: UpdateStats
    rollout: Rollout
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Progress:
    """What the loop carries from update to update, besides weights and optimiser."""

    update: int = 0
    beta: float = 0.0
    kl_coef: float = 0.0
    skipped_in_row: int = 0
    running: RunningDeviation = field(default_factory=RunningDeviation)


def steps(parts: PPOParts, cfg: Config, folder: RunFolder | None = None) -> Iterator[PPOStep]:
    """Yields after every update. Stop whenever you like: the policy is the parts' own."""
    ppo, policy, runtime = cfg.ppo, parts.policy, parts.runtime
    optimizer, names = make_optimizer(policy, ppo), trainable_names(policy)
    sampling, shuffling = torch.Generator().manual_seed(cfg.seed), torch.Generator().manual_seed(cfg.seed + 1)
    at = _Progress(beta=ppo.beta, kl_coef=ppo.kl_coef)
    if folder is not None and (state := folder.restore()) is not None:
        at = _load(state, policy, optimizer, names, sampling, shuffling)
    saved = at.update
    parts.engine.load_weights(runtime.full_weights(policy), at.update)
    for update in range(at.update + 1, ppo.num_updates + 1):
        clock = Clock()
        fault_point("rollout", update)
        may_stop = _never if saved < at.update else partial(_is_stopping, folder)
        num_prompts = ppo.rollout_batch_size // ppo.num_samples_per_prompt
        index = parts.prompts.cyclic((update - 1) * num_prompts, num_prompts, cfg.seed)
        prompts = parts.prompts.take([i for i in index for _ in range(ppo.num_samples_per_prompt)], policy.backbone.codec.pad_id)
        drawn_from = sampling.get_state()
        completions = parts.engine.generate(prompts, sampling)
        clock.lap("rollout")
        _check_stop(folder, update)
        try:
            scores = parts.reward.score(prompts, completions)
        except (Paused, RewardError):
            if folder is not None and update > 1 and not folder.has_saved(at.update):
                sampling.set_state(drawn_from)  # the state before this rollout: it is sampled again, the same
                folder.save(at.update, _state(at, policy, optimizer, names, sampling, shuffling))
            raise
        clock.lap("reward")
        _check_stop(folder, update)
        running = at.running.seen(scores.value[scores.valid])
        seen = rollout(policy, prompts, completions, scores, ppo, kl_coef=at.kl_coef, running=running)
        clock.lap("evaluate")
        rate = set_learning_rates(optimizer, ppo, update - 1, ppo.num_updates)
        fault_point("backward", update)
        stats = ppo_update(
            policy,
            seen.batch,
            ppo,
            optimizer=optimizer,
            runtime=runtime,
            generator=shuffling,
            beta=at.beta,
            kl_coef=at.kl_coef,
            critic_only=update <= ppo.critic_warmup_steps,
            skipped_in_row=at.skipped_in_row,
            half_precision=policy.backbone.autocast is not None,
            should_stop=may_stop,
        )
        clock.lap("update")
        parts.engine.load_weights(runtime.full_weights(policy), update)
        metrics = _metrics(seen, stats, at, ppo, rate, update)
        metrics |= judged(parts.judges, prompts.text, completions.text)
        at = _moved(at, seen, stats, ppo, update, running)
        clock.lap("judges")
        if folder is not None:
            folder.record(update, metrics)
            folder.samples(update, sample_rows(seen, NUM_SAMPLES_KEPT))
            folder.timing(update, clock.laps)
            if stats.skipped:
                folder.note(f"update {update}: {stats.skipped} steps were not taken. The first: {stats.skip_reason}")
        _check_tether(seen, ppo, update)  # before the save: a run that was stopped by an alarm is not resumed behind it
        if folder is not None:
            if update % ppo.save_every == 0 or update == ppo.num_updates or folder.stop_requested:
                folder.save(update, _state(at, policy, optimizer, names, sampling, shuffling))
                saved = update
            folder.check_stop()
        yield PPOStep(update, ppo.num_updates, metrics, stats, seen, clock.laps)


def _is_stopping(folder: RunFolder | None) -> bool:
    return folder is not None and folder.stop_requested


def _never() -> bool:
    """While an update may not be broken off: the state before it is not on the disk."""
    return False


def _moved(at: _Progress, seen: Rollout, stats: UpdateStats, cfg: PPOConfig, update: int, running: RunningDeviation) -> _Progress:
    """The coefficients after this update: beta by `kl_after`, the tether by the rollout's mean KL a sequence.

    Both stand still while the critic warms up: the KLs are 0 as long as the policy does not move, and say nothing of beta and
    kl_coef.

    Raises: TrainingError where `kl_after` is not a number.
    """
    beta, kl_coef = at.beta, at.kl_coef
    if update <= cfg.critic_warmup_steps:
        return _Progress(update, beta, kl_coef, stats.skipped_in_row, running)
    if math.isnan(stats.kl_after):
        raise TrainingError(
            f"KL(pi_old || pi_theta) after update {update} is not a number: the weights have diverged. "
            "Lower ppo.learning_rate, or set ppo.target_kl; the last checkpoint is unharmed."
        )
    if cfg.objective == "penalty" and stats.steps:
        beta = next_coefficient(
            cfg.beta_controller,
            beta,
            stats.kl_after,
            target=cfg.beta_target,
            rate=cfg.beta_rate,
            horizon=cfg.beta_horizon,
            steps=int(seen.batch.mask.sum()),
        )
    kl_coef = next_coefficient(
        cfg.kl_controller,
        kl_coef,
        max(seen.metrics["objective/kl"], 0.0),  # k1's mean may fall below 0 by chance; a KL cannot
        target=cfg.kl_target,
        rate=cfg.kl_rate,
        horizon=cfg.kl_horizon,
        steps=cfg.rollout_batch_size,
    )
    return _Progress(update, beta, kl_coef, stats.skipped_in_row, running)


def _metrics(seen: Rollout, stats: UpdateStats, at: _Progress, cfg: PPOConfig, rate: float, update: int) -> dict[str, float]:
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


def _check_stop(folder: RunFolder | None, update: int) -> None:
    """Heeds a stop in the middle of a rollout, where the state before it can be had again: a rollout may take minutes."""
    if folder is not None and (update == 1 or folder.has_saved(update - 1)):
        folder.check_stop()


def _check_tether(seen: Rollout, cfg: PPOConfig, update: int) -> None:
    kl = seen.metrics["objective/kl"]
    if cfg.kl_max is not None and kl > cfg.kl_max:
        raise TrainingError(
            f"KL(policy || SFT) = {kl:.2f} nats a sequence passed ppo.kl_max = {cfg.kl_max} at update {update}. "
            "Raise ppo.kl_coef, lower ppo.learning_rate, or set ppo.target_kl."
        )


def _state(
    at: _Progress,
    policy: LanguageActorCritic,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    sampling: torch.Generator,
    shuffling: torch.Generator,
) -> State:
    weights = {name: p.detach().clone() for name, p in _trained(policy)}
    return State(
        tensors={
            "weights": weights,
            "optimizer": flatten_optimizer(optimizer, names),
            "rng": {"sampling": sampling.get_state(), "shuffling": shuffling.get_state()},
        },
        values=asdict(at),
    )


def _load(
    state: State,
    policy: LanguageActorCritic,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    sampling: torch.Generator,
    shuffling: torch.Generator,
) -> _Progress:
    with torch.no_grad():
        for name, p in _trained(policy):
            p.copy_(state.tensors["weights"][name])
    restore_optimizer(optimizer, names, state.tensors["optimizer"])
    sampling.set_state(state.tensors["rng"]["sampling"])
    shuffling.set_state(state.tensors["rng"]["shuffling"])
    values = dict(state.values)
    running = RunningDeviation(**values.pop("running"))
    return replace(_Progress(**values), running=running)


def start_from(policy: LanguageActorCritic, run: Path) -> None:
    """Puts policy and critic where the PPO run in the folder `run` left them. The reference stays the model as it is.

    Raises:
        ConfigError: the folder holds no finished PPO run, one on another model, or one that trained other weights.
    """
    manifest = load_manifest(run)
    what = f"ppo.start = {str(run)!r}"
    if manifest["verb"] != "ppo" or manifest["status"] != "done":
        raise ConfigError(
            f"{what} holds a run of {manifest['verb']} ({manifest['status']}), not a finished one of ppo. Name one."
        )
    if not policy.backbone.fingerprint or manifest["inputs"].get("model") != policy.backbone.fingerprint:
        raise ConfigError(f"{what} was trained on another model than model.name. Name the model that both begin from.")
    found = saved_state(run)
    weights = found.tensors["weights"]
    own = dict(_trained(policy))
    if {name: p.shape for name, p in own.items()} != {name: tensor.shape for name, tensor in weights.items()}:
        raise ConfigError(
            f"{what} trained other weights ({len(weights)} tensors; here {len(own)}). Use its model.tuning, model.lora_rank, "
            "model.lora_layers and ppo.critic."
        )
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])


def _trained(policy: LanguageActorCritic) -> list[tuple[str, torch.nn.Parameter]]:
    both = [*policy.named_policy_parameters(), *policy.named_critic_parameters()]
    return [(name, p) for name, p in both if p.requires_grad]


def inputs(parts: PPOParts, cfg: Config) -> dict[str, str]:
    """What the run was made from, as hashes for its manifest."""
    reward = source_digest(cfg.reward_source.every)
    start = {} if cfg.ppo.start is None else {"start": hash_folder(Path(cfg.ppo.start) / "final")}
    return {"model": parts.policy.backbone.fingerprint, "prompts": digest(parts.prompts.ids), "reward": reward, **start}


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
