"""Advantages against a slow loop, and the critic's losses by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from surefoot.core import clipped_value_loss, explained_variance, gae, td_errors, value_loss


def test_td_errors_by_hand():
    # 1 + 0.5 * 4 - 2 = 1; the last state is terminal: 1 - 2 = -1, whatever stands for its successor
    for nothing in (4.0, math.nan, math.inf):
        found = td_errors(tensor([1.0, 1.0]), tensor([2.0, 2.0]), tensor([4.0, nothing]), tensor([False, True]), gamma=0.5)
        assert found.tolist() == [1.0, -1.0]


def slow_gae(rewards, values, next_values, terminated, ended, gamma, lam):
    """The definition, term by term: O(T^2), plain floats."""
    out = []
    for t in range(len(rewards)):
        total = 0.0
        for k in range(len(rewards) - t):
            u = t + k
            successor = 0.0 if terminated[u] else gamma * next_values[u]
            total += (gamma * lam) ** k * (rewards[u] + successor - values[u])
            if terminated[u] or ended[u]:
                break
        out.append(total)
    return out


floats, fraction = st.floats(-10, 10), st.floats(0, 1)
steps = st.lists(st.tuples(floats, floats, floats, st.booleans(), st.booleans()), min_size=1, max_size=7)


def columns(rows):
    """[T] tuples -> five tensors [1, T]."""
    *numbers, terminated, ended = zip(*rows, strict=True)
    return *(tensor([n], dtype=torch.double) for n in numbers), tensor([terminated]), tensor([ended])


@given(steps, fraction, fraction)
def test_gae_equals_its_definition(rows, gamma, lam):
    expected = slow_gae(*zip(*rows, strict=True), gamma, lam)
    assert gae(*columns(rows), gamma=gamma, lam=lam)[0].tolist() == pytest.approx(expected, abs=1e-9)


@given(steps, fraction)
def test_gae_with_lambda_zero_is_the_td_error(rows, gamma):
    rewards, values, next_values, terminated, ended = columns(rows)
    expected = td_errors(rewards, values, next_values, terminated, gamma=gamma)
    assert torch.equal(gae(rewards, values, next_values, terminated, ended, gamma=gamma, lam=0.0), expected)


@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=7), fraction)
def test_gae_with_lambda_one_is_the_discounted_return_less_the_value(rows, gamma):
    rewards, values = (list(c) for c in zip(*rows, strict=True))
    length = len(rewards)
    terminated = tensor([[False] * (length - 1) + [True]])
    next_values = tensor([[*values[1:], math.nan]], dtype=torch.double)
    found = gae(
        tensor([rewards], dtype=torch.double), tensor([values], dtype=torch.double), next_values, terminated, terminated,
        gamma=gamma, lam=1.0,
    )  # fmt: skip
    returns = [sum(gamma ** (k - t) * rewards[k] for k in range(t, length)) for t in range(length)]
    assert found[0].tolist() == pytest.approx([r - v for r, v in zip(returns, values, strict=True)], abs=1e-9)


def test_rows_do_not_mix():
    a, b = [(1.0, 2.0, 3.0, False, False)] * 3, [(5.0, -1.0, 4.0, True, True)] * 3
    both = [torch.cat(pair) for pair in zip(columns(a), columns(b), strict=True)]
    alone = torch.cat([gae(*columns(rows), gamma=0.9, lam=0.8) for rows in (a, b)])
    assert torch.equal(gae(*both, gamma=0.9, lam=0.8), alone)


@pytest.mark.parametrize("terminated, ended, first", [
    (False, False, 10.25),  # delta_0 = 1 + 0.5 * 8 - 2 = 3; delta_1 = 3 + 0.5 * 64 - 6 = 29: 3 + 0.25 * 29
    (False, True, 3.0),     # a time limit: the value of the cut state counts, the next column does not
    (True, True, -1.0),     # the end: 1 - 2
    (True, False, -1.0),    # terminated implies ended
])  # fmt: skip
def test_terminated_drops_the_next_value_and_ended_stops_the_sum(terminated, ended, first):
    found = gae(
        tensor([[1.0, 3.0]]), tensor([[2.0, 6.0]]), tensor([[8.0, 64.0]]), tensor([[terminated, False]]),
        tensor([[ended, False]]), gamma=0.5, lam=0.5,
    )  # fmt: skip
    assert found.tolist() == [[first, 29.0]]


@pytest.mark.parametrize("poison", [math.nan, math.inf, 100.0])
def test_nothing_behind_an_end_reaches_the_steps_before_it(poison):
    bad = poison
    found = gae(
        tensor([[1.0, 2.0, bad]]), tensor([[0.5, 0.5, bad]]), tensor([[0.5, bad, bad]]),
        tensor([[False, True, False]]), tensor([[False, True, False]]), gamma=1.0, lam=1.0,
    )  # fmt: skip
    assert found[0, :2].tolist() == [2.5, 1.5]  # 3 - 0.5, 2 - 0.5


def test_no_gradient_of_a_poisoned_slot_reaches_the_steps_before_an_end():
    values = tensor([[0.5, 0.5, math.nan]], requires_grad=True)
    next_values = tensor([[0.5, math.nan, math.nan]], requires_grad=True)
    end = tensor([[False, True, False]])
    found = gae(tensor([[1.0, 2.0, math.nan]]), values, next_values, end, end, gamma=1.0, lam=1.0)
    found[0, :2].sum().backward()
    assert values.grad.tolist() == [[-1.0, -2.0, 0.0]]  # A_0 = d_0 + d_1, A_1 = d_1
    assert next_values.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_gae_has_the_gradient_that_finite_differences_find():
    generator = torch.Generator().manual_seed(0)
    args = tuple(torch.randn(2, 4, dtype=torch.double, generator=generator).requires_grad_() for _ in range(3))
    terminated, ended = tensor([[0, 1, 0, 0], [0, 0, 0, 1]]).bool(), tensor([[0, 1, 0, 0], [1, 0, 0, 1]]).bool()
    assert torch.autograd.gradcheck(lambda r, v, n: gae(r, v, n, terminated, ended, gamma=0.9, lam=0.7), args)


def test_rows_without_steps_have_no_advantages():
    nothing, flags = torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)
    assert gae(nothing, nothing, nothing, flags, flags, gamma=1.0, lam=1.0).shape == (3, 0)


def test_the_value_loss_has_the_factor_one_half():
    assert value_loss(tensor([3.0, -1.0]), tensor([1.0, 2.0])).tolist() == [2.0, 4.5]  # 4 / 2, 9 / 2


@pytest.mark.parametrize("value, old, target, loss, slope", [
    (0.1, 0.0, 1.0, 0.405, -0.9),    # within the range: 0.9^2 / 2
    (0.5, 0.0, 1.0, 0.320, 0.0),     # left it towards the return: clipped to 0.2, 0.8^2 / 2, flat
    (-0.5, 0.0, 1.0, 1.125, -1.5),   # left it away from the return: the plain loss, 1.5^2 / 2
    (-0.5, 0.0, -1.0, 0.320, 0.0),   # the same below
    (2.0, 0.0, 0.1, 1.805, 1.9),     # beyond the return: the plain loss, 1.9^2 / 2
    (1.1, 1.0, 0.0, 0.605, 1.1),     # within the range of an old value that is not 0: 1.1^2 / 2
])  # fmt: skip
def test_the_clipped_value_loss_is_the_larger_of_the_two_halves(value, old, target, loss, slope):
    v = tensor(value, dtype=torch.double, requires_grad=True)
    found = clipped_value_loss(v, tensor(old, dtype=torch.double), tensor(target, dtype=torch.double), cliprange=0.2)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-14)
    assert v.grad.item() == pytest.approx(slope, rel=1e-14)


def test_the_clip_is_around_the_old_value_and_not_around_zero():
    assert clipped_value_loss(tensor(5.5), tensor(5.0), tensor(6.0), cliprange=0.2).item() == pytest.approx(0.32, rel=1e-5)


@given(floats, floats, floats, st.floats(0.01, 5))
def test_clipping_never_makes_the_value_loss_smaller(value, old, target, cliprange):
    v, o, t = (tensor(x, dtype=torch.double) for x in (value, old, target))
    assert clipped_value_loss(v, o, t, cliprange=cliprange).item() >= value_loss(v, t).item()


EVERY = torch.ones(4, dtype=torch.bool)
RETURNS = tensor([1.0, 2.0, 3.0, 4.0])  # variance 1.25


@pytest.mark.parametrize("values, expected", [
    ([1.0, 2.0, 3.0, 4.0], 1.0),
    ([11.0, 12.0, 13.0, 14.0], 1.0),   # blind to an offset
    ([7.0, 7.0, 7.0, 7.0], 0.0),
    ([1.5, 2.0, 2.5, 3.0], 0.75),      # residuals -0.5, 0, 0.5, 1: variance 0.3125
    ([4.0, 3.0, 2.0, 1.0], -3.0),      # residuals -3, -1, 1, 3: variance 5
])  # fmt: skip
def test_explained_variance_by_hand(values, expected):
    assert explained_variance(tensor(values), RETURNS, EVERY).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.1, 3.0, -3.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_returns_that_do_not_vary_are_explained_fully_or_not_at_all(level, dtype):
    constant = torch.full((7,), level, dtype=dtype)
    every = torch.ones(7, dtype=torch.bool)
    varying = torch.arange(7, dtype=dtype)
    assert explained_variance(constant, constant, every).item() == 1.0
    assert explained_variance(constant + 0.5, constant, every).item() == 1.0
    assert explained_variance(varying, constant, every).item() == 0.0


def test_returns_that_vary_about_zero_are_not_taken_for_constant_ones():
    returns = tensor([-1.0, 1.0])
    assert explained_variance(returns / 2, returns, tensor([True, True])).item() == pytest.approx(0.75, abs=1e-12)


def test_the_explained_variance_of_no_steps_is_one():
    assert explained_variance(RETURNS, RETURNS, ~EVERY).item() == 1.0


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e6])
def test_a_masked_slot_does_not_reach_the_explained_variance(poison):
    values, returns = tensor([1.5, 2.0, 2.5, 3.0, poison]), tensor([1.0, 2.0, 3.0, 4.0, -poison])
    assert explained_variance(values, returns, tensor([True] * 4 + [False])).item() == pytest.approx(0.75, abs=1e-12)


def test_a_spread_as_small_as_the_numbers_allow_still_counts_as_variation():
    returns = tensor([1e4, 1e4 + 0.001])  # two neighbours in float32
    assert returns[0] != returns[1]
    assert explained_variance(torch.zeros(2), returns, tensor([True, True])).item() == 0.0
    assert explained_variance(returns - 9999, returns, tensor([True, True])).item() == 1.0
