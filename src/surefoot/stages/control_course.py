"""One or several seeds of control on their way: a rollout, its update, beta, metrics and checkpoint at a time (8.3.3, 8.3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from surefoot.config import UNREAD_IN_CONTROL, Config, PPOConfig
from surefoot.control import Collector, FlatNets, FlatSampler, MLPActorCritic, Rollout, collect_together, evaluate, to_batch
from surefoot.control.saved import Agent, load_weights
from surefoot.errors import ConfigError
from surefoot.faults import fault_point
from surefoot.optim import set_learning_rates, trainable_names
from surefoot.ppo import next_beta, ppo_update, ppo_update_seeds
from surefoot.ppo_by_hand import SeedUpdate
from surefoot.runs import RunFolder, State, flatten_optimizer, restore_optimizer
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


class Course:
    """One run on its way through its plan: parts, settings, and how far it is. It goes on from what its folder holds.

    `begin` goes on from an earlier plan's last step.
    """

    def __init__(
        self, parts: Parts, cfg: Config, folder: RunFolder | None = None, *, begin: ControlProgress | None = None
    ) -> None:
        self.parts, self.cfg, self.folder, self.ppo = parts, cfg, folder, update_settings(cfg)
        self.at = ControlProgress(beta=self.ppo.beta) if begin is None else replace(begin, update=0)
        if folder is not None and (state := folder.restore()) is not None:
            self.at = _load(state, parts, folder)
        self._saved = self.at.update

    @property
    def is_over(self) -> bool:
        return self.at.update >= self.cfg.control.num_updates

    @property
    def is_stopping(self) -> bool:
        return self.folder is not None and self.folder.stop_requested

    @property
    def is_kept(self) -> bool:
        """Whether the state before the next update is on the disk, so that the update may be broken off."""
        return self.folder is not None and self._saved == self.at.update

    def record(self, metrics: Mapping[str, float], laps: Mapping[str, float]) -> None:
        """Writes the update that was just made, and a checkpoint where one is due."""
        update, control = self.at.update, self.cfg.control
        if self.folder is None:
            return
        self.folder.record(update, metrics)
        self.folder.timing(update, {**laps, "time/fps": round(control.num_rows / sum(laps.values()), 1)})
        if update % self.ppo.save_every == 0 or update == control.num_updates or self.is_stopping:
            self.folder.save(update, _state(self.at, self.parts))
            self._saved = update


def advance(courses: Sequence[Course], nets: FlatNets | None = None) -> list[ControlStep]:
    """The next update of one course, or of several seeds that are equally far, side by side by `nets`, which hold them all."""
    control, update, clock = courses[0].cfg.control, courses[0].at.update + 1, Clock()
    fault_point("rollout", update)
    may_break = all(course.is_kept for course in courses)
    rates = [set_learning_rates(each.parts.optimizer, each.ppo, update - 1, control.num_updates) for each in courses]
    rollouts = _rollouts(courses, nets)
    clock.lap("rollout")
    fault_point("backward", update)
    stats = _updated(courses, rollouts, nets, should_stop=lambda: may_break and any(each.is_stopping for each in courses))
    clock.lap("update")
    betas, lines = [each.at.beta for each in courses], []
    for course, rollout, seen, beta, rate in zip(courses, rollouts, stats, betas, rates, strict=True):
        course.at = _moved(course.at, rollout, seen, course.ppo, update)
        lines.append(_metrics(course.parts, rollout, seen, course.at, course.cfg, beta=beta, rate=rate))
    if _is_evaluated(update, courses[0].cfg):
        for course, metrics in zip(courses, lines, strict=True):
            metrics |= _evaluated(course.parts, course.cfg, course.folder if may_break else None)
        clock.lap("evaluate")
    for course, metrics in zip(courses, lines, strict=True):
        course.record(metrics, clock.laps)
    for course in courses:  # after all are saved
        if course.folder is not None:
            course.folder.check_stop()
    timesteps = update * control.num_rows
    return [
        ControlStep(update, control.num_updates, timesteps, metrics, seen, rollout, beta, clock.laps, course.at)
        for course, metrics, seen, rollout, beta in zip(courses, lines, stats, rollouts, betas, strict=True)
    ]


def _rollouts(courses: Sequence[Course], nets: FlatNets | None) -> list[Rollout]:
    num_steps = courses[0].cfg.control.num_steps
    collectors, generators = [each.parts.collector for each in courses], [each.parts.generator for each in courses]
    if nets is None:
        return [collectors[0].collect(courses[0].parts.actor_critic, num_steps, generators[0])]
    envs = collectors[0].envs
    return collect_together(
        collectors, FlatSampler(nets, envs.single_action_space, num_steps, envs.num_envs, generators), num_steps
    )


def _updated(
    courses: Sequence[Course], rollouts: Sequence[Rollout], nets: FlatNets | None, *, should_stop: Callable[[], bool]
) -> list[UpdateStats]:
    ppo, first = courses[0].ppo, courses[0].parts
    keep_dist = ppo.objective == "penalty"
    batches = [to_batch(each, gamma=ppo.gamma, lam=ppo.lam, keep_dist=keep_dist) for each in rollouts]
    critic_only = courses[0].at.update < ppo.critic_warmup_steps
    if nets is not None:
        seeds = [
            SeedUpdate(
                own.parts.actor_critic, batch, own.parts.optimizer, own.parts.generator, own.at.beta, own.at.skipped_in_row
            )
            for own, batch in zip(courses, batches, strict=True)
        ]
        return ppo_update_seeds(nets, seeds, ppo, runtime=first.runtime, critic_only=critic_only, should_stop=should_stop)
    stats = ppo_update(
        first.actor_critic,
        batches[0],
        ppo,
        optimizer=first.optimizer,
        runtime=first.runtime,
        generator=first.generator,
        beta=courses[0].at.beta,
        kl_coef=0.0,  # there is no reference to be tethered to
        critic_only=critic_only,
        skipped_in_row=courses[0].at.skipped_in_row,
        should_stop=should_stop,
    )
    return [stats]


def update_settings(cfg: Config) -> PPOConfig:
    """The section ppo with the sizes that control fixes. Raises ConfigError where a setting without effect was changed."""
    for name, reason in UNREAD_IN_CONTROL.items():
        if (value := getattr(cfg.ppo, name)) != PPOConfig.model_fields[name].default:
            raise ConfigError(f"ppo.{name} = {value!r} has no effect in control: {reason}.")
    rows, size = cfg.control.num_rows, cfg.control.batch_size
    sizes = {"rollout_batch_size": rows, "num_mini_batches": rows // size, "micro_batch_size": size}
    return cfg.ppo.model_copy(update=sizes)


def _moved(at: ControlProgress, rollout: Rollout, stats: UpdateStats, cfg: PPOConfig, update: int) -> ControlProgress:
    """After this update: beta by `kl_after`, and the episodes that ended."""
    beta = at.beta
    if update > cfg.critic_warmup_steps:
        beta = next_beta(cfg, beta, stats, steps=cfg.rollout_batch_size)
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
        "grad_norm_clipped": stats.grad_norm_clipped,
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
