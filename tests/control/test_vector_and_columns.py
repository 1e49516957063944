"""Environments stepped with less overhead against Gymnasium's own, and advantages by column against `core.gae`."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from control_toys import Counting
from surefoot.config import ControlConfig
from surefoot.control import CartPoleEnvs, SteppedEnvs, make_stepped_envs
from surefoot.control.columns import gae_by_column
from surefoot.core import gae
from surefoot.errors import ConfigError


def test_stepped_environments_are_those_of_gymnasium_step_by_step() -> None:
    ours = SteppedEnvs([Counting] * 4)
    theirs = SyncVectorEnv([Counting] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and ours.num_envs == 4
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    generator, ends = np.random.default_rng(0), 0
    for _ in range(40):
        actions = generator.uniform(-1, 1, (4, 1)).astype(np.float32)
        (*found, info), (*expected, their_info) = ours.step(actions), theirs.step(actions)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        ended = expected[2] | expected[3]
        assert ("final_obs" in info) == ended.any() == ("final_obs" in their_info)
        for i in np.flatnonzero(ended):
            np.testing.assert_array_equal(info["final_obs"][i], their_info["final_obs"][i])
            ends += 1
    assert ends > 20
    ours.close()


def test_seeds_below_each_other_start_as_each_alone() -> None:
    joint, second = SteppedEnvs([Counting] * 4, num_seeds=2), SteppedEnvs([Counting] * 2)
    np.testing.assert_array_equal(joint.reset(seed=[5, 40])[0][2:], second.reset(seed=40)[0])
    joint, second = CartPoleEnvs(2, num_seeds=2), CartPoleEnvs(2)
    np.testing.assert_array_equal(joint.reset(seed=[5, 40])[0][2:], second.reset(seed=40)[0])
    actions, ends = np.random.default_rng(0).integers(0, 2, (200, 4)), 0
    for chosen in actions:  # the other seed's episodes draw nothing from this one's numbers
        seen, expected = joint.step(chosen), second.step(chosen[2:])
        np.testing.assert_array_equal(seen[0][2:], expected[0])
        ends += int(expected[2].sum())
    assert ends > 8
    with pytest.raises(ConfigError, match="3 seeds were given for the environments of 2"):
        joint.reset(seed=[1, 2, 3])


def test_cartpole_as_arrays_is_cartpole_with_its_last_observations_and_its_limit() -> None:
    ours, single = CartPoleEnvs(3), [gymnasium.make("CartPole-v1") for _ in range(3)]
    seen, _ = ours.reset(seed=0)
    generator, cut = np.random.default_rng(1), 0

    def put(i: int) -> None:
        single[i].reset()
        single[i].unwrapped.state = tuple(ours._physics.state[:, i])  # type: ignore[attr-defined]

    for i in range(3):
        put(i)
    for t in range(700):
        # pushing towards where the pole falls keeps the first cart up until the limit; the others fall at random
        balance = int(seen[0][2] + 0.3 * seen[0][3] + 0.05 * seen[0][0] + 0.1 * seen[0][1] > 0)
        actions = np.array([balance, *generator.integers(0, 2, 2)])
        seen, rewards, terminated, truncated, info = ours.step(actions)
        for i, env in enumerate(single):
            observed, reward, is_terminated, is_truncated, _ = env.step(int(actions[i]))
            assert (rewards[i], terminated[i], truncated[i]) == (reward, is_terminated, is_truncated), t
            if is_terminated or is_truncated:
                np.testing.assert_allclose(info["final_obs"][i], observed, atol=1e-6)
                assert np.abs(seen[i]).max() <= 0.05
                cut += is_truncated
                put(i)
            else:
                np.testing.assert_allclose(seen[i], observed, atol=1e-6)
    assert cut == 1


def test_which_environments_are_stepped_how() -> None:
    assert isinstance(make_stepped_envs(ControlConfig(num_envs=3), num_seeds=2), CartPoleEnvs)
    acrobot = make_stepped_envs(ControlConfig(env="Acrobot-v1", num_envs=2))
    assert isinstance(acrobot, SteppedEnvs) and acrobot.num_envs == 2
    with pytest.raises(ConfigError, match=r"control.env = 'CartPool-v1' cannot be made"):
        make_stepped_envs(ControlConfig(env="CartPool-v1"))


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
