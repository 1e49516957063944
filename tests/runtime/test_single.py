"""The runtime of one process."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from surefoot.runtime import SingleRuntime


def with_gradients(*gradients: list[float]) -> nn.ParameterList:
    module = nn.ParameterList([nn.Parameter(torch.zeros(len(g))) for g in gradients])
    for p, g in zip(module, gradients, strict=True):
        p.grad = torch.tensor(g)
    return module


def test_the_norm_is_that_of_all_gradients_together_and_returned_before_clipping() -> None:
    module = with_gradients([3.0], [0.0, 4.0])
    assert SingleRuntime().step(module, torch.optim.SGD(module.parameters(), lr=1.0), 1.0) == (pytest.approx(5.0), True)
    torch.testing.assert_close(torch.cat([p.detach() for p in module]), torch.tensor([-0.6, 0.0, -0.8]))


@pytest.mark.parametrize("limit", [None, 10.0])
def test_a_norm_within_the_limit_is_left_alone(limit: float | None) -> None:
    module = with_gradients([3.0], [0.0, 4.0])
    SingleRuntime().step(module, torch.optim.SGD(module.parameters(), lr=1.0), limit)
    torch.testing.assert_close(torch.cat([p.detach() for p in module]), torch.tensor([-3.0, 0.0, -4.0]))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_moves_neither_weights_nor_moments(poison: float) -> None:
    module = with_gradients([1.0], [poison, 0.0])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0)
    norm, is_stepped = SingleRuntime().step(module, optimizer, 1.0)
    assert not is_stepped and not math.isfinite(norm)
    assert all(float(p.detach().abs().sum()) == 0 for p in module) and not optimizer.state


def test_one_process_holds_every_row_and_every_weight() -> None:
    runtime, module = SingleRuntime(), nn.Linear(2, 1)
    assert list(runtime.shard(3)) == [0, 1, 2] and (runtime.rank, runtime.world_size) == (0, 1)
    assert [name for name, _ in runtime.full_weights(module)] == ["weight", "bias"]
    assert float(runtime.sum(torch.tensor(2.0))) == float(runtime.max(torch.tensor(2.0))) == 2.0
