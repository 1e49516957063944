"""PPO in Gymnasium (8.3.3, 8.3.4): collect, estimate advantages, update, move beta; one rollout a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from surefoot.config import UNREAD_IN_CONTROL, Config, PPOConfig
from surefoot.config_file import dump_config
from surefoot.control import Collector, EnvFactory, MLPActorCritic, Rollout, evaluate, record, to_batch
from surefoot.control.saved import Agent, load_weights, save_agent
from surefoot.errors import ConfigError
from surefoot.faults import fault_point
from surefoot.optim import set_learning_rates, trainable_names
from surefoot.ppo import next_coefficient, ppo_update
from surefoot.progress import Progress
from surefoot.runs import RunFolder, State, flatten_optimizer, read_jsonl, restore_optimizer, write_atomic
from surefoot.stages.cards import write_control_card
from surefoot.stages.clock import Clock
from surefoot.types import Runtime, UpdateStats

if TYPE_CHECKING:
    from surefoot.control.environments import Env
    from surefoot.control.vector import Envs

RECENT = 100  # episodes behind rollout/ep_rew_mean, as in Stable-Baselines3


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with. `generator` (CPU) samples actions and orders minibatches.

    Without `evaluation` environments nothing is evaluated, without a `picture` environment nothing is recorded.
    """

    collector: Collector
    actor_critic: MLPActorCritic
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    generator: torch.Generator
    evaluation: Envs | None = None
    picture: Env | None = None

    @property
    def agent(self) -> Agent:
        """What acts, with its statistics."""
        envs = self.collector.envs
        shape = tuple(envs.single_observation_space.shape or ())
        return Agent(self.actor_critic, self.collector.normalizer, shape, envs.single_action_space)


@dataclass(frozen=True, slots=True)
class ControlStep:
    """What one rollout and its update did. `beta` is the one that was used, `progress` what the next update starts from."""

    update: int
    total: int
    timesteps: int
    metrics: Mapping[str, float]
    stats: UpdateStats
    rollout: Rollout
    beta: float
    seconds: Mapping[str, float]
    progress: ControlProgress


@dataclass(frozen=True, slots=True)
class ControlProgress:
    """What the loop carries from update to update, besides its parts: beta, and the last 100 episodes."""

    update: int = 0
    beta: float = 0.0
    skipped_in_row: int = 0
    returns: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()


def steps(
    parts: Parts, cfg: Config, folder: RunFolder | None = None, *, begin: ControlProgress | None = None
) -> Iterator[ControlStep]:
    """Yields after every update, until control.total_timesteps. `begin` goes on from an earlier plan's last step."""
    control, ppo = cfg.control, update_settings(cfg)
    at = ControlProgress(beta=ppo.beta) if begin is None else replace(begin, update=0)
    if folder is not None and (state := folder.restore()) is not None:
        at = _load(state, parts, folder)
    saved = at.update
    for update in range(at.update + 1, control.num_updates + 1):
        clock = Clock()
        fault_point("rollout", update)
        is_kept = saved == at.update  # the state before this update is on the disk, so that the update may be broken off
        rate = set_learning_rates(parts.optimizer, ppo, update - 1, control.num_updates)
        rollout = parts.collector.collect(parts.actor_critic, control.num_steps, parts.generator)
        clock.lap("rollout")
        fault_point("backward", update)
        stats = ppo_update(
            parts.actor_critic,
            to_batch(rollout, gamma=ppo.gamma, lam=ppo.lam, keep_dist=ppo.objective == "penalty"),
            ppo,
            optimizer=parts.optimizer,
            runtime=parts.runtime,
            generator=parts.generator,
            beta=at.beta,
            kl_coef=0.0,  # there is no reference to be tethered to
            critic_only=update <= ppo.critic_warmup_steps,
            skipped_in_row=at.skipped_in_row,
            should_stop=partial(_is_stopping, folder if is_kept else None),
        )
        clock.lap("update")
        beta, at = at.beta, _moved(at, rollout, stats, ppo, update)
        metrics = _metrics(parts, rollout, stats, at, cfg, beta=beta, rate=rate)
        if _is_evaluated(update, cfg):
            metrics |= _evaluated(parts, cfg, folder if is_kept else None)
            clock.lap("evaluate")
        if folder is not None:
            folder.record(update, metrics)
            folder.timing(update, {**clock.laps, "time/fps": round(control.num_rows / sum(clock.laps.values()), 1)})
            if update % ppo.save_every == 0 or update == control.num_updates or folder.stop_requested:
                folder.save(update, _state(at, parts))
                saved = update
            folder.check_stop()
        timesteps = update * control.num_rows
        yield ControlStep(update, control.num_updates, timesteps, metrics, stats, rollout, beta, clock.laps, at)


def update_settings(cfg: Config) -> PPOConfig:
    """The section ppo with the sizes that control fixes. Raises ConfigError where a setting without effect was changed."""
    for name, reason in UNREAD_IN_CONTROL.items():
        if (value := getattr(cfg.ppo, name)) != PPOConfig.model_fields[name].default:
            raise ConfigError(f"ppo.{name} = {value!r} has no effect in control: {reason}.")
    rows, size = cfg.control.num_rows, cfg.control.batch_size
    sizes = {"rollout_batch_size": rows, "num_mini_batches": rows // size, "micro_batch_size": size}
    return cfg.ppo.model_copy(update=sizes)


def _is_stopping(folder: RunFolder | None) -> bool:
    return folder is not None and folder.stop_requested


def _moved(at: ControlProgress, rollout: Rollout, stats: UpdateStats, cfg: PPOConfig, update: int) -> ControlProgress:
    """After this update: beta by `kl_after`, and the episodes that ended."""
    beta = at.beta
    if cfg.objective == "penalty" and stats.steps and update > cfg.critic_warmup_steps:
        beta = next_coefficient(
            cfg.beta_controller,
            beta,
            stats.kl_after,
            target=cfg.beta_target,
            rate=cfg.beta_rate,
            horizon=cfg.beta_horizon,
            steps=cfg.rollout_batch_size,
        )
    returns = (*at.returns, *rollout.episode_returns)[-RECENT:]
    lengths = (*at.lengths, *rollout.episode_lengths)[-RECENT:]
    return ControlProgress(update, beta, stats.skipped_in_row, returns, lengths)


def _metrics(
    parts: Parts, rollout: Rollout, stats: UpdateStats, at: ControlProgress, cfg: Config, *, beta: float, rate: float
) -> dict[str, float]:
    """One line of metrics.jsonl, with Stable-Baselines3's keys where it has one. `beta` is the one that held in the update."""
    out: dict[str, float] = {}
    if at.returns:
        out["rollout/ep_rew_mean"] = sum(at.returns) / len(at.returns)
        out["rollout/ep_len_mean"] = sum(at.lengths) / len(at.lengths)
    out |= {
        "train/approx_kl": stats.approx_kl,
        "train/kl_after": stats.kl_after,
        "train/clip_fraction": stats.clip_fraction,
        "train/outside_fraction": stats.outside_fraction,
        "train/entropy_loss": -stats.entropy,
        "train/explained_variance": stats.explained_variance,
        "train/policy_gradient_loss": stats.loss_policy,
        "train/value_loss": stats.loss_value,
        "train/loss": stats.loss_total,
        "train/learning_rate": rate,
        "val/ratio_var": stats.ratio_var,
        "val/ratio_max": stats.ratio_max,
        "grad_norm": stats.grad_norm,
        "optimizer/steps": stats.steps,
        "optimizer/skipped_steps": stats.skipped,
        "optimizer/stopped_early": float(stats.stopped_early),
        "time/total_timesteps": at.update * cfg.control.num_rows,
    }
    if (deviation := parts.actor_critic.policy_head.deviation()) is not None:
        out["train/std"] = deviation
    if cfg.ppo.objective == "penalty":
        out["kl/beta"] = beta
        if cfg.ppo.beta_controller != "fixed":
            out["kl/beta_target"] = cfg.ppo.beta_target
    return out


def _is_evaluated(update: int, cfg: Config) -> bool:
    every = cfg.control.eval_every
    return update == cfg.control.num_updates or (every > 0 and update % every == 0)


def _evaluated(parts: Parts, cfg: Config, folder: RunFolder | None) -> dict[str, float]:
    """The figures of an evaluation, which is broken off where `folder` says that a stop is asked for."""
    if parts.evaluation is None:
        return {}
    heed = (lambda: None) if folder is None else folder.check_stop
    normalizer, episodes = parts.collector.normalizer, cfg.control.eval_episodes
    return evaluate(parts.actor_critic, normalizer, parts.evaluation, num_episodes=episodes, seed=cfg.seed, heed=heed).metrics()


def _state(at: ControlProgress, parts: Parts) -> State:
    return State(
        tensors={
            "weights": {name: p.detach().clone() for name, p in parts.actor_critic.named_parameters()},
            "optimizer": flatten_optimizer(parts.optimizer, trainable_names(parts.actor_critic)),
            "rng": {"generator": parts.generator.get_state()},
            "environments": parts.collector.state(),
        },
        values=asdict(at),
    )


def _load(state: State, parts: Parts, folder: RunFolder) -> ControlProgress:
    load_weights(parts.actor_critic, dict(state.tensors["weights"]))
    restore_optimizer(parts.optimizer, trainable_names(parts.actor_critic), state.tensors["optimizer"])
    parts.generator.set_state(state.tensors["rng"]["generator"])
    if strayed := parts.collector.restore(state.tensors["environments"]):
        folder.note(
            f"environments {', '.join(map(str, strayed))} do not repeat an episode from its seed and its actions, and begin "
            "another; the result differs from that of an uninterrupted run"
        )
    values: dict[str, Any] = dict(state.values)
    return ControlProgress(**{**values, "returns": tuple(values["returns"]), "lengths": tuple(values["lengths"])})


def save(folder: Path, parts: Parts, cfg: Config, figures: Mapping[str, float]) -> None:
    """The agent, what training goes on with (optimiser, settings), and a card. `ControlRun.load` reads it."""
    save_agent(folder, parts.agent, flatten_optimizer(parts.optimizer, trainable_names(parts.actor_critic)))
    (folder / "config.yaml").write_text(dump_config(cfg, verb="control"), encoding="utf-8")
    write_control_card(folder, cfg, figures)


def inputs(parts: Parts) -> dict[str, str]:
    """What the run was made from, for its manifest."""
    spaces = parts.collector.envs
    return {"observations": str(spaces.single_observation_space), "actions": str(spaces.single_action_space)}


def run(cfg: Config, folder: RunFolder, progress: Progress, *, env: EnvFactory | None = None) -> None:
    from surefoot.build_control import build_control

    parts = build_control(cfg, progress.say, env=env)
    folder.declare(inputs(parts))
    progress.start("control", cfg.control.num_updates, "updates")
    for step in steps(parts, cfg, folder):
        progress.update(step.update, {**step.metrics, "time/fps": cfg.control.num_rows / max(sum(step.seconds.values()), 1e-9)})
    last = read_jsonl(folder.path / "metrics.jsonl")[-1]  # not of the loop: a run resumed after its last update has no step left
    figures = {key: value for key, value in last.items() if key.startswith(("eval/", "rollout/", "time/"))}
    with folder.final() as final:
        save(final, parts, cfg, figures)
    if parts.picture is not None:
        gif = record(parts.actor_critic, parts.collector.normalizer, parts.picture, seed=cfg.seed)
        write_atomic(folder.path / "episode.gif", gif)
        progress.say(f"control: an episode, {folder.path / 'episode.gif'}")
    if "eval/mean_reward" in last:
        mean, deviation, count = (last[f"eval/{name}"] for name in ("mean_reward", "std_reward", "episodes"))
        progress.say(f"control: {mean:.1f} +- {deviation:.1f} over {count:.0f} episodes by the likeliest actions")
    folder.finish(**figures)
