"""The closed-form partial derivatives of the loss against autograd on `ppo_loss`, with poison outside the mask."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from surefoot.config import PPOConfig
from surefoot.ppo import mean_count, ppo_loss
from surefoot.ppo_figures import stacked
from surefoot.ppo_gradient import Columns, loss_slopes
from surefoot.types import Evaluation, Judgement, PPOBatch

F64 = torch.float64
ROWS, STEPS = 7, 5
OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "clip"},
    {"objective": "clip", "cliprange": 0.1, "cliprange_high": 0.3},
    {"objective": "penalty", "beta_estimator": "exact"},
    {"objective": "penalty", "beta_estimator": "k1"},
    {"objective": "penalty", "beta_estimator": "k3"},
    {"objective": "policy_gradient"},
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"vf_coef": 0.5, "ent_coef": 0.01, "cliprange_value": 0.2},
    {"vf_coef": 0.0, "ent_coef": 0.3},
]
NAMES = ("logp", "values", "entropy", "kl")


def draw(seed: int) -> tuple[dict[str, Tensor], PPOBatch]:
    """What a policy says (logp, values, entropy, kl), and a rollout; NaN and infinity stand where the mask is False."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(ROWS, STEPS, generator=generator, dtype=F64)

    mask = torch.rand(ROWS, STEPS, generator=generator) < 0.7
    mask[2] = False
    logp_old, values_old = normal() - 2, normal()
    said = {"logp": logp_old + normal(0.3), "values": values_old + normal(0.3), "entropy": normal(), "kl": normal() ** 2}
    columns = {"logp_old": logp_old, "values_old": values_old, "advantages": normal(), "returns": normal()}
    for i, x in enumerate([*said.values(), *columns.values()]):
        x[~mask] = (math.nan, math.inf, -math.inf)[i % 3]
    zeros = torch.zeros(ROWS, STEPS)
    return said, PPOBatch(states=zeros, actions=zeros, mask=mask, dist_old=zeros, **columns)


def by_autograd(said: dict[str, Tensor], rows: PPOBatch, cfg: PPOConfig, critic_only: bool) -> tuple[list[Tensor], Tensor, int]:
    leaves = {name: x.clone().requires_grad_() for name, x in said.items()}
    evaluation = Evaluation(
        leaves["logp"], leaves["values"], torch.zeros(ROWS, STEPS), leaves["entropy"], dist=leaves["kl"]
    )  # the exact KL of these two "distributions" is the second one
    count = mean_count(rows.mask, cfg.loss_aggregation)
    loss, parts = ppo_loss(
        evaluation, rows, cfg, kl=lambda old, new: new, beta=1.7, kl_coef=0.0, count=count, critic_only=critic_only
    )
    loss.backward()
    slopes = [torch.zeros(ROWS, STEPS, dtype=F64) if leaves[n].grad is None else leaves[n].grad for n in NAMES]
    return [slope for slope in slopes if slope is not None], stacked(parts), count


def by_hand(
    said: dict[str, Tensor], rows: PPOBatch, cfg: PPOConfig, critic_only: bool
) -> tuple[list[Tensor], Tensor, np.ndarray]:
    def flat(x: Tensor) -> np.ndarray:
        return x.flatten()[None].numpy()

    mask = rows.mask
    length = mask.sum(1, keepdim=True).clamp(min=1) if cfg.loss_aggregation == "sequence_mean" else 1
    weight = flat(mask.to(F64) / length / mean_count(mask, cfg.loss_aggregation))
    columns = Columns(flat(rows.logp_old), flat(rows.values_old), flat(rows.advantages), flat(rows.returns), flat(mask))
    judged = Judgement(*(flat(said[name]) for name in NAMES))
    slopes, sums, highest = loss_slopes(judged, columns, cfg, beta=1.7, weight=weight, critic_only=critic_only)
    tensors = [
        torch.zeros(ROWS, STEPS, dtype=F64) if slope is None else torch.from_numpy(np.array(slope)).view(ROWS, STEPS)
        for slope in slopes
    ]
    return tensors, torch.from_numpy(sums[0]), highest


@pytest.mark.parametrize("critic_only", [False, True])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_slopes_and_figures_are_those_of_autograd(
    objective: dict[str, Any], options: dict[str, Any], aggregation: Any, critic_only: bool
) -> None:
    cfg = PPOConfig(**objective, **options, loss_aggregation=aggregation)
    for seed in range(4):
        said, rows = draw(seed)
        expected, parts, count = by_autograd(said, rows, cfg, critic_only)
        found, sums, highest = by_hand(said, rows, cfg, critic_only)
        for name, one, other in zip(NAMES, found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        sums[:3] *= count  # losses are means there and sums here
        torch.testing.assert_close(sums.float(), parts, atol=1e-5, rtol=1e-5)
        gap = (said["logp"] - rows.logp_old)[rows.mask]
        assert highest[:, 0].tolist() == pytest.approx([float(gap.max()), float(gap.abs().max())])


def test_every_objective_and_estimator_of_the_configuration_is_drawn() -> None:
    literals = {name: PPOConfig.model_fields[name].annotation.__args__ for name in ("objective", "beta_estimator")}
    for name, members in literals.items():
        assert set(members) <= {given.get(name, "") for given in OBJECTIVES}


def test_the_slopes_tell_clipped_from_unclipped_in_every_cell() -> None:
    """A = 1, r = 1.5: flat; r = 0.5: -r A. A = -1, r = 0.5: flat; r = 1.5: +1.5. The weight is 1/4."""
    ratios, advantages = [1.5, 0.5, 0.5, 1.5], [1.0, 1.0, -1.0, -1.0]
    zeros = np.zeros((1, 4))
    columns = Columns(zeros, zeros, np.array([advantages]), zeros, None)
    judged = Judgement(np.log(np.array([ratios])), zeros, zeros, None)
    slopes, sums, _ = loss_slopes(judged, columns, PPOConfig(), beta=0.0, weight=0.25)
    assert slopes.logp[0].tolist() == pytest.approx([0, -0.5 / 4, 0, 1.5 / 4])
    assert sums[0, 5] == 2


def test_poison_inside_the_mask_is_not_hidden() -> None:
    said, rows = draw(0)
    advantages = rows.advantages.clone()
    advantages[tuple(rows.mask.nonzero()[0])] = math.nan
    _, sums, _ = by_hand(said, replace(rows, advantages=advantages), PPOConfig(), critic_only=False)
    assert math.isnan(float(sums[0])) and math.isnan(float(sums[2])) and not math.isnan(float(sums[1]))


def test_equal_losses_beyond_the_value_clip_share_the_slope_as_autograd_has_it() -> None:
    """V = 2 is clipped to 1 around 0, R = 1.5: both losses are 0.125, and autograd gives each one half of the slope 0.5."""
    one = np.ones((1, 1))
    columns = Columns(0 * one, 0 * one, 0 * one, 1.5 * one, None)
    judged = Judgement(0 * one, 2 * one, 0 * one, None)
    slopes, _, _ = loss_slopes(judged, columns, PPOConfig(cliprange_value=1.0), beta=0.0, weight=1.0)
    values = torch.full((1, 1), 2.0, dtype=F64, requires_grad=True)
    clipped = values.clamp(-1, 1)
    torch.maximum((values - 1.5) ** 2 / 2, (clipped - 1.5) ** 2 / 2).sum().backward()
    assert values.grad is not None and slopes.values[0, 0] == pytest.approx(float(values.grad)) == pytest.approx(0.25)


@pytest.mark.parametrize("a, b", [(0.0, 2.0), (2.0, 0.5)])
def test_a_seed_has_its_own_beta(a: float, b: float) -> None:
    """At ratio 2 and A = 0 the slope of beta * k3 by logp is beta * (r - 1)."""
    logp, zeros = np.full((2, 1), math.log(2.0)), np.zeros((2, 1))
    cfg = PPOConfig(objective="penalty", beta_estimator="k3")
    judged, columns = Judgement(logp, zeros, zeros, None), Columns(zeros, zeros, zeros, zeros, None)
    slopes, _, _ = loss_slopes(judged, columns, cfg, beta=np.array([[a], [b]]), weight=1.0)
    assert slopes.logp[:, 0].tolist() == pytest.approx([a, b])
