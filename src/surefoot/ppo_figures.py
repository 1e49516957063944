"""What a PPO update measures: sums that add up over micro-batches and ranks, two alarms that read them, and the statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .config import PPOConfig
from .core import explained_variance
from .errors import Diverged, TrainingError
from .types import PPOBatch, UpdateStats

MAX_FIRST_LOG_RATIO = 1e-4  # nats, float32: the largest |log ratio| before the first step
MEAN_FIRST_LOG_RATIO = 0.02  # nats, half precision: the mean |log ratio|; the largest is noise there

Number = TypeVar("Number", Tensor, float)


@dataclass(frozen=True, slots=True)
class LossParts(Generic[Number]):
    """What a loss is made of, without gradient. Parts of several micro-batches and ranks ADD UP.

    Sums over valid steps, but for the three losses, which are the minibatch's mean times its `count`. KLs and logs in nats.
    """

    loss_policy: Number
    loss_value: Number
    loss_total: Number
    kl_old_new: Number
    kl_tether: Number
    clipped: Number
    outside: Number
    value_clipped: Number
    ratio_gap: Number  # ratio - 1: its square keeps digits that ratio^2 loses
    ratio_gap_squared: Number
    abs_log_ratio: Number
    entropy: Number


def stacked(parts: LossParts[Tensor]) -> Float[Tensor, " parts"]:
    """The parts as one vector, for one sum over ranks."""
    return torch.stack([getattr(parts, f.name).float() for f in fields(parts)])


def unstacked(sums: Iterable[float]) -> LossParts[float]:
    parts: LossParts[float] = LossParts(*sums)
    return parts


NUM_PARTS = len(fields(LossParts))
_KL = [f.name for f in fields(LossParts)].index("kl_old_new")
_ABS_LOG_RATIO = [f.name for f in fields(LossParts)].index("abs_log_ratio")


@dataclass(frozen=True, slots=True)
class Seen:
    """One minibatch: the sums of `LossParts` over all ranks, and the largest (log ratio, |log ratio|) of this one.

    The latter are -inf without a valid step. `is_stopping`: a rank was asked to stop.
    """

    sums: Sequence[float]
    log_ratios: tuple[float, float]
    valid_steps: int
    count: int
    is_stopping: bool = False


@dataclass(slots=True)
class Tally:
    """What an update has seen so far. The same on all ranks, but for `highest_log_ratio`, whose maximum is taken at the end.

    That is -inf where nothing was seen, so that the ratio is 0.
    """

    skipped_in_row: int
    sums: list[float] = field(default_factory=lambda: [0.0] * NUM_PARTS)
    highest_log_ratio: float = -math.inf
    valid_steps: int = 0
    count: int = 0
    norms: list[float] = field(default_factory=list)
    first_log_ratio: float = 0.0
    last_kl: float = 0.0
    skipped: int = 0
    skip_reason: str = ""
    stopped_early: bool = False

    def add(self, seen: Seen) -> None:
        self.sums = [total + part for total, part in zip(self.sums, seen.sums, strict=True)]
        self.highest_log_ratio = max(self.highest_log_ratio, seen.log_ratios[0])
        self.valid_steps += seen.valid_steps
        self.count += seen.count
        self.last_kl = seen.sums[_KL] / seen.valid_steps

    def step(self, norm: float) -> None:
        self.norms.append(norm)
        self.skipped_in_row = 0

    def leave_out(self, reason: str) -> None:
        """Counts a minibatch from which there is nothing to learn; it says nothing about the weights, so it is no alarm."""
        self.skipped += 1
        self.skip_reason = self.skip_reason or reason

    def skip(self, reason: str, cfg: PPOConfig) -> None:
        """Counts a step that is refused. Raises Diverged where they were too many in a row."""
        self.leave_out(reason)
        self.skipped_in_row += 1
        if self.skipped_in_row >= cfg.max_skipped_steps:
            raise Diverged(
                f"{self.skipped_in_row} optimizer steps in a row were refused (ppo.max_skipped_steps = {cfg.max_skipped_steps}): "
                f"{reason}. No weight was moved by them. Lower ppo.learning_rate, set ppo.target_kl, or look for extreme rewards."
            )


def checked_first_ratio(weights: Iterable[Tensor], seen: Seen, *, half_precision: bool, rounding: float = 0.0) -> float:
    """The largest |log ratio| of a minibatch before the first step, in nats, where pi_theta and pi_old are the same policy.

    Raises: TrainingError where they are not: from 1e-4 on; with half-precision weights, or where float32 weights compute in half
    precision (`half_precision`), from a mean of 0.02 on; or from `rounding` (nats) on if that is more.
    """
    largest, mean = seen.log_ratios[1], seen.sums[_ABS_LOG_RATIO] / seen.valid_steps
    is_half = half_precision or any(weight.dtype in (torch.bfloat16, torch.float16) for weight in weights)
    figure, least = (mean, MEAN_FIRST_LOG_RATIO) if is_half else (largest, MAX_FIRST_LOG_RATIO)
    allowed = max(least, rounding)
    if figure >= allowed:
        raise TrainingError(
            f"Before the first step the policy differs from the rollout's: |log ratio| is {largest:.2g} nats at most and "
            f"{mean:.2g} on average, where {'the mean' if is_half else 'the largest'} must stay below {allowed:.2g}. Likely: "
            "dropout is on, the temperatures differ, padding reaches the log-probabilities, or logp_old is of other weights."
        )
    return largest


def why_not_finite(sums: Sequence[float], batch: PPOBatch) -> str:
    """Which global figures are not finite, and which part of the rollout explains it; "" where all are finite."""
    if all(map(math.isfinite, sums)):
        return ""
    bad = [f.name for f, part in zip(fields(LossParts), sums, strict=True) if not math.isfinite(part)]
    given = {"logp_old": batch.logp_old, "values_old": batch.values_old, "advantages": batch.advantages, "returns": batch.returns}
    poisoned = [name for name, x in given.items() if not torch.isfinite(x[batch.mask]).all()]
    cause = f" (nor is the rollout's {', '.join(poisoned)})" if poisoned else ""
    return f"{', '.join(bad)} not finite{cause}"


def statistics(tally: Tally, batch: PPOBatch, cfg: PPOConfig, *, kl_after: float, log_ratio_max: float) -> UpdateStats:
    """The tally as means. Everything that was evaluated and finite counts, an early stop's last minibatch included."""
    losses = unstacked(total / max(1, tally.count) for total in tally.sums)
    means = unstacked(total / max(1, tally.valid_steps) for total in tally.sums)
    norms = tally.norms or [0.0]
    clipped = norms if cfg.max_grad_norm is None else [min(norm, cfg.max_grad_norm) for norm in norms]
    return UpdateStats(
        loss_policy=losses.loss_policy,
        loss_value=losses.loss_value,
        loss_total=losses.loss_total,
        approx_kl=means.kl_old_new,
        kl_after=kl_after,
        kl_tether=means.kl_tether,
        clip_fraction=means.clipped,
        outside_fraction=means.outside,
        value_clip_fraction=means.value_clipped,
        ratio_mean=1 + means.ratio_gap,
        ratio_var=max(0.0, means.ratio_gap_squared - means.ratio_gap**2),
        ratio_max=math.exp(log_ratio_max),
        first_log_ratio=tally.first_log_ratio,
        entropy=means.entropy,
        explained_variance=float(explained_variance(batch.values_old, batch.returns, batch.mask)),
        grad_norm=math.fsum(norms) / len(norms),
        grad_norm_clipped=math.fsum(clipped) / len(clipped),
        steps=len(tally.norms),
        skipped=tally.skipped,
        skip_reason=tally.skip_reason,
        stopped_early=tally.stopped_early,
        skipped_in_row=tally.skipped_in_row,
    )
