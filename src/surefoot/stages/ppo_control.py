"""PPO in Gymnasium (8.3.3, 8.3.4): collect, estimate advantages, update, move beta; one `ControlStep` a rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..config import Config
from ..control import Collector, MLPActorCritic, to_batch
from ..optim import set_learning_rates
from ..ppo import next_coefficient, ppo_update
from ..types import Runtime, UpdateStats

RECENT = 100  # episodes behind rollout/ep_rew_mean, as in Stable-Baselines3


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with. `generator` (CPU) samples actions and orders minibatches."""

    collector: Collector
    actor_critic: MLPActorCritic
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class ControlStep:
    """What one rollout and its update did. `episode_returns` are of the last 100 episodes, `beta` is the one that was used."""

    update: int
    timesteps: int
    episode_returns: tuple[float, ...]
    episode_lengths: tuple[int, ...]
    learning_rate: float
    beta: float
    stats: UpdateStats

    def metrics(self) -> dict[str, float]:
        """Stable-Baselines3's keys. Its value loss lacks the factor 1/2, and its entropy loss is minus the entropy."""
        stats = self.stats
        episodes = {}
        if self.episode_returns:
            episodes["rollout/ep_rew_mean"] = sum(self.episode_returns) / len(self.episode_returns)
            episodes["rollout/ep_len_mean"] = sum(self.episode_lengths) / len(self.episode_lengths)
        return episodes | {
            "train/approx_kl": stats.approx_kl,
            "train/clip_fraction": stats.clip_fraction,
            "train/entropy_loss": -stats.entropy,
            "train/explained_variance": stats.explained_variance,
            "train/policy_gradient_loss": stats.loss_policy,
            "train/value_loss": stats.loss_value,
            "train/learning_rate": self.learning_rate,
            "kl/beta": self.beta,
            "time/total_timesteps": float(self.timesteps),
        }


def steps(parts: Parts, cfg: Config, *, should_stop: Callable[[], bool] = lambda: False) -> Iterator[ControlStep]:
    """Trains until control.total_timesteps; what `cfg.ppo` says of rewards, references and answers does not apply here."""
    rows = cfg.control.num_envs * cfg.control.num_steps
    ppo = cfg.ppo.model_copy(update={"micro_batch_size": rows})  # a minibatch of observations fits into one forward
    beta = ppo.beta
    returns: list[float] = []
    lengths: list[int] = []
    for update in range(cfg.control.num_updates):
        learning_rate = set_learning_rates(parts.optimizer, ppo, update, cfg.control.num_updates)
        rollout = parts.collector.collect(parts.actor_critic, cfg.control.num_steps, parts.generator)
        returns = [*returns, *rollout.episode_returns][-RECENT:]
        lengths = [*lengths, *rollout.episode_lengths][-RECENT:]
        stats = ppo_update(
            parts.actor_critic,
            to_batch(rollout, gamma=ppo.gamma, lam=ppo.lam, keep_dist=ppo.objective == "penalty"),
            ppo,
            optimizer=parts.optimizer,
            runtime=parts.runtime,
            generator=parts.generator,
            beta=beta,
            kl_coef=0.0,  # there is no reference to be tethered to
            critic_only=update < ppo.critic_warmup_steps,
            should_stop=should_stop,
        )
        yield ControlStep(update, (update + 1) * rows, tuple(returns), tuple(lengths), learning_rate, beta, stats)
        if stats.steps and update >= ppo.critic_warmup_steps:
            beta = next_coefficient(
                ppo.beta_controller,
                beta,
                stats.kl_after,
                target=ppo.beta_target,
                rate=ppo.beta_rate,
                horizon=ppo.beta_horizon,
                steps=rows,
            )
