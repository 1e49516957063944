"""Several reward sources as one: R = sum_i w_i R_i. Each part is recorded as it was scored, before its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from urllib.parse import urlsplit

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.config import is_url
from surefoot.errors import ConfigError, RewardError
from surefoot.rewards.verifiable import KINDS
from surefoot.types import Completions, Prompts, RewardSource, Scores


class WeightedSum:
    """`sources` are (name, source, weight). An answer that one of them cannot score is not scored, whatever the weight.

    `Scores.parts` holds each source's score under its name, and what a source of several parts tells under NAME.PART. Distances
    are those of the first source that measures any.

    Raises: ConfigError where there is no source, or two have one name.
    """

    def __init__(self, sources: Sequence[tuple[str, RewardSource, float]]) -> None:
        names = [name for name, _, _ in sources]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"a weighted sum of {names}: give one source or more, each with a name of its own.")
        self.sources = tuple(sources)

    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        """Raises RewardError where a sum leaves the range of float32, and what its sources raise."""
        value = torch.zeros(len(prompts))
        valid = torch.ones(len(prompts), dtype=torch.bool)
        parts = {}
        distance: Float[Tensor, " B"] | None = None
        percentile: Float[Tensor, " B"] | None = None
        for name, source, weight in self.sources:
            scored = source.score(prompts, completions)
            valid &= scored.valid.cpu()
            value += weight * torch.where(scored.valid, scored.value, 0.0).cpu()
            parts[name] = scored.value
            if distance is None:
                distance, percentile = scored.distance, scored.percentile
            if len(scored.parts) > 1:
                parts |= {f"{name}.{part}": told for part, told in scored.parts.items()}
        if bad := (~value.isfinite() & valid).nonzero()[:1, 0].tolist():
            raise RewardError(f"the weighted sum for answer {bad[0]} is not finite. Lower reward_source.weights.")
        return Scores(torch.where(valid, value, 0.0), parts, valid, distance, percentile)


def source_names(sources: Sequence[str]) -> list[str]:
    """A short name for each source, of which no two are alike: polite, reward, 127.0.0.1:5000, regex, reward_2."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    for source in sources:
        name = _short(source)
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def _short(source: str) -> str:
    if is_url(source):
        return urlsplit(source).netloc.rpartition("@")[2]
    kind, colon, rest = source.partition(":")
    if colon:  # a check by its kind, a function by its own name
        return kind if kind in KINDS else rest
    path = PurePath(source)
    return (path.parent.name or path.name) if path.name == "final" else path.name
