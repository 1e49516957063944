"""How far an answer lies from what a reward model was trained on: the Mahalanobis distance of its features.

A reward model is a guess far from its training answers, and a policy is paid to go there. The features are the states that its
head reads (Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples"; here one Gaussian of all).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.errors import ModelError, first_line

FILE = "trained_on.safetensors"
QUANTILES = 101  # kept of the held-out answers' distances: the 0th to the 100th percentile
SHRINKAGE = 1e-2  # of the mean variance, added to each: with fewer answers than features the covariance has no inverse


@dataclass(frozen=True)
class TrainedOn:
    """Mean and covariance of the features of the answers trained on, float64.

    `quantiles` are those of the distances of held-out answers, ascending; none where there were no such answers.
    """

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]
    quantiles: Float[Tensor, " Q"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def distances(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """sqrt((f - mean)' S^-1 (f - mean) / D), S the covariance with SHRINKAGE of its mean variance on the diagonal.

        The root mean square over the training answers is about 1, whatever the width: 2 is twice as far as a usual one.
        """
        gaps = torch.linalg.solve_triangular(self._factor, (features.double().cpu() - self.mean).T, upper=False)
        return gaps.square().sum(0).div(len(self.mean)).sqrt()

    @cached_property
    def _factor(self) -> Float[Tensor, "D D"]:
        """Cholesky's of the shrunk covariance, found once: PPO measures every rollout."""
        ridge = SHRINKAGE * self.covariance.diagonal().mean().clamp(min=1e-12)
        return torch.linalg.cholesky(self.covariance + ridge * torch.eye(len(self.mean), dtype=torch.float64))

    def percentiles(self, distances: Float[Tensor, " B"]) -> Float[Tensor, " B"] | None:
        """Share of the held-out answers that are nearer, in percent, interpolated; None where none were held out."""
        if not len(self.quantiles):
            return None
        grid = np.linspace(0, 100, len(self.quantiles))
        return torch.from_numpy(np.interp(distances.numpy(), self.quantiles.numpy(), grid))

    def with_held_out(self, distances: Sequence[float]) -> TrainedOn:
        """With the quantiles of these distances."""
        if not distances:
            return self
        points = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
        return replace(self, quantiles=torch.from_numpy(np.quantile(np.asarray(distances, dtype=float), points.numpy())))

    def save(self, folder: Path) -> None:
        parts = {"mean": self.mean, "covariance": self.covariance, "quantiles": self.quantiles}
        save_file({name: part.float().contiguous() for name, part in parts.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> TrainedOn | None:
        """What stands beside the reward model in `folder`; None where it was made elsewhere."""
        if not (folder / FILE).exists():
            return None
        try:
            return cls(**{name: part.double() for name, part in load_file(folder / FILE).items()})
        except (OSError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{folder / FILE} cannot be read: {first_line(error)}. Train the reward model again, or remove the file, without "
                "which distances are not measured."
            ) from error


def trained_on(batches: Iterable[Float[Tensor, "B D"]]) -> TrainedOn:
    """Mean and covariance (of the population) of features that come in batches."""
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for batch in batches:
        rows = batch.double().cpu()
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.T @ rows
    mean = total / count
    return TrainedOn(mean, squares / count - torch.outer(mean, mean))
