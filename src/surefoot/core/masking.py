r"""What `mask` means, and the few reductions that honour it.

A mask is boolean, has the shape of its tensor, and is True where a step counts. What stands in a masked slot is nobody's
business: it may be 100.0, NaN or inf and changes neither a value nor a gradient. That holds only if the slot is emptied BEFORE
the arithmetic, because 0 * NaN is NaN in the backward pass as well: `zero_outside` first, formulas after.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_EPS = 1e-8  # added to a standard deviation before dividing by it, in the unit of the data


def zero_outside(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x where the mask is True and exactly 0 elsewhere; no gradient passes through the zeros.

    Raises: ValueError where the shapes differ, since a mask that broadcasts counts its steps wrongly.
    """
    if x.shape != mask.shape:
        raise ValueError(f"The mask has shape {tuple(mask.shape)} and the tensor {tuple(x.shape)}. They must be equal.")
    return torch.where(mask, x, torch.zeros_like(x))


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], count: Float[Tensor, ""] | float | None = None
) -> Float[Tensor, ""]:
    """The sum of x over the mask, divided by `count`: by default the mask's own number of steps.

    With the global count (all micro-batches, all ranks) the parts ADD UP to the mean. A mean of means would weigh the steps of
    short parts more: [1] and [5, 5, 5] have mean 4, while the mean of their means is 3.

    A count of 0 gives 0. Half precision is summed in float32.
    """
    total = zero_outside(x, mask).to(torch.promote_types(x.dtype, torch.float32)).sum()
    divisor = torch.as_tensor(mask.sum() if count is None else count, dtype=total.dtype, device=total.device)
    return torch.where(divisor > 0, total / torch.where(divisor > 0, divisor, torch.ones_like(divisor)), torch.zeros_like(total))


@dataclass(frozen=True)
class Moments:
    """Count, sum, and sum of squared deviations from the own mean (`m2`) of a set of numbers; `a + b` is of both sets together.

    Counts and sums add; squared deviations do not, because the two sets deviate from different means. `+` adds the missing term
    (mean_a - mean_b)^2 n_a n_b / (n_a + n_b) (Chan, Golub and LeVeque 1979). Sums of squares would add plainly, and would lose
    every digit of the variance in float32 for numbers around 1e4.

    Ranks that can only all-reduce a sum measure their deviations from the mean of all instead, and those add plainly:

        own = moments(x, mask)
        count, total = runtime.sum(own.count), runtime.sum(own.sum)
        everyone = Moments(count, total, runtime.sum(own.about(total / count)))
    """

    count: Float[Tensor, ""]
    sum: Float[Tensor, ""]
    m2: Float[Tensor, ""]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """sum / count, and 0 for an empty set."""
        return _each(self.sum, self.count)

    @property
    def variance(self) -> Float[Tensor, ""]:
        """Population variance, m2 / count, and 0 for an empty set."""
        return _each(self.m2, self.count)

    def about(self, center: Float[Tensor, ""] | float) -> Float[Tensor, ""]:
        """Sum of squared deviations from `center`, not from the own mean: m2 + count (mean - center)^2; 0 for an empty set."""
        return self.m2 + torch.where(self.count > 0, self.count * (self.mean - center) ** 2, torch.zeros_like(self.m2))

    def __add__(self, other: Moments) -> Moments:
        count, total = self.count + other.count, self.sum + other.sum
        center = _each(total, count)
        return Moments(count, total, self.about(center) + other.about(center))


def moments(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Moments:
    """Count, sum and sum of squared deviations of x over the mask, in two passes and in float64 (float32 on MPS, which lacks it).

    Add them over micro-batches and ranks as `Moments` says. An empty mask gives three zeros.
    """
    kept = zero_outside(x, mask).to(_accumulator(x.device))
    count, total = mask.sum().to(kept.dtype), kept.sum()
    deviations = zero_outside(kept - _each(total, count), mask)
    rest = deviations.sum()  # 0 but for the rounding of the mean
    return Moments(count, total, ((deviations**2).sum() - _each(rest**2, count)).clamp(min=0))


def _each(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1)


def _accumulator(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def standardize(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], moments: Moments | None = None
) -> Float[Tensor, "*shape"]:
    """(x - mean) / (std + 1e-8): mean 0 and population variance 1 over the mask, exactly 0 outside it.

    `moments` are those of the whole batch on all ranks; without them, those of x. Equal numbers, and a single one, become 0.
    """
    known = _moments_of(x, mask) if moments is None else moments
    return _unit_deviations(x, mask, known).to(x.dtype)


def scale_only(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], moments: Moments | None = None
) -> Float[Tensor, "*shape"]:
    """(x - mean) / (std + 1e-8) + mean: population variance 1 with the mean kept, exactly 0 outside the mask.

    For rewards, where a moved mean would change which answers are worth their length: [2, 4, 6, 8] has mean 5 and becomes
    [3.66, 4.55, 5.45, 6.34], mean 5. `moments` as in `standardize`.
    """
    known = _moments_of(x, mask) if moments is None else moments
    return zero_outside(_unit_deviations(x, mask, known) + known.mean, mask).to(x.dtype)


_moments_of = moments  # the two functions above have an argument of that name


def _unit_deviations(x: Tensor, mask: Tensor, known: Moments) -> Tensor:
    kept = zero_outside(x, mask).to(known.mean.dtype)
    return zero_outside((kept - known.mean) / (known.variance.sqrt() + _EPS), mask)
