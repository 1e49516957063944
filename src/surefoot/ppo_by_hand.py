"""`ppo_update` without autograd: the same courses (`ppo_decisions`), driven by nets that are differentiated by hand.

One seed or several. Seeds share nothing but the products: each has its course, its order of rows, its norm and its coefficients,
and stops by itself. While all of them go on they are one batched network; once one has stopped, the others go on one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .config import PPOConfig
from .ppo_decisions import Decisions, Stepped, decisions, reads_kl_after
from .ppo_figures import Seen, Tally, statistics
from .ppo_gradient import Array, Columns, loss_slopes
from .types import ActorCritic, Nets, NetsOwner, PPOBatch, Runtime, UpdateStats


@dataclass(frozen=True, slots=True)
class SeedUpdate:
    """What one seed brings to its update: as the arguments of `ppo_update`."""

    actor_critic: ActorCritic
    batch: PPOBatch
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    beta: float
    skipped_in_row: int = 0


def nets_of(
    actor_critic: ActorCritic,
    batch: PPOBatch,
    cfg: PPOConfig,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    *,
    kl_coef: float,
) -> Nets | None:
    """The nets of an actor-critic where they do all that this update needs, else None.

    Left to autograd: several processes, another device or precision, another optimiser than plain AdamW over all weights, and a
    tether in the loss.
    """
    if runtime.world_size > 1 or not fits(batch, cfg, kl_coef=kl_coef) or not isinstance(actor_critic, NetsOwner):
        return None
    nets = actor_critic.nets()
    return nets if nets is not None and nets.accepts([optimizer]) else None


def fits(batch: PPOBatch, cfg: PPOConfig, *, kl_coef: float) -> bool:
    """Whether the loss over this rollout has a hand-written gradient."""
    is_tethered = cfg.kl_in == "loss" and kl_coef > 0
    needs_dist = cfg.objective == "penalty" and cfg.beta_estimator == "exact" and batch.dist_old is None
    is_plain = batch.mask.device.type == "cpu" and batch.values_old.dtype == torch.float32 and batch.mask.shape[1] == 1
    return is_plain and not is_tethered and not needs_dist


def update_by_hand(
    nets: Nets,
    seeds: Sequence[SeedUpdate],
    cfg: PPOConfig,
    *,
    runtime: Runtime,
    critic_only: bool,
    should_stop: Callable[[], bool],
) -> list[UpdateStats]:
    """One update of each seed, whose batches are prepared. Raises: as `ppo_update`."""
    courses = [
        decisions(
            each.actor_critic,
            each.batch,
            cfg,
            runtime=runtime,
            generator=each.generator,
            skipped_in_row=each.skipped_in_row,
        )
        for each in seeds
    ]
    batches = [each.batch for each in seeds]
    arithmetic = _Arithmetic(nets, batches, cfg, [each.beta for each in seeds], critic_only, should_stop)
    nets.open(batches, [each.optimizer for each in seeds])
    try:
        with np.errstate(all="ignore"):  # what is not finite is found by the guard and told there
            tallies = _carried_out_together(courses, arithmetic, cfg.max_grad_norm)
            is_measured = reads_kl_after(cfg, critic_only=critic_only)
            kls = arithmetic.measured_kl() if is_measured else [tally.last_kl for tally in tallies]
    finally:
        nets.close()
    return [
        statistics(tally, batch, cfg, kl_after=kl, log_ratio_max=tally.highest_log_ratio)
        for tally, batch, kl in zip(tallies, batches, kls, strict=True)
    ]


def _carried_out_together(courses: Sequence[Decisions], arithmetic: _Arithmetic, max_grad_norm: float | None) -> list[Tally]:
    """Drives the courses side by side: all that are left judge a minibatch, then all that want to take a step."""
    tallies: dict[int, Tally] = {}
    rows: dict[int, Array] = {}

    def send(seed: int, answer: Seen | Stepped | None) -> bool:
        """Whether the course asks for a step; what it asks otherwise stands in `rows`."""
        try:
            asked = courses[seed].send(answer)
        except StopIteration as end:
            tallies[seed] = end.value
            rows.pop(seed, None)
            return False
        if asked is not None:
            rows[seed] = asked.numpy()
        return asked is None

    for seed in range(len(courses)):
        send(seed, None)
    while rows:
        stepping = []
        for seeds in _groups(list(rows), len(courses)):
            members = range(seeds.start, seeds.stop)
            seen = arithmetic.gradients(seeds, np.stack([rows[seed] for seed in members]))
            stepping += [seed for seed, each in zip(members, seen, strict=True) if send(seed, each)]
        for seeds in _groups(stepping, len(courses)):
            stepped = arithmetic.nets.step(seeds, max_grad_norm, critic_only=arithmetic.critic_only)
            for seed, each in zip(range(seeds.start, seeds.stop), stepped, strict=True):
                send(seed, each)
    return [tallies[seed] for seed in range(len(courses))]


def _groups(seeds: Sequence[int], num_seeds: int) -> list[slice]:
    """All seeds at once where all are there, else one by one."""
    return [slice(0, num_seeds)] if len(seeds) == num_seeds else [slice(seed, seed + 1) for seed in seeds]


class _Arithmetic:
    """The figures and gradients of minibatches, of a slice of the seeds at a time."""

    def __init__(
        self,
        nets: Nets,
        batches: Sequence[PPOBatch],
        cfg: PPOConfig,
        betas: Sequence[float],
        critic_only: bool,
        should_stop: Callable[[], bool],
    ) -> None:
        self.nets, self.critic_only = nets, critic_only
        self._batches, self._cfg, self._should_stop = batches, cfg, should_stop
        columns = ("logp_old", "values_old", "advantages", "returns")
        # [column, S, R], so that a minibatch is one `take` along the last axis
        self._table = np.stack([np.stack([getattr(b, name).numpy()[:, 0] for b in batches]) for name in columns])
        self._mask = None if all(b.mask.all() for b in batches) else np.stack([b.mask.numpy()[:, 0] for b in batches])
        self._beta = np.array(betas, np.float32)[:, None]

    def _columns(self, seeds: slice, rows: Array) -> Columns:
        if self._table.shape[1] == 1:
            taken = self._table.take(rows, axis=2)[:, 0]
        else:
            taken = np.take_along_axis(self._table[:, seeds], rows[None], axis=2)
        mask = None if self._mask is None else np.take_along_axis(self._mask[seeds], rows, axis=1)
        return Columns(taken[0], taken[1], taken[2], taken[3], mask)

    def gradients(self, seeds: slice, rows: Array) -> list[Seen]:
        """Leaves the gradients of the minibatches `rows` [s, n] in the nets, and tells what was seen there."""
        chosen = self._columns(seeds, rows)
        counts = [rows.shape[1]] * len(rows) if chosen.mask is None else chosen.mask.sum(axis=1).tolist()
        weight: Array | float = 1 / rows.shape[1]
        if chosen.mask is not None:
            weight = (chosen.mask / np.maximum(chosen.mask.sum(axis=1, keepdims=True), 1)).astype(np.float32)
        judged = self.nets.judge(seeds, rows)
        slopes, sums, highest = loss_slopes(
            judged, chosen, self._cfg, beta=self._beta[seeds], weight=weight, critic_only=self.critic_only
        )
        self.nets.backward(seeds, slopes)
        is_stopping = self._should_stop()
        return [
            Seen([loss * count for loss in figures[:3]] + figures[3:], tuple(largest), count, count, is_stopping)
            for figures, largest, count in zip(sums.tolist(), highest.T.tolist(), counts, strict=True)
        ]

    def measured_kl(self) -> list[float]:
        """KL(pi_old || pi_theta) in nats a valid step over each whole rollout, with the weights as they are."""
        seeds = slice(0, len(self._batches))
        totals = np.zeros(seeds.stop)
        for part in np.array_split(np.arange(len(self._batches[0])), self._cfg.num_mini_batches):
            rows = np.broadcast_to(part, (seeds.stop, len(part)))
            judged, chosen = self.nets.judge(seeds, rows), self._columns(seeds, rows)
            _, sums, _ = loss_slopes(judged, chosen, self._cfg, beta=self._beta, weight=1.0, critic_only=True)
            totals += sums[:, 3]
        return [float(total) / int(batch.mask.sum()) for total, batch in zip(totals, self._batches, strict=True)]
