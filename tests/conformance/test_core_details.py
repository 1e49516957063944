"""The details of PPO for language models that the equations alone settle, one test a number."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.distributions import Normal, kl_divergence

from surefoot.core import (
    clip_active,
    clipped_surrogate,
    clipped_value_loss,
    doubling_rule,
    explained_variance,
    exponential_rule,
    gae,
    importance_ratio,
    kl_categorical,
    kl_estimate,
    kl_gaussian,
    kl_penalized_surrogate,
    masked_mean,
    moments,
    policy_gradient,
    proportional_rule,
    ranking_loss,
    scale_only,
    standardize,
    td_errors,
    tethered_rewards,
    value_loss,
    zero_outside,
)


def test_item_20_the_score_lands_on_the_last_real_token():
    mask = tensor([[True, True, True, False]])  # t0, t1, eos, pad
    assert tethered_rewards(tensor([5.0]), torch.zeros(1, 4), mask, coef=1.0).tolist() == [[0.0, 0.0, 5.0, 0.0]]


@pytest.mark.parametrize("poison", [100.0, math.nan])
def test_item_21_masked_values_never_bootstrap(poison):
    # [t0, eos, pad]: the value behind eos and the padding's are nobody's
    end = tensor([[False, True, False]])
    values, next_values = tensor([[0.5, 0.25, poison]]), tensor([[0.25, poison, poison]])
    found = gae(tensor([[0.0, 1.0, poison]]), values, next_values, end, end, gamma=1.0, lam=0.5)
    assert found[0, :2].tolist() == [0.125, 0.75]  # 0.25 - 0.5 + 0.5 * 0.75, 1 - 0.25


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_item_22_poison_in_masked_slots_of_every_tensor_reaches_neither_the_losses_nor_their_gradients(poison):
    mask = tensor([[True, True, False], [True, False, False]])
    generator = torch.Generator().manual_seed(0)

    def losses(fill):
        def column():
            drawn = torch.randn(2, 3, generator=generator, dtype=torch.double)
            return torch.where(mask, drawn, torch.full_like(drawn, fill)).requires_grad_()

        generator.manual_seed(0)
        logp, logp_old, logp_sft, values, values_old, scores = (column() for _ in range(6))
        leaves = (logp, logp_old, logp_sft, values, values_old, scores)
        logp_c, old_c, sft_c, values_c, values_old_c = (zero_outside(x, mask) for x in leaves[:5])
        ends = tensor([[False, True, False], [True, False, False]])
        rewards = tethered_rewards(scores[:, 0], logp_old - logp_sft, mask, coef=0.1)
        raw = gae(rewards, values_old, values_old.roll(-1, 1), ends, ends, gamma=1.0, lam=0.9)
        advantages = standardize(raw, mask).detach()
        returns = zero_outside(raw + values_old, mask).detach()
        ratio = importance_ratio(logp_c, old_c)
        kl = kl_estimate(old_c, logp_c, "k3")
        total = (
            -masked_mean(clipped_surrogate(ratio, advantages, epsilon=0.2), mask)
            - masked_mean(kl_penalized_surrogate(ratio, advantages, kl, beta=0.5), mask)
            + masked_mean(clipped_value_loss(values_c, values_old_c, returns, cliprange=0.2), mask)
            + masked_mean(value_loss(values_c, returns), mask)
            + masked_mean(kl_estimate(logp_c, sft_c, "k2"), mask)
            + moments(scale_only(raw, mask), mask).mean
        )
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        return [total, explained_variance(values, returns, mask), *(g for g in gradients if g is not None)]

    for clean, poisoned in zip(losses(0.0), losses(poison), strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, poisoned)


def test_item_24_the_value_behind_eos_is_zero_and_a_cut_answer_follows_the_stated_rule():
    # two tokens, score 1 at the end, V = 0.5 before each, 0.8 behind the cut; gamma = lam = 1
    rewards, values, next_values = tensor([[0.0, 1.0]]), tensor([[0.5, 0.5]]), tensor([[0.5, 0.8]])
    last, never = tensor([[False, True]]), tensor([[False, False]])
    paid = gae(rewards, values, next_values, last, last, gamma=1.0, lam=1.0)
    bootstrapped = gae(rewards, values, next_values, never, last, gamma=1.0, lam=1.0)
    assert torch.allclose(paid, tensor([[0.5, 0.5]]))  # 1 - 0.5
    assert torch.allclose(bootstrapped, tensor([[1.3, 1.3]]))  # 1 + 0.8 - 0.5


numbers = st.floats(-5, 5)


@given(
    st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=6),
    st.floats(0, 1),
    st.sampled_from([0, 0.5, 0.95, 1]),
)
def test_item_25_gae_equals_its_definition(rows, gamma, lam):
    rewards, values, ends = (list(c) for c in zip(*rows, strict=True))
    next_values = [*values[1:], 0.7]
    deltas = [r + gamma * n * (not e) - v for r, v, n, e in zip(rewards, values, next_values, ends, strict=True)]
    expected = []
    for t in range(len(rows)):
        stop = next((u for u in range(t, len(rows)) if ends[u]), len(rows) - 1)
        expected.append(sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, stop + 1)))
    columns = [tensor([c], dtype=torch.double) for c in (rewards, values, next_values)]
    ended = tensor([ends])
    found = gae(*columns, ended, ended, gamma=gamma, lam=lam)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-10)
    if lam == 0:
        assert torch.equal(found, td_errors(*columns, ended, gamma=gamma))


def test_item_26_advantages_are_standardised_over_the_mask_of_all_ranks():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=generator) * 3 + 7
    mask = torch.rand(6, 5, generator=generator) < 0.6
    alone = standardize(x, mask)
    found = moments(alone, mask)
    assert found.mean.item() == pytest.approx(0, abs=1e-7)
    assert found.variance.item() == pytest.approx(1, abs=1e-6)
    ranks = [slice(0, 2), slice(2, 6)]
    everyone = moments(x[ranks[0]], mask[ranks[0]]) + moments(x[ranks[1]], mask[ranks[1]])
    merged = torch.cat([standardize(x[rank], mask[rank], everyone) for rank in ranks])
    assert torch.allclose(merged, alone, rtol=0, atol=1e-6)
    by_rank = torch.cat([standardize(x[rank], mask[rank]) for rank in ranks])
    assert (by_rank - alone).abs().max() > 0.01  # what ranks that do not speak with each other would get


def test_item_27_reward_scaling_keeps_the_mean():
    # mean 5, deviations -3, -1, 1, 3, standard deviation sqrt(5) = 2.236
    scaled = scale_only(tensor([2.0, 4.0, 6.0, 8.0]), torch.ones(4, dtype=torch.bool))
    assert scaled.tolist() == pytest.approx([5 - 3 / 5**0.5, 5 - 1 / 5**0.5, 5 + 1 / 5**0.5, 5 + 3 / 5**0.5], rel=1e-6)


def test_item_28_the_divergence_is_charged_once():
    kl = tensor([[0.1, 0.2, 0.4]], dtype=torch.double, requires_grad=True)
    every, end = torch.ones(1, 3, dtype=torch.bool), tensor([[False, False, True]])
    zeros = torch.zeros(1, 3, dtype=torch.double)
    rewards = tethered_rewards(torch.zeros(1, dtype=torch.double), kl, every, coef=1.0)
    returns = gae(rewards, zeros, zeros, end, end, gamma=1.0, lam=1.0)
    assert returns[0].tolist() == pytest.approx([-0.7, -0.6, -0.4], rel=1e-12)
    # the loss then knows the tether as a constant advantage: its gradient is that of the surrogate and nothing else
    logp = torch.zeros(1, 3, dtype=torch.double, requires_grad=True)
    surrogate = clipped_surrogate(importance_ratio(logp, zeros), returns.detach(), epsilon=0.2)
    surrogate.sum().backward()
    assert torch.equal(logp.grad, returns.detach())
    assert kl.grad is None


def test_item_29_the_tether_pulls_towards_the_reference():
    # two arms; the reference prefers arm 0, the reward arm 1. Exact gradient ascent on E[score - coef * log(pi / sft)]
    sft, scores = tensor([0.8, 0.2], dtype=torch.double), tensor([0.0, 1.0], dtype=torch.double)

    def end_of_ascent(coef):
        logits = torch.zeros(2, dtype=torch.double)
        for _ in range(400):
            logits.requires_grad_()
            logp = logits.log_softmax(-1)
            kl = kl_estimate(logp.detach(), sft.log(), "k1")
            rewards = tethered_rewards(scores, kl[:, None], torch.ones(2, 1, dtype=torch.bool), coef=coef)[:, 0]
            objective = (logp.detach().exp() * policy_gradient(logp, rewards)).sum()
            (gradient,) = torch.autograd.grad(objective, logits)
            logits = logits.detach() + 2 / max(coef, 1) * gradient
        return logits.softmax(-1)[1].item()

    assert end_of_ascent(0.0) > 0.99
    # the optimum is sft(a) exp(score(a) / coef), normalised: 0.2 e^0.01 / (0.8 + 0.2 e^0.01)
    assert end_of_ascent(100.0) == pytest.approx(0.2 * math.exp(0.01) / (0.8 + 0.2 * math.exp(0.01)), abs=1e-9)


P, Q = tensor([0.4, 0.35, 0.25], dtype=torch.double), tensor([0.2, 0.3, 0.5], dtype=torch.double)


def test_item_30_the_sampled_estimators_agree_with_the_exact_divergence_as_theory_says():
    samples = torch.multinomial(P, 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    exact = kl_categorical(P.log(), Q.log()).item()
    for kind in ("k1", "k3"):
        found = kl_estimate(P.log()[samples], Q.log()[samples], kind)
        assert abs(found.mean().item() - exact) < 3 * found.std().item() / 200  # the interval of the mean of 40,000
    k2, k3 = (kl_estimate(P.log()[samples], Q.log()[samples], kind) for kind in ("k2", "k3"))
    assert k2.min() >= 0 and k3.min() >= 0
    expected_k2 = (P * kl_estimate(P.log(), Q.log(), "k2")).sum().item()
    assert (exact, expected_k2) == pytest.approx((0.1579, 0.1603), abs=5e-5)  # biased


@pytest.mark.parametrize("moving, kind, is_unbiased", [
    ("p", "k1", False), ("p", "k2", True), ("p", "k3", False),  # the policy's own samples: a tether in the loss
    ("q", "k1", True), ("q", "k2", False), ("q", "k3", True),   # samples of the old policy: PPO-Penalty
])  # fmt: skip
def test_item_30_the_gradients_that_enumeration_finds_unbiased(moving, kind, is_unbiased):
    logits = {"p": P.log().requires_grad_(), "q": Q.log().requires_grad_()}
    logp_p, logp_q = (logits[name].log_softmax(-1) for name in ("p", "q"))
    (exact,) = torch.autograd.grad(kl_categorical(logits["p"], logits["q"]), logits[moving], retain_graph=True)
    (sampled,) = torch.autograd.grad((P * kl_estimate(logp_p, logp_q, kind)).sum(), logits[moving])
    gap = (sampled - exact).abs().max().item()
    assert gap < 1e-15 if is_unbiased else gap > 0.01


def test_item_31_a_known_trace_of_divergences_gives_a_known_trace_of_coefficients():
    trace = [12.0, 6.0, 3.0, 8.0]

    def run(rule):
        coef, out = 1.0, []
        for kl in trace:
            coef = rule(coef, kl)
            out.append(coef)
        return out

    # 0.1 * (6 + 0 - 3 + 2), cumulated
    exponential = run(lambda coef, kl: exponential_rule(coef, kl, target=6.0, rate=0.1))
    assert exponential == pytest.approx([math.exp(x) for x in (0.6, 0.6, 0.3, 0.5)], rel=1e-12)
    assert run(lambda coef, kl: doubling_rule(coef, kl, target=6.0)) == [2.0, 2.0, 1.0, 1.0]  # the band is 4 to 9
    # errors 0.2, 0, -0.2, 0.2 (of 1/3), times 10 / 100
    proportional = run(lambda coef, kl: proportional_rule(coef, kl, target=6.0, horizon=100, steps=10))
    assert proportional == pytest.approx([1.02, 1.02, 1.02 * 0.98, 1.02 * 0.98 * 1.02], rel=1e-12)


def test_item_31_rules_have_bounds_refuse_a_target_of_zero_and_do_not_overflow():
    rules = [
        lambda coef, kl, target: exponential_rule(coef, kl, target=target, rate=0.1),
        lambda coef, kl, target: doubling_rule(coef, kl, target=target),
        lambda coef, kl, target: proportional_rule(coef, kl, target=target, horizon=100, steps=10),
    ]
    for rule in rules:
        assert 1 < rule(1.0, 1e300, 1.0) <= 1e4
        assert rule(9999.0, 1e300, 1.0) == 1e4
        assert rule(1.0001e-6, 0.0, 100.0) == 1e-6
        for target in (0.0, -1.0):
            with pytest.raises(ValueError, match="must be a positive number"):
                rule(1.0, 1.0, target)


@pytest.mark.parametrize("advantage, ratio, value, slope", [
    (+1, 0.5, +0.5, +1), (+1, 1.5, +1.2, 0),    # good action: no pay beyond 1 + eps
    (-1, 0.5, -0.8, 0), (-1, 1.5, -1.5, -1),    # bad action: no pay below 1 - eps, full price above
])  # fmt: skip
def test_item_34_the_four_cells_of_sign_and_side(advantage, ratio, value, slope):
    r, a = tensor(ratio, requires_grad=True), tensor(float(advantage))
    surrogate = clipped_surrogate(r, a, epsilon=0.2)
    surrogate.backward()
    assert surrogate.item() == pytest.approx(value)
    assert r.grad.item() == slope
    assert clip_active(r, a, epsilon=0.2).item() == (slope == 0)


def test_item_37_the_value_clip_is_around_the_rollouts_value_takes_the_larger_loss_and_halves_it():
    # V_old 1, range 0.2, R 2. V = 1.5: clipped to 1.2, 0.8^2 / 2 = 0.32 > 0.5^2 / 2. V = 0.5: 1.5^2 / 2 = 1.125 > 1.2^2 / 2
    found = clipped_value_loss(tensor([1.5, 0.5]), tensor([1.0, 1.0]), tensor([2.0, 2.0]), cliprange=0.2)
    assert found.tolist() == pytest.approx([0.32, 1.125], rel=1e-6)


def test_item_48_a_difference_of_a_thousand_does_not_overflow():
    lead = tensor([1000.0, -1000.0], requires_grad=True)
    loss = ranking_loss(lead, torch.zeros(2), margin=0.0, target=tensor([1.0, 1.0]))
    assert loss.tolist() == [0.0, 1000.0]
    assert ranking_loss(lead, torch.zeros(2)).tolist() == [0.0, 1000.0]
    loss.sum().backward()
    assert lead.grad.tolist() == [0.0, -1.0]


def test_item_50_swapping_the_pair_flips_the_sign_and_an_identical_pair_costs_ln_2_without_gradient():
    a, b = tensor(1.3, dtype=torch.double), tensor(-0.4, dtype=torch.double)
    # -log sigmoid(d) + log sigmoid(-d) = -d
    assert (ranking_loss(a, b) - ranking_loss(b, a)).item() == pytest.approx(-1.7, rel=1e-12)
    # one answer scored once: both sides of the pair move together, so the weights behind the score get no gradient
    score = tensor(0.7, dtype=torch.double, requires_grad=True)
    loss = ranking_loss(score * 3, score * 3)
    loss.backward()
    assert loss.item() == pytest.approx(0.6931, abs=5e-5)
    assert score.grad.item() == 0.0


@pytest.mark.parametrize("target", [None, 0.0, 0.3, 1.0])
def test_item_51_the_margin_enters_every_variant(target):
    w, lose = tensor(1.0, dtype=torch.double), tensor(0.5, dtype=torch.double)
    plain, demanding = ranking_loss(w, lose, target=target), ranking_loss(w, lose, margin=2.0, target=target)
    assert demanding.item() > plain.item() + 0.5
    if target in (None, 1.0):
        assert demanding.item() == pytest.approx(math.log1p(math.exp(1.5)), rel=1e-12)  # -log sigmoid(0.5 - 2)


def test_item_63_the_exact_gaussian_divergence_equals_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean_p, log_std_p, mean_q, log_std_q = torch.randn(4, 5, 3, generator=generator, dtype=torch.double)
    expected = kl_divergence(Normal(mean_p, log_std_p.exp()), Normal(mean_q, log_std_q.exp())).sum(-1)
    assert torch.allclose(kl_gaussian(mean_p, log_std_p, mean_q, log_std_q), expected, rtol=1e-12, atol=1e-12)
