"""Drift meters: how a rollout's answers differ from what the SFT model writes. Functions of masked tensors and texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surefoot.core import masked_mean
from surefoot.diagnostics.text import distinct_n, duplicate_share, repetition

THIRDS = ("begin", "middle", "end")


def drift_metrics(
    texts: Sequence[str],
    mask: Tensor,
    finished: Tensor,
    scores: Tensor,
    kl: Tensor,
    logp_ref: Tensor,
) -> dict[str, float]:
    """Metrics drift/*: KL by position, fluency under the SFT model, variety, ends, and whether the reward pays for length.

    `mask`, `kl` and `logp_ref` (nats a token) are [B, T], `finished` and `scores` [B]. Rows without a token in the mask are
    left out.
    """
    rows = mask.any(1)
    said = [text for text, counts in zip(texts, rows.tolist(), strict=True) if counts]
    if not said:
        return {}
    by_place = kl_by_position(kl, mask)
    return {
        **{f"drift/kl_{name}": value for name, value in zip(THIRDS, by_place, strict=True)},
        "drift/fluency": masked_mean(logp_ref, mask).item(),
        "drift/distinct_1": distinct_n(said, 1),
        "drift/distinct_2": distinct_n(said, 2),
        "drift/repetition": repetition(said),
        "drift/duplicates": duplicate_share(said),
        "drift/eos_rate": finished[rows].float().mean().item(),
        "drift/reward_length_corr": correlation(scores[rows], mask[rows].sum(1)),
    }


def kl_by_position(kl: Tensor, mask: Tensor) -> tuple[float, ...]:
    """Mean KL a token, nats, in the first, second and last third of an answer; tensors [B, T].

    Token t of n is in third 3 t // n; a third without any has 0.
    """
    length = mask.sum(1, keepdim=True).clamp(min=1)
    third = torch.arange(mask.shape[1], device=mask.device) * 3 // length
    parts = [mask & (third == k) for k in range(3)]
    return tuple(masked_mean(kl, part).item() if bool(part.any()) else 0.0 for part in parts)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation; 0 where one of the two does not vary, or there are fewer than three pairs."""
    if len(x) < 3:
        return 0.0
    a, b = (z.double() - z.double().mean() for z in (x, y))
    spread = float(a.norm() * b.norm())
    return float(a @ b) / spread if spread > 1e-12 else 0.0
