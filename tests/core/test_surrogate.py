"""The policy's objectives, by hand and by enumeration of tiny action sets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from surefoot.core import (
    clip_active,
    clipped_surrogate,
    importance_ratio,
    kl_categorical,
    kl_penalized_surrogate,
    policy_gradient,
)


def test_the_policy_gradient_of_enumerated_actions_is_the_gradient_of_the_expected_reward():
    logits = tensor([0.3, -1.0, 0.5], dtype=torch.double, requires_grad=True)
    rewards = tensor([1.0, -2.0, 4.0], dtype=torch.double)
    (exact,) = torch.autograd.grad((logits.softmax(-1) * rewards).sum(), logits)
    p = logits.softmax(-1).detach()  # samples are weighed by the probability they are drawn with
    surrogate = (p * policy_gradient(logits.log_softmax(-1), rewards)).sum()
    assert torch.allclose(torch.autograd.grad(surrogate, logits)[0], exact, atol=1e-15)


def test_the_policy_gradient_is_unreduced_and_has_the_sign_of_the_advantage():
    assert policy_gradient(tensor([-1.0, -2.0]), tensor([3.0, -5.0])).tolist() == [-3.0, 10.0]


def test_the_ratio_is_the_quotient_of_the_two_probabilities():
    ratio = importance_ratio(tensor([0.6, 0.1], dtype=torch.double).log(), tensor([0.5, 0.4], dtype=torch.double).log())
    assert ratio.tolist() == pytest.approx([1.2, 0.25], rel=1e-14)


logit_lists = st.lists(st.floats(-5, 5), min_size=3, max_size=3)


@given(logit_lists, logit_lists)
def test_the_expected_ratio_under_the_old_policy_is_one(new, old):
    logp, logp_old = (tensor(v, dtype=torch.double).log_softmax(-1) for v in (new, old))
    assert (logp_old.exp() * importance_ratio(logp, logp_old)).sum().item() == pytest.approx(1, abs=1e-12)


@given(logit_lists, logit_lists, logit_lists)
def test_importance_sampling_gives_the_expectation_under_the_new_policy(new, old, rewards):
    logp, logp_old = (tensor(v, dtype=torch.double).log_softmax(-1) for v in (new, old))
    reward = tensor(rewards, dtype=torch.double)
    by_old = (logp_old.exp() * importance_ratio(logp, logp_old) * reward).sum().item()
    assert by_old == pytest.approx((logp.exp() * reward).sum().item(), abs=1e-12)


@pytest.mark.parametrize("advantage, ratio, value, slope", [
    (+1, 0.5, +0.5, +1), (+1, 1.0, +1.0, +1), (+1, 1.5, +1.2, 0),    # good action: no pay beyond 1 + eps
    (-1, 0.5, -0.8, 0), (-1, 1.0, -1.0, -1), (-1, 1.5, -1.5, -1),    # bad action: no pay below 1 - eps, full price above
    (0, 0.5, 0, 0), (0, 1.5, 0, 0),
])  # fmt: skip
def test_clipped_surrogate_in_every_cell_of_sign_and_ratio(advantage, ratio, value, slope):
    r = tensor(float(ratio), dtype=torch.double, requires_grad=True)
    surrogate = clipped_surrogate(r, tensor(float(advantage), dtype=torch.double), epsilon=0.2)
    surrogate.backward()
    assert surrogate.item() == pytest.approx(value, abs=1e-15)
    assert r.grad.item() == slope


@pytest.mark.parametrize(
    "advantage, ratio, value", [(1, 2.0, 1.5), (1, 1.4, 1.4), (-1, 0.5, -0.75), (-1, 0.8, -0.8), (-1, 2, -2)]
)
def test_epsilon_high_moves_the_upper_edge_alone(advantage, ratio, value):
    r, a = tensor(float(ratio)), tensor(float(advantage))
    assert clipped_surrogate(r, a, epsilon=0.25, epsilon_high=0.5).item() == pytest.approx(value)
    assert clip_active(r, a, epsilon=0.25, epsilon_high=0.5).item() == (ratio != abs(value))


def test_an_upper_edge_of_zero_is_not_taken_for_no_upper_edge():
    assert clipped_surrogate(tensor(1.1), tensor(1.0), epsilon=0.2, epsilon_high=0.0).item() == 1.0
    assert clip_active(tensor(1.1), tensor(1.0), epsilon=0.2, epsilon_high=0.0).item()


@given(
    st.sampled_from([0.0, 0.5, 0.74, 0.75, 0.76, 1.0, 1.24, 1.25, 1.26, 3.0]),
    st.sampled_from([-2.0, -0.5, 0.5, 2.0]),
    st.sampled_from([None, 0.125, 0.5]),
)
def test_the_clip_is_active_exactly_where_the_gradient_is_cut_edges_included(ratio, advantage, high):
    r = tensor(ratio, dtype=torch.double, requires_grad=True)
    a = tensor(advantage, dtype=torch.double)
    clipped_surrogate(r, a, epsilon=0.25, epsilon_high=high).backward()
    is_cut = clip_active(r.detach(), a, epsilon=0.25, epsilon_high=high)
    assert is_cut.dtype == torch.bool
    assert is_cut.item() == (r.grad.item() == 0.0)
    assert r.grad.item() in (0.0, advantage)


def test_without_an_advantage_there_is_no_gradient_for_the_clip_to_cut():
    assert not clip_active(tensor([0.1, 3.0]), tensor([0.0, 0.0]), epsilon=0.2).any()


@given(st.floats(0, 10), st.floats(-10, 10), st.floats(0.01, 0.9))
def test_the_clipped_surrogate_never_exceeds_the_unclipped_one(ratio, advantage, epsilon):
    r, a = tensor(ratio, dtype=torch.double), tensor(advantage, dtype=torch.double)
    assert clipped_surrogate(r, a, epsilon=epsilon).item() <= (r * a).item()
    if abs(ratio - 1) < epsilon:
        assert clipped_surrogate(r, a, epsilon=epsilon).item() == (r * a).item()


def test_the_penalized_surrogate_subtracts_beta_nats():
    out = kl_penalized_surrogate(tensor([1.5, 0.5]), tensor([2.0, -2.0]), tensor([0.25, 0.5]), beta=4.0)
    assert out.tolist() == [2.0, -3.0]  # 3 - 1, -1 - 2


def test_the_penalized_surrogate_has_its_maximum_where_theory_puts_it():
    # max_p sum p A - beta KL(old || p) over the simplex: p_a = beta old_a / (lambda - A_a). Old (1/2, 1/2), A = (1, -1),
    # beta = 1: lambda^2 - lambda - 1 = 0, so p = (1/2) / (lambda - 1) = 0.80902, half the golden ratio
    old, advantages = tensor([0.5, 0.5], dtype=torch.double), tensor([1.0, -1.0], dtype=torch.double)

    def objective(x):
        logits = torch.stack([x, torch.zeros_like(x)])
        ratio = importance_ratio(logits.log_softmax(-1), old.log())
        kl = kl_categorical(old.log(), logits).expand(2)
        return (old * kl_penalized_surrogate(ratio, advantages, kl, beta=1.0)).sum()

    golden = (1 + math.sqrt(5)) / 4
    x = tensor(math.log(golden / (1 - golden)), dtype=torch.double, requires_grad=True)
    objective(x).backward()
    assert x.grad.item() == pytest.approx(0, abs=1e-15)
    assert objective(x).item() > max(objective(x.detach() + 0.01).item(), objective(x.detach() - 0.01).item())


def test_the_objectives_have_the_gradients_that_finite_differences_find():
    a = tensor([1.3, -0.7, 0.4], dtype=torch.double)
    old = tensor([-1.0, -0.5, -2.0], dtype=torch.double)
    new = tensor([-1.1, -0.9, -1.0], dtype=torch.double, requires_grad=True)
    kl = tensor([0.1, 0.2, 0.3], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: policy_gradient(x, a), new)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(importance_ratio(x, old), a, epsilon=0.2), new)
    assert torch.autograd.gradcheck(lambda x, k: kl_penalized_surrogate(importance_ratio(x, old), a, k, beta=0.3), (new, kl))


def test_a_ratio_in_float32_overflows_beyond_88_nats_and_not_before():
    assert importance_ratio(tensor([88.0, 89.0]), tensor([0.0, 0.0])).isfinite().tolist() == [True, False]
