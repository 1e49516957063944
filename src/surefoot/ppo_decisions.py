"""What a PPO update decides, without its arithmetic: which rows come next, whether a step is taken, and when to stop.

`decisions` is a coroutine. Whoever works out gradients drives it: `ppo_update` by autograd, `ppo_by_hand` for one or several
seeds at once. So order, guards and early stop stand once, whatever does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from .config import PPOConfig
from .core import zero_outside
from .errors import Interrupted
from .ppo_figures import Seen, Tally, checked_first_ratio, why_not_finite
from .types import ActorCritic, PPOBatch, Runtime

EARLY_STOP = 1.5  # times target_kl, as in Stable-Baselines3 and Spinning Up

Stepped = tuple[float, bool]
"""The norm of a gradient before clipping, and whether the step was taken (the norm was finite)."""

Decisions = Generator[Tensor | None, Seen | Stepped | None, Tally]
"""Yields the rows of a minibatch, to be sent what was `Seen` there; then perhaps None, to be sent what became of the step."""


def mean_count(mask: Bool[Tensor, "B T"], aggregation: str) -> int:
    """What a mean over `mask` divides by: its valid steps (token_mean), or its rows that have one (sequence_mean)."""
    return int(mask.sum() if aggregation == "token_mean" else mask.any(dim=1).sum())


def reads_kl_after(cfg: PPOConfig, *, critic_only: bool) -> bool:
    """Whether a rule of beta reads KL(pi_old || pi_theta) after the update, so that it is measured over the whole rollout."""
    return cfg.objective == "penalty" and cfg.beta_controller != "fixed" and not critic_only


def decisions(
    actor_critic: ActorCritic,
    batch: PPOBatch,
    cfg: PPOConfig,
    *,
    runtime: Runtime,
    generator: torch.Generator,
    skipped_in_row: int,
    half_precision: bool = False,
) -> Decisions:
    """The course of one update over `batch`, whose advantages are ready. Every rank takes the same course.

    Raises: as `ppo_update`.
    """
    tally = Tally(skipped_in_row)
    is_full = bool(batch.mask.all())
    rounding = 0.0 if batch.logp_rounding is None else float(zero_outside(batch.logp_rounding, batch.mask).max())
    for chosen in _minibatches(len(batch), cfg, generator):
        if not is_full and not batch.mask[chosen].any():
            tally.leave_out("every row of the minibatch is masked")
            continue
        seen = yield chosen
        assert isinstance(seen, Seen)
        reason = why_not_finite(seen.sums, batch)
        if not reason:
            tally.add(seen)
            if not tally.norms:
                highest = runtime.max(torch.tensor(seen.log_ratios, device=batch.mask.device)).tolist()
                checked = replace(seen, log_ratios=(highest[0], highest[1]))
                tally.first_log_ratio = checked_first_ratio(
                    actor_critic.parameters(), checked, half_precision=half_precision, rounding=rounding
                )
            if cfg.target_kl is not None and tally.last_kl > EARLY_STOP * cfg.target_kl:
                tally.stopped_early = True
                break
            stepped = yield None
            assert isinstance(stepped, tuple)
            norm, is_stepped = stepped
            if is_stepped:
                tally.step(norm)
            else:
                reason = f"the gradient norm is {norm}"
        if reason:
            tally.skip(reason, cfg)
        if seen.is_stopping:
            raise Interrupted("Stopped on request in the middle of a PPO update; the last checkpoint stands before it.")
    return tally


def carried_out(course: Decisions, gradients: Callable[[Tensor], Seen], step: Callable[[], Stepped]) -> Tally:
    """Drives one course to its end: `gradients` of the rows it names, `step` with them where it says so."""
    answer: Seen | Stepped | None = None
    while True:
        try:
            chosen = course.send(answer)
        except StopIteration as end:
            tally: Tally = end.value
            return tally
        answer = step() if chosen is None else gradients(chosen)


def _minibatches(num_rows: int, cfg: PPOConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of each minibatch: every row once an epoch, in a new order each epoch."""
    for _ in range(cfg.num_ppo_epochs):
        yield from torch.randperm(num_rows, generator=generator).chunk(cfg.num_mini_batches)
