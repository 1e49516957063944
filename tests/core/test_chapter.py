"""The five places where chapter 8.3 must be corrected, each with the number its docstring gives."""

import math
from itertools import product

import pytest
import torch
from torch import tensor

from surefoot.core import (
    clip_active,
    clipped_surrogate,
    doubling_rule,
    exponential_rule,
    importance_ratio,
    kl_categorical,
    kl_gaussian,
    policy_gradient,
    proportional_rule,
    value_loss,
)

# 1. Section 8.3.3: the cells of the clipped surrogate


def test_for_a_bad_action_below_the_clip_the_second_term_is_the_smaller_not_the_first():
    ratio, advantage, epsilon = 0.5, -1.0, 0.2
    first, second = ratio * advantage, max(ratio, 1 - epsilon) * advantage
    assert (first, second) == (-0.5, -0.8)
    assert second < first  # the chapter has it the other way round
    assert clipped_surrogate(tensor(ratio), tensor(advantage), epsilon=epsilon).item() == pytest.approx(second)
    further = clipped_surrogate(tensor(0.1), tensor(advantage), epsilon=epsilon)
    assert further.item() == pytest.approx(second)  # flat, as the chapter concludes


def test_for_a_bad_action_above_the_clip_there_is_no_clip_and_no_lower_bound():
    for ratio in (1.5, 10.0, 1000.0):
        assert clipped_surrogate(tensor(ratio), tensor(-1.0), epsilon=0.2).item() == -ratio
        assert not clip_active(tensor(ratio), tensor(-1.0), epsilon=0.2)


@pytest.mark.parametrize("advantage, ratio, first, second", [(1.0, 0.5, 0.5, 0.8), (-1.0, 1.5, -1.5, -1.2)])
def test_both_parts_are_not_equal_on_the_far_side_of_the_unclipped_cells(advantage, ratio, first, second):
    clipped = min(max(ratio, 0.8), 1.2) * advantage
    assert (ratio * advantage, clipped) == (first, second)
    assert clipped_surrogate(tensor(ratio), tensor(advantage), epsilon=0.2).item() == first < second


def test_the_clip_does_not_bound_the_ratio_one_large_step_leads_to_1_987():
    logit = tensor(0.0, dtype=torch.double, requires_grad=True)
    logp_old = tensor(0.5, dtype=torch.double).log()
    ratio = importance_ratio(torch.nn.functional.logsigmoid(logit), logp_old)
    clipped_surrogate(ratio, tensor(1.0, dtype=torch.double), epsilon=0.2).backward()
    after = torch.sigmoid(logit.detach() + 10 * logit.grad) / 0.5
    assert after.item() == pytest.approx(1.987, abs=5e-4)


# 2. Section 8.3.5: the direction of the tether


def test_the_two_directions_of_the_tether_differ():
    p, q = tensor([0.5, 0.5], dtype=torch.double).log(), tensor([0.9, 0.1], dtype=torch.double).log()
    assert kl_categorical(p, q).item() == pytest.approx(0.5108, abs=5e-5)
    assert kl_categorical(q, p).item() == pytest.approx(0.3681, abs=5e-5)


# 3. Section 8.3.5: the sign of the value loss


@pytest.mark.parametrize("sign, value, loss", [(+1, -0.1, 0.605), (-1, +0.1, 0.405)])
def test_the_value_loss_must_be_subtracted_from_what_is_maximised(sign, value, loss):
    v, target = tensor(0.0, dtype=torch.double, requires_grad=True), tensor(1.0, dtype=torch.double)
    assert value_loss(v, target).item() == 0.5
    (sign * value_loss(v, target)).backward()
    after = v.detach() + 0.1 * v.grad  # a step up the objective
    assert after.item() == pytest.approx(value)
    assert value_loss(after, target).item() == pytest.approx(loss)


# 4. Section 8.3.4: the unit of the rate, and the exactness of the Gaussian divergence


def test_the_exponential_rule_answers_differently_to_the_same_gap_in_another_unit_and_the_others_alike():
    by_token = exponential_rule(1.0, 0.02, target=0.01, rate=0.1)
    by_sequence = exponential_rule(1.0, 53 * 0.02, target=53 * 0.01, rate=0.1)
    assert by_token == pytest.approx(1.001, abs=5e-5)
    assert by_sequence == pytest.approx(1.054, abs=5e-4)
    assert doubling_rule(1.0, 0.02, target=0.01) == doubling_rule(1.0, 1.06, target=0.53) == 2.0
    proportional = [proportional_rule(1.0, 2 * t, target=t, horizon=100, steps=10) for t in (0.01, 0.53)]
    assert proportional == pytest.approx([1.02, 1.02], rel=1e-12)


def test_the_gaussian_divergence_is_exact_as_a_sum_over_a_fine_grid_shows():
    x = torch.linspace(-12, 12, 240_001, dtype=torch.double)
    log_p, log_q = -(x**2) / 2, -((x - 1) ** 2) / 8 - math.log(2)  # both less log(2 pi) / 2
    by_grid = (log_p.exp() * (log_p - log_q)).sum() * 1e-4 / math.sqrt(2 * math.pi)
    zero, one = tensor([0.0], dtype=torch.double), tensor([1.0], dtype=torch.double)
    closed = kl_gaussian(zero, zero, one, one * math.log(2))
    assert closed.item() == pytest.approx(0.443147, abs=5e-7)
    assert closed.item() == pytest.approx(by_grid.item(), abs=1e-12)


# 5. Sections 8.3.1 and 8.3.2: no guarantee, and gradients that agree at theta_old alone. State 1: go on (else 0); state 2: take
# the action that pays 2 (else 0). A policy is the pair of the two probabilities.

OLD, NEW = (0.5, 0.5), (0.60, 0.41)


def true_return(policy):
    return policy[0] * policy[1] * 2


def advantages_of_old():
    """A(s, a) under OLD: in state 1 (go on, stop), in state 2 (pays, pays not)."""
    value_2 = OLD[1] * 2
    value_1 = OLD[0] * value_2
    return (value_2 - value_1, 0 - value_1), (2 - value_2, 0 - value_2)


def surrogate_gain(new):
    """E under the states and actions of OLD of the clipped surrogate, less its value at OLD (0: advantages average to 0)."""
    total = 0.0
    for visits, p_old, p_new, advantages in zip((1.0, OLD[0]), OLD, new, advantages_of_old(), strict=True):
        for old, now, advantage in ((p_old, p_new, advantages[0]), (1 - p_old, 1 - p_new, advantages[1])):
            ratio = tensor(now / old, dtype=torch.double)
            assert 0.8 - 1e-9 <= ratio.item() <= 1.2 + 1e-9
            total += visits * old * clipped_surrogate(ratio, tensor(advantage, dtype=torch.double), epsilon=0.2 + 1e-9).item()
    return total


def test_the_surrogate_rises_within_the_clip_while_the_return_falls():
    assert surrogate_gain(OLD) == pytest.approx(0, abs=1e-15)
    assert surrogate_gain(NEW) == pytest.approx(0.010, abs=1e-12)
    assert true_return(OLD) == pytest.approx(0.500)
    assert true_return(NEW) == pytest.approx(0.492)


def gradient_sums(new):
    """d/d(logit of state 2) of sum_t log pi A_t: expected under new, under OLD times r_t, under OLD times the product."""
    logit = tensor(math.log(new[1] / (1 - new[1])), dtype=torch.double, requires_grad=True)
    under_new = by_step = by_product = torch.zeros((), dtype=torch.double)
    for goes_on, pays in product((0, 1), repeat=2):
        if not goes_on:
            continue  # state 2 is not visited: its logit has no part in the trajectory
        p_1, old_1 = new[0], OLD[0]
        logp = torch.nn.functional.logsigmoid(logit if pays else -logit)
        p_2, old_2 = logp.exp().detach(), OLD[1] if pays else 1 - OLD[1]
        term = policy_gradient(logp, tensor(advantages_of_old()[1][0 if pays else 1], dtype=torch.double))
        under_new = under_new + p_1 * p_2 * term
        by_step = by_step + old_1 * old_2 * (p_2 / old_2) * term
        by_product = by_product + old_1 * old_2 * (p_1 / old_1) * (p_2 / old_2) * term
    return [torch.autograd.grad(s, logit, retain_graph=True)[0].item() for s in (under_new, by_step, by_product)]


def test_the_gradients_of_8_3_2_agree_with_the_product_of_ratios_and_not_with_the_ratio_of_the_step():
    assert gradient_sums(NEW) == pytest.approx([0.29028, 0.24190, 0.29028], abs=1e-12)


def test_the_gradients_of_8_3_2_agree_at_the_old_policy():
    under_new, by_step, by_product = gradient_sums(OLD)
    assert under_new == pytest.approx(by_step, abs=1e-15) == pytest.approx(by_product, abs=1e-15)


@pytest.mark.parametrize("shift, agrees", [(0.0, True), (0.5, False)])
def test_the_policy_gradient_is_that_of_the_ratio_surrogate_only_at_the_old_policy(shift, agrees):
    old = tensor([0.2, -0.3, 0.4], dtype=torch.double).log_softmax(-1)
    logits = (old + shift * tensor([1.0, -1.0, 0.0], dtype=torch.double)).requires_grad_()
    advantages = tensor([1.0, 2.0, -1.5], dtype=torch.double)
    logp = logits.log_softmax(-1)
    plain = torch.autograd.grad((old.exp() * policy_gradient(logp, advantages)).sum(), logits, retain_graph=True)[0]
    by_ratio = torch.autograd.grad((old.exp() * importance_ratio(logp, old) * advantages).sum(), logits)[0]
    gap = (plain - by_ratio).abs().max().item()
    assert gap < 1e-15 if agrees else gap > 0.1
