"""Ranking loss, the tethered reward, and the laws of over-optimisation."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from surefoot.core import (
    best_of_n_kl,
    gold_reward_best_of_n,
    gold_reward_rl,
    pair_accuracy,
    ranking_loss,
    tethered_rewards,
)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


numbers = st.floats(-50, 50)


@given(numbers, numbers, st.floats(0, 10), st.floats(0, 1))
def test_the_ranking_loss_equals_its_formula(chosen, rejected, margin, target):
    w, lose, m, t = (tensor(x, dtype=torch.double) for x in (chosen, rejected, margin, target))
    lead = chosen - rejected
    assert ranking_loss(w, lose).item() == pytest.approx(-log_sigmoid(lead), abs=1e-12)
    assert ranking_loss(w, lose, m).item() == pytest.approx(-log_sigmoid(lead - margin), abs=1e-12)
    both = -target * log_sigmoid(lead - margin) - (1 - target) * log_sigmoid(-lead - margin)
    assert ranking_loss(w, lose, m, t).item() == pytest.approx(both, abs=1e-11)
    assert ranking_loss(w, lose, margin, target).item() == pytest.approx(both, abs=1e-11)


def test_the_ranking_loss_is_one_number_a_pair():
    found = ranking_loss(tensor([1.0, 2.0]), tensor([0.0, 2.0]), margin=tensor([1.0, 0.0]))
    assert found.tolist() == pytest.approx([math.log(2), math.log(2)])


def test_without_a_target_the_chosen_answer_has_every_vote():
    w, lose = tensor([0.3, -4.0]), tensor([1.0, 2.0])
    assert torch.equal(ranking_loss(w, lose, 0.5), ranking_loss(w, lose, 0.5, 1.0))
    assert torch.equal(ranking_loss(w, lose, 0.5, 0.0), ranking_loss(lose, w, 0.5))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_with_a_share_of_votes_the_loss_is_least_where_the_sigmoid_is_that_share(share):
    lead = tensor(math.log(share / (1 - share)), dtype=torch.double, requires_grad=True)
    ranking_loss(lead, torch.zeros_like(lead), target=share).backward()
    assert lead.grad.item() == pytest.approx(0, abs=1e-15)


def test_the_ranking_loss_has_the_gradient_that_finite_differences_find():
    w, lose = (
        tensor([0.5, -2.0], dtype=torch.double, requires_grad=True),
        tensor([1.0, 1.0], dtype=torch.double, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda a, b: ranking_loss(a, b, 0.3, 0.7), (w, lose))
    assert torch.autograd.gradcheck(lambda a, b: ranking_loss(a, b), (w, lose))


def test_accuracy_counts_a_tie_as_one_half_and_a_nan_as_wrong():
    found = pair_accuracy(tensor([2.0, 1.0, 1.0, math.nan]), tensor([1.0, 2.0, 1.0, 0.0]))
    assert found.tolist() == [1.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_accuracy_keeps_the_dtype_of_the_scores(dtype):
    assert pair_accuracy(torch.ones(2, dtype=dtype), torch.zeros(2, dtype=dtype)).dtype == dtype


def test_the_score_is_paid_on_the_last_valid_token_and_the_tether_on_every_one():
    mask = tensor([[1, 1, 1, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    kl = tensor([[0.1, 0.2, 0.3, 9.0], [9.0, 0.2, 9.0, 0.4], [0.5, 9, 9, 9], [9, 9, 9, 9]])
    found = tethered_rewards(tensor([10.0, 20.0, 30.0, 40.0]), kl, mask, coef=2.0)
    expected = [[-0.2, -0.4, 9.4, 0], [0, -0.4, 0, 19.2], [29, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.allclose(found, tensor(expected), atol=1e-6)
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_masked_divergence_and_the_score_of_an_empty_row_reach_nothing(poison):
    kl = tensor([[0.5, poison], [poison, poison]], requires_grad=True)
    found = tethered_rewards(tensor([1.0, poison]), kl, tensor([[True, False], [False, False]]), coef=1.0)
    assert found.tolist() == [[0.5, 0.0], [0.0, 0.0]]
    found.sum().backward()
    assert kl.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]


@given(
    st.lists(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=3, max_size=3), min_size=1, max_size=4),
    st.floats(0, 3),
)
def test_the_rewards_of_a_row_sum_to_the_score_less_the_tether_of_the_sequence(rows, coef):
    kl = tensor([[k for k, _ in row] for row in rows], dtype=torch.double)
    mask = tensor([[m for _, m in row] for row in rows])
    scores = torch.arange(1, len(rows) + 1, dtype=torch.double)
    totals = tethered_rewards(scores, kl, mask, coef=coef).sum(1)
    for total, score, row in zip(totals.tolist(), scores.tolist(), rows, strict=True):
        has_tokens = any(m for _, m in row)
        assert total == pytest.approx(score * has_tokens - coef * sum(k for k, m in row if m), abs=1e-12)


def test_answers_without_any_column_have_no_rewards():
    assert tethered_rewards(torch.ones(2), torch.ones(2, 0), torch.ones(2, 0, dtype=torch.bool), coef=1.0).shape == (2, 0)


def test_the_divergence_of_best_of_n_approaches_the_enumeration_over_distinct_answers():
    # m equally likely answers, distinct scores: P(best of n is the k-th worst) = (k/m)^n - ((k-1)/m)^n. As m grows ties vanish.
    for n in (2, 3):
        for m, gap in ((20, 0.05), (2000, 5e-4)):
            best = [(k / m) ** n - ((k - 1) / m) ** n for k in range(1, m + 1)]
            exact = sum(p * math.log(p * m) for p in best)
            assert exact < best_of_n_kl(n)  # an upper bound where answers repeat
            assert best_of_n_kl(n) - exact < gap


def test_the_best_of_n_probabilities_used_above_are_those_of_enumeration():
    m, n = 3, 2
    counts = [0] * m
    for draw in product(range(m), repeat=n):
        counts[max(draw)] += 1
    assert counts == [round(m**n * ((k / m) ** n - ((k - 1) / m) ** n)) for k in range(1, m + 1)]


@pytest.mark.parametrize("n, nats", [(1, 0.0), (2, math.log(2) - 1 / 2), (4, math.log(4) - 3 / 4), (16, 1.8351)])
def test_the_divergence_of_best_of_n_by_hand(n, nats):
    assert best_of_n_kl(n) == pytest.approx(nats, abs=5e-5)


@pytest.mark.parametrize("n", [0, -3])
def test_the_best_of_no_answers_is_refused(n):
    with pytest.raises(ValueError) as caught:
        best_of_n_kl(n)
    assert str(caught.value) == f"Best of n takes the best of at least one answer, not of {n}."


def test_the_laws_of_over_optimisation_by_hand():
    kl = tensor([4.0, 9.0], dtype=torch.double)
    assert gold_reward_best_of_n(kl, a=1.0, b=0.25).tolist() == [1.0, 0.75]  # 2 (1 - 0.5), 3 (1 - 0.75)
    expected = [2 * (1 - 0.5 * math.log(2)), 3 * (1 - 0.5 * math.log(3))]
    assert gold_reward_rl(kl, a=1.0, b=0.5).tolist() == pytest.approx(expected, rel=1e-14)
    below_one = gold_reward_rl(tensor(0.25, dtype=torch.double), a=1.0, b=0.5)
    assert below_one.item() == pytest.approx(0.5 * (1 + 0.5 * math.log(2)), rel=1e-14)  # the logarithm turns round


@pytest.mark.parametrize("law", [gold_reward_best_of_n, gold_reward_rl])
def test_no_optimisation_gains_nothing_and_leaves_a_finite_gradient(law):
    kl = tensor([0.0, -1e-6, 1.0], dtype=torch.double, requires_grad=True)
    gain = law(kl, a=2.0, b=0.5)
    gain.sum().backward()
    assert gain[:2].tolist() == [0.0, 0.0]
    assert kl.grad[:2].tolist() == [0.0, 0.0]
    assert kl.grad[2].item() > 0
    assert law(tensor(1e-12, dtype=torch.double), a=2.0, b=0.5).item() == pytest.approx(0, abs=1e-4)  # continuous there


@pytest.mark.parametrize("law, top", [(gold_reward_best_of_n, 2.0 / (2 * 0.5)), (gold_reward_rl, math.exp(2.0 / 0.5 - 1))])
def test_the_true_reward_has_its_top_where_the_docstring_puts_it(law, top):
    kl = tensor(top**2, dtype=torch.double, requires_grad=True)
    best = law(kl, a=2.0, b=0.5)
    best.backward()
    assert kl.grad.item() == pytest.approx(0, abs=1e-12)
    assert best.item() > max(law(kl.detach() * factor, a=2.0, b=0.5).item() for factor in (0.5, 0.9, 1.1, 2.0))
