"""Divergences: exact ones against torch.distributions and integrals, estimators by enumeration."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import tensor
from torch.distributions import Categorical, Normal, kl_divergence

from surefoot.core import kl_categorical, kl_estimate, kl_gaussian

INF = math.inf
logit_lists = st.lists(st.floats(-20, 20), min_size=4, max_size=4)


@given(logit_lists, logit_lists)
def test_categorical_kl_equals_that_of_torch_and_is_not_negative(p, q):
    p, q = tensor(p, dtype=torch.double), tensor(q, dtype=torch.double)
    kl = kl_categorical(p, q).item()
    assert kl == pytest.approx(kl_divergence(Categorical(logits=p), Categorical(logits=q)).item(), abs=1e-12)
    assert kl >= -1e-14
    assert kl_categorical(p, p + 7).item() == pytest.approx(0, abs=1e-13)  # logits need no normalising


def test_categorical_kl_by_hand_and_over_the_last_axis_alone():
    p, q = tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.double), tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.double)
    by_hand = [0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)]
    assert kl_categorical(p.log(), q.log()).tolist() == pytest.approx(by_hand, rel=1e-12)
    stacked = kl_categorical(p.log().expand(3, 5, 2, 2), q.log().expand(3, 5, 2, 2))
    assert stacked.shape == (3, 5, 2)


def test_an_action_that_p_never_takes_adds_nothing_and_leaves_finite_gradients():
    # p = (1/2, 1/2, 0), q = (1/2, 1/4, 1/4): 1/2 log 1 + 1/2 log 2
    p = tensor([0.0, 0.0, -INF], dtype=torch.double, requires_grad=True)
    q = tensor([0.5, 0.25, 0.25], dtype=torch.double).log().requires_grad_()
    kl = kl_categorical(p, q)
    kl.backward()
    assert kl.item() == pytest.approx(math.log(2) / 2, rel=1e-12)
    # d/dp_a = p_a (log(p_a / q_a) - KL); d/dq_a = q_a - p_a
    assert p.grad.tolist() == pytest.approx([-math.log(2) / 4, math.log(2) / 4, 0], abs=1e-12)
    assert q.grad.tolist() == pytest.approx([0, -0.25, 0.25], abs=1e-12)


def test_an_action_that_neither_takes_adds_nothing_and_leaves_finite_gradients():
    p = tensor([0.0, 1.0, -INF], requires_grad=True)
    q = tensor([1.0, 0.0, -INF], requires_grad=True)
    kl = kl_categorical(p, q)
    kl.backward()
    # log-odds 1 and -1: (sigmoid(1) - sigmoid(-1)) * 1
    assert kl.item() == pytest.approx(1 / (1 + math.exp(-1)) - 1 / (1 + math.exp(1)), rel=1e-6)
    assert p.grad.isfinite().all() and q.grad.isfinite().all()
    assert p.grad[2].item() == q.grad[2].item() == 0.0


def test_an_action_that_p_takes_and_q_never_costs_infinity():
    assert kl_categorical(tensor([0.0, 0.0]), tensor([0.0, -INF])).item() == INF


def test_a_probability_that_underflows_counts_as_zero_and_not_as_nan():
    assert kl_categorical(tensor([0.0, -1000.0]), tensor([0.0, -INF])).item() == 0.0


def test_logits_that_are_not_numbers_stay_visible():
    assert math.isnan(kl_categorical(tensor([0.0, math.nan]), tensor([0.0, 0.0])).item())
    assert math.isnan(kl_categorical(tensor([0.0, 0.0]), tensor([0.0, math.nan])).item())


@pytest.mark.parametrize(
    "dtype_p, dtype_q", [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float16)]
)
def test_half_precision_logits_are_normalised_in_float32(dtype_p, dtype_q):
    p, q = tensor([1.0, 2.0, -3.0]).to(dtype_p), tensor([0.5, 2.5, 0.0]).to(dtype_q)  # exact in every dtype
    kl = kl_categorical(p, q)
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(kl_categorical(p.double(), q.double()).item(), rel=1e-5)


def test_categorical_kl_has_the_gradient_that_finite_differences_find():
    p = tensor([[0.1, -1.0, 2.0], [0.0, 0.3, 0.2]], dtype=torch.double, requires_grad=True)
    q = tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 0.9]], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(kl_categorical, (p, q))


gaussians = st.tuples(st.floats(-3, 3), st.floats(-2, 2), st.floats(-3, 3), st.floats(-2, 2))


@given(st.lists(gaussians, min_size=1, max_size=3))
def test_gaussian_kl_equals_that_of_torch_summed_over_the_dimensions(dimensions):
    mean_p, log_std_p, mean_q, log_std_q = tensor(dimensions, dtype=torch.double).T
    expected = kl_divergence(Normal(mean_p, log_std_p.exp()), Normal(mean_q, log_std_q.exp())).sum().item()
    assert kl_gaussian(mean_p, log_std_p, mean_q, log_std_q).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gaussian_kl_is_exact_it_equals_the_integral():
    mean_p, std_p, mean_q, std_q = tensor([0.3, 0.7, -0.5, 1.9], dtype=torch.double)
    p, q = Normal(mean_p, std_p), Normal(mean_q, std_q)

    def density(x):
        x = tensor(x, dtype=torch.double)
        return (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).item()

    integral, _ = integrate.quad(density, -8, 8, epsabs=1e-12)
    args = [tensor([v], dtype=torch.double) for v in (0.3, math.log(0.7), -0.5, math.log(1.9))]
    assert kl_gaussian(*args).item() == pytest.approx(integral, rel=1e-11)


def test_the_rows_of_a_gaussian_may_share_their_deviations():
    mean_p, mean_q = tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.double), tensor([[0.5, 0.5], [2.0, 1.0]], dtype=torch.double)
    shared_p, shared_q = tensor([0.1, -0.3], dtype=torch.double), tensor([0.0, 0.2], dtype=torch.double)
    shared = kl_gaussian(mean_p, shared_p, mean_q, shared_q)
    assert shared.shape == (2,)
    assert torch.equal(shared, kl_gaussian(mean_p, shared_p.expand(2, 2), mean_q, shared_q.expand(2, 2)))


def test_gaussian_kl_has_the_gradient_that_finite_differences_find():
    args = tuple(
        torch.randn(2, 3, dtype=torch.double, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(4)
    )
    assert torch.autograd.gradcheck(kl_gaussian, args)


@pytest.mark.parametrize("kind, expected", [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 - 1 + math.log(2))])
def test_estimators_by_hand_for_a_sample_twice_as_likely_under_p(kind, expected):
    assert kl_estimate(
        tensor(0.5, dtype=torch.double).log(), tensor(0.25, dtype=torch.double).log(), kind
    ).item() == pytest.approx(expected, rel=1e-12)


def test_an_unknown_estimator_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError) as caught:
        kl_estimate(tensor(0.0), tensor(0.0), "k4")
    assert str(caught.value) == "There is no KL estimator 'k4'. Use 'k1', 'k2' or 'k3'."


small_logits = st.lists(st.floats(-3, 3), min_size=3, max_size=3)


@given(small_logits, small_logits)
def test_k1_and_k3_have_the_exact_divergence_as_their_expectation(p, q):
    p, q = (tensor(v, dtype=torch.double).log_softmax(-1) for v in (p, q))
    exact = kl_categorical(p, q).item()
    for kind in ("k1", "k3"):
        assert (p.exp() * kl_estimate(p, q, kind)).sum().item() == pytest.approx(exact, abs=1e-12)


def test_k2_is_biased():
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = (log 2 + log(2/3)) / 2 = 0.1438; k2 has (log(2)^2 + log(2/3)^2) / 4 = 0.1612
    p, q = tensor([0.5, 0.5], dtype=torch.double).log(), tensor([0.25, 0.75], dtype=torch.double).log()
    assert kl_categorical(p, q).item() == pytest.approx(0.1438, abs=5e-5)
    assert (p.exp() * kl_estimate(p, q, "k2")).sum().item() == pytest.approx(0.1612, abs=5e-5)


def test_k2_is_close_to_second_order_its_bias_falls_with_the_cube_of_the_step():
    p, direction = tensor([0.2, 0.5, 0.3], dtype=torch.double).log(), tensor([1.0, -1.0, 0.5], dtype=torch.double)
    bias = []
    for step in (1e-2, 1e-3):
        q = (p + step * direction).log_softmax(-1)
        bias.append(abs((p.exp() * kl_estimate(p, q, "k2")).sum().item() - kl_categorical(p, q).item()))
    assert bias[0] / bias[1] == pytest.approx(1000, rel=0.1)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k2_and_k3_are_never_negative_and_k1_is_where_q_is_larger(a, b):
    a, b = tensor(a, dtype=torch.double), tensor(b, dtype=torch.double)
    assert kl_estimate(a, b, "k2").item() >= 0
    assert kl_estimate(a, b, "k3").item() >= 0
    assert (kl_estimate(a, b, "k1").item() < 0) == (b > a).item()


def test_k3_keeps_its_digits_for_small_differences_in_float32():
    # d = 2^-13: k3 = d^2 / 2 - d^3 / 6 + ... ; exp(-d) - 1 + d in float32 without expm1 has no digit left
    d = tensor(2.0**-13)
    assert kl_estimate(d, tensor(0.0), "k3").item() == pytest.approx(2.0**-27, rel=0.01)


P_LOGITS, Q_LOGITS = tensor([0.2, -0.4, 0.9], dtype=torch.double), tensor([-0.3, 0.5, 0.1], dtype=torch.double)


def expected_gradient(kind, wrt):
    """The gradient of the estimate, averaged over samples of p that do not move with p: what a sampled loss does on average."""
    p, q = P_LOGITS.clone().requires_grad_(), Q_LOGITS.clone().requires_grad_()
    estimate = kl_estimate(p.log_softmax(-1), q.log_softmax(-1), kind)
    return torch.autograd.grad((P_LOGITS.softmax(-1) * estimate).sum(), p if wrt == "p" else q)[0]


def exact_gradient(direction, wrt):
    p, q = P_LOGITS.clone().requires_grad_(), Q_LOGITS.clone().requires_grad_()
    kl = kl_categorical(p, q) if direction == "p||q" else kl_categorical(q, p)
    return torch.autograd.grad(kl, p if wrt == "p" else q)[0]


@pytest.mark.parametrize("kind, direction", [("k2", "p||q"), ("k3", "q||p")])
def test_as_a_loss_on_its_own_samples_k2_has_the_gradient_of_the_divergence_and_k3_of_the_other_direction(kind, direction):
    assert torch.allclose(expected_gradient(kind, "p"), exact_gradient(direction, "p"), atol=1e-15)
    other = {"p||q": "q||p", "q||p": "p||q"}[direction]
    assert (expected_gradient(kind, "p") - exact_gradient(other, "p")).abs().max() > 0.05


def test_as_a_loss_on_its_own_samples_k1_has_no_expected_gradient():
    assert expected_gradient("k1", "p").abs().max() < 1e-15
    assert exact_gradient("p||q", "p").abs().max() > 0.1


@pytest.mark.parametrize("kind, is_unbiased", [("k1", True), ("k2", False), ("k3", True)])
def test_where_q_moves_and_the_samples_stay_k1_and_k3_have_the_gradient_of_the_divergence(kind, is_unbiased):
    gap = (expected_gradient(kind, "q") - exact_gradient("p||q", "q")).abs().max()
    assert gap < 1e-15 if is_unbiased else gap > 0.03
