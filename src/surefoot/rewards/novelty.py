"""How far an answer lies from what a reward model was trained on: the Mahalanobis distance of its features.

A reward model is a guess far from its training answers, and a policy is paid to go there. The features are the states that its
head reads (Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples"; here one Gaussian of all).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "trained_on.safetensors"
SHRINKAGE = 1e-2  # of the mean variance, added to each: with fewer answers than features the covariance has no inverse


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """Mean and covariance of the features of the answers trained on, float64."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]

    def distances(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """sqrt((f - mean)' S^-1 (f - mean) / D), S the covariance with SHRINKAGE of its mean variance on the diagonal.

        The root mean square over the training answers is about 1, whatever the width: 2 is twice as far as a usual one.
        """
        width = len(self.mean)
        ridge = SHRINKAGE * self.covariance.diagonal().mean().clamp(min=1e-12)
        factor = torch.linalg.cholesky(self.covariance + ridge * torch.eye(width, dtype=torch.float64))
        gaps = torch.linalg.solve_triangular(factor, (features.double() - self.mean).T, upper=False)
        return gaps.square().sum(0).div(width).sqrt()

    def save(self, folder: Path) -> None:
        save_file({"mean": self.mean.float(), "covariance": self.covariance.float().contiguous()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> TrainedOn | None:
        """What stands beside the reward model in `folder`; None where it was made elsewhere."""
        if not (folder / FILE).exists():
            return None
        found = load_file(folder / FILE)
        return cls(found["mean"].double(), found["covariance"].double())


def trained_on(batches: Iterable[Float[Tensor, "B D"]]) -> TrainedOn:
    """Mean and covariance (of the population) of features that come in batches."""
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for batch in batches:
        rows = batch.double().cpu()
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.T @ rows
    mean = total / count
    return TrainedOn(mean, squares / count - torch.outer(mean, mean))
