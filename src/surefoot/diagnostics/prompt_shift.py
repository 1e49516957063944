"""Whether the prompts of a rollout are such as the run began with: length, tokens, and what the SFT model makes of them.

Everything is sums over prompts: those of two rollouts, or of two processes, add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.types import Prompts

BUCKETS = 64  # into which tokens are counted, by id: rare ones share one, so that each has something to count
MIN_PROMPTS = 16  # different ones, on either side: with fewer a deviation is a guess
FIGURES = ("length", "tokens", "states")


@dataclass(frozen=True, slots=True)
class PromptSums:
    """Count of different prompts, and sums over them of C columns, float64.

    A column is the length, the count of a bucket of tokens, or a number of the state.
    """

    count: Tensor
    sums: Tensor
    squares: Tensor

    def __add__(self, other: PromptSums) -> PromptSums:
        return PromptSums(self.count + other.count, self.sums + other.sums, self.squares + other.squares)


def prompt_sums(prompts: Prompts, states: Tensor) -> PromptSums:
    """The sums of a rollout's prompts, each once. `states` [B, D] are the SFT model's at a prompt's last token."""
    first = {key: row for row, key in reversed(list(enumerate(prompts.key)))}
    rows = torch.tensor(sorted(first.values()), dtype=torch.long)
    ids, mask = prompts.ids.cpu()[rows], prompts.mask.cpu()[rows]
    buckets = torch.zeros(len(rows), BUCKETS, dtype=torch.float64).scatter_add_(1, ids % BUCKETS, mask.double())
    x = torch.cat([mask.sum(1, keepdim=True).double(), buckets, states.double().cpu()[rows]], 1)
    return PromptSums(torch.tensor(float(len(rows)), dtype=torch.float64), x.sum(0), x.square().sum(0))


def prompt_shift(before: PromptSums, now: PromptSums) -> dict[str, float]:
    r"""How far the mean prompt has moved, in squared standard errors: by figure of FIGURES; {} where there are too few prompts.

    (mean_now - mean_before)^2 / (s^2 (1/n_now + 1/n_before)) of each column, s^2 the pooled variance, averaged over the columns
    of a figure: Mahalanobis's distance of two means with the covariance shrunk to its diagonal (Srivastava and Du 2008). Its
    expectation is about 1 where nothing has changed. Columns that never vary are left out.
    """
    n, m = before.count, now.count
    if min(n, m) < MIN_PROMPTS:
        return {}
    gap = now.sums / m - before.sums / n
    within = before.squares - before.sums**2 / n + now.squares - now.sums**2 / m
    scale = before.squares + now.squares
    variance = within.clamp(min=0) / (n + m - 2)
    varies = (variance > 1e-9 * scale / (n + m)) | (gap.abs() > 1e-6)
    # a column that is constant on either side, and another constant, has shifted for sure: its deviation counts as tiny
    z2 = torch.where(varies, gap**2 / (variance.clamp(min=1e-9) * (1 / n + 1 / m)), 0.0).clamp(max=1e4)
    parts = {"length": slice(0, 1), "tokens": slice(1, 1 + BUCKETS), "states": slice(1 + BUCKETS, None)}
    return {name: (z2[part].sum() / varies[part].sum().clamp(min=1)).item() for name, part in parts.items()}


def shift_words(before: PromptSums, now: PromptSums) -> str:
    """The lengths, as a fragment: "prompts have 12.0 tokens, and had 5.5 at the start"."""
    then, here = (float(part.sums[0] / part.count) for part in (before, now))
    return f"prompts have {here:.1f} tokens, and had {then:.1f} at the start"
