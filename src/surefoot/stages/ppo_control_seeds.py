"""Control with several seeds at once: one batched network, one `ControlStep` of each seed a rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from ..config import Config
from ..control import FlatCollector, FlatNets, MLPActorCritic, make_actor_critic, to_batch
from ..optim import make_optimizer, set_learning_rates
from ..ppo import next_coefficient, ppo_update_seeds
from ..types import Runtime
from .ppo_control import RECENT, ControlStep


@dataclass(frozen=True, slots=True)
class SeedParts:
    """What the loop works with. A seed's generator (CPU) makes its first weights, samples its actions and orders its rows."""

    collector: FlatCollector
    nets: FlatNets
    actor_critics: tuple[MLPActorCritic, ...]
    optimizers: tuple[torch.optim.Optimizer, ...]
    runtime: Runtime
    generators: tuple[torch.Generator, ...]

    @classmethod
    def make(cls, envs: Any, cfg: Config, seeds: Sequence[int], runtime: Runtime, *, eps: float) -> Self:
        """`envs` (`control.Envs`) are those of all seeds. `eps` is Adam's."""
        generators = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
        actor_critics = tuple(make_actor_critic(envs, cfg.control.hidden_sizes, each) for each in generators)
        collector = FlatCollector(envs, seed=list(seeds), num_seeds=len(seeds))
        optimizers = tuple(make_optimizer(each, cfg.ppo, eps=eps) for each in actor_critics)
        return cls(collector, FlatNets(actor_critics), actor_critics, optimizers, runtime, generators)


def steps(parts: SeedParts, cfg: Config, *, should_stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[ControlStep, ...]]:
    """Trains every seed until control.total_timesteps; each takes the course of `ppo_control.steps` with a `FlatCollector`."""
    rows = cfg.control.num_envs * cfg.control.num_steps
    ppo = cfg.ppo.model_copy(update={"micro_batch_size": rows})
    num_seeds = len(parts.actor_critics)
    betas = [ppo.beta] * num_seeds
    recent: list[list[tuple[float, int]]] = [[] for _ in range(num_seeds)]
    for update in range(cfg.control.num_updates):
        rates = [set_learning_rates(each, ppo, update, cfg.control.num_updates) for each in parts.optimizers]
        rollouts = parts.collector.collect_seeds(parts.nets, cfg.control.num_steps, parts.generators)
        recent = [
            [*before, *zip(rollout.episode_returns, rollout.episode_lengths, strict=True)][-RECENT:]
            for before, rollout in zip(recent, rollouts, strict=True)
        ]
        keep_dist = ppo.objective == "penalty"
        stats = ppo_update_seeds(
            parts.nets,
            parts.actor_critics,
            [to_batch(rollout, gamma=ppo.gamma, lam=ppo.lam, keep_dist=keep_dist) for rollout in rollouts],
            ppo,
            optimizers=parts.optimizers,
            runtime=parts.runtime,
            generators=parts.generators,
            betas=betas,
            critic_only=update < ppo.critic_warmup_steps,
            should_stop=should_stop,
        )
        yield tuple(
            ControlStep(
                update,
                (update + 1) * rows,
                tuple(total for total, _ in recent[seed]),
                tuple(length for _, length in recent[seed]),
                rates[seed],
                betas[seed],
                stats[seed],
            )
            for seed in range(num_seeds)
        )
        if update >= ppo.critic_warmup_steps:
            betas = [
                next_coefficient(
                    ppo.beta_controller,
                    beta,
                    each.kl_after,
                    target=ppo.beta_target,
                    rate=ppo.beta_rate,
                    horizon=ppo.beta_horizon,
                    steps=rows,
                )
                if each.steps
                else beta
                for beta, each in zip(betas, stats, strict=True)
            ]
