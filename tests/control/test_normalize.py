"""Running statistics: those of all rows at once, whatever the pieces; frozen where they are only read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surefoot.control import Normalizer, RunningMoments


def test_moments_of_pieces_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).normal(3.0, 5.0, (1_000, 2))
    moments = RunningMoments(2)
    for piece in np.split(rows, [1, 7, 400]):
        moments.update(piece)
    assert moments.count == pytest.approx(1_000)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-5)


def test_observations_leave_with_mean_0_and_deviation_1_and_are_clipped() -> None:
    raw = np.array([[1.0], [3.0]], dtype=np.float32)  # mean 2, deviation 1
    normalizer = Normalizer(1, 2, observations=True, clip=5.0)
    normalizer.learn(raw)
    np.testing.assert_allclose(normalizer.observed(raw), [[-1.0], [1.0]], atol=1e-3)
    assert normalizer.observed(np.array([[100.0], [-100.0]])).tolist() == [[5.0], [-5.0]]


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return_and_keep_their_mean() -> None:
    """Two environments pay 1 and 3; gamma 0.5: returns (1, 3), then (1.5, 4.5). Variance over the four: 2.5 - ... by numpy."""
    normalizer = Normalizer(1, 2, rewards=True, gamma=0.5)
    rewards, going = np.array([1.0, 3.0]), np.zeros(2, dtype=bool)
    normalizer.paid(rewards, going)
    paid = normalizer.paid(rewards, going)
    np.testing.assert_allclose(paid, rewards / np.std([1.0, 3.0, 1.5, 4.5]), rtol=1e-3)


def test_the_discounted_return_begins_at_0_with_each_episode() -> None:
    normalizer = Normalizer(1, 1, rewards=True, gamma=1.0)
    normalizer.paid(np.array([5.0]), np.array([True]))
    normalizer.paid(np.array([5.0]), np.array([False]))
    assert normalizer.tensors()["returns"].tolist() == [5.0]


def test_reading_moves_nothing_and_tensors_bring_everything_back() -> None:
    chance = np.random.default_rng(1)
    one, other = (Normalizer(3, 2, observations=True, rewards=True) for _ in range(2))
    for _ in range(5):
        one.learn(chance.normal(size=(2, 3)))
        one.paid(chance.normal(size=2), np.array([False, True]))
    before = {name: tensor.clone() for name, tensor in one.tensors().items()}
    one.observed(chance.normal(size=(2, 3)))
    assert all(torch.equal(before[name], tensor) for name, tensor in one.tensors().items())
    other.load(before)
    raw, rewards = chance.normal(size=(2, 3)), chance.normal(size=2)
    going = np.zeros(2, dtype=bool)
    assert np.array_equal(one.observed(raw), other.observed(raw))
    assert np.array_equal(one.paid(rewards, going), other.paid(rewards, going))


def test_what_is_not_normalised_passes_as_it_is() -> None:
    normalizer, raw = Normalizer(1, 2), np.array([[1e6], [-1e6]], dtype=np.float32)
    assert normalizer.observed(raw) is raw and normalizer.tensors() == {}
    assert normalizer.paid(np.array([1e6, 0.0]), np.zeros(2, dtype=bool)).tolist() == [1e6, 0.0]
