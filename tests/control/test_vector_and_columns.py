"""Environments stepped with less overhead against Gymnasium's own, and advantages by column against `core.gae`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from control_toys import Counting
from surefoot.control import SteppedEnvs
from surefoot.control.columns import gae_by_column
from surefoot.core import gae


def test_stepped_environments_are_those_of_gymnasium_step_by_step() -> None:
    """Where an episode ended its environment alone is reset, some with a seed; those whose episodes go on are left alone."""
    ours = SteppedEnvs([Counting] * 4)
    theirs = SyncVectorEnv([Counting] * 4, autoreset_mode=AutoresetMode.DISABLED)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ours.num_envs == 4
    np.testing.assert_array_equal(ours.reset(seed=[7, 1, 7, 3])[0], theirs.reset(seed=[7, 1, 7, 3])[0])
    generator, ends = np.random.default_rng(0), 0
    for t in range(40):
        actions = generator.uniform(-1, 1, (4, 1)).astype(np.float32)
        found, expected = ours.step(actions), theirs.step(actions)
        for one, other in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        ended = expected[2] | expected[3]
        if ended.any():
            seeds = [t if i % 2 else None for i in range(4)]
            again = ours.reset(seed=seeds, options={"reset_mask": ended})[0]
            np.testing.assert_array_equal(again, theirs.reset(seed=seeds, options={"reset_mask": ended})[0])
            assert (again[ended, 1] == 0).all() and (again[~ended, 1] > 0).all()
        ends += int(ended.sum())
    assert ends > 20
    ours.close()


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("poison", [0.0, math.nan])
def test_advantages_by_column_are_those_of_the_core(lam: float, poison: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values, following = (torch.randn(3, 50, generator=generator) for _ in range(3))
    terminated = torch.rand(3, 50, generator=generator) < 0.1
    ended = terminated | (torch.rand(3, 50, generator=generator) < 0.1)
    following[terminated] = math.nan  # V behind an end may be anything
    if poison:
        rewards[0, 30] = poison
    found = gae_by_column(rewards, values, following, terminated, ended, gamma=0.97, lam=lam)
    expected = gae(rewards, values, following, terminated, ended, gamma=0.97, lam=lam)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)
    assert bool(found.isnan().any()) == bool(poison) and not found[1:].isnan().any()
