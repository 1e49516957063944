"""The rules that move a KL coefficient."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.core import doubling_rule, exponential_rule, proportional_rule

RULES = {
    "exponential": lambda coef, kl, target: exponential_rule(coef, kl, target=target, rate=0.1),
    "doubling": lambda coef, kl, target: doubling_rule(coef, kl, target=target),
    "proportional": lambda coef, kl, target: proportional_rule(coef, kl, target=target, horizon=100, steps=10),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def test_the_exponential_rule_by_hand():
    assert exponential_rule(0.2, 8.0, target=6.0, rate=0.5) == pytest.approx(0.2 * math.e, rel=1e-14)  # 0.5 * (8 - 6) = 1
    assert exponential_rule(0.2, 4.0, target=6.0, rate=0.5) == pytest.approx(0.2 / math.e, rel=1e-14)


@pytest.mark.parametrize("kl, factor", [(0.0, 0.5), (0.66, 0.5), (0.67, 1), (1.0, 1), (1.49, 1), (1.5, 1), (1.51, 2), (99, 2)])
def test_the_doubling_rule_moves_outside_the_band_from_two_thirds_to_one_and_a_half(kl, factor):
    assert doubling_rule(3.0, 2 * kl, target=2.0) == 3.0 * factor


def test_the_lower_edge_of_the_doubling_band_belongs_to_the_band():
    assert doubling_rule(3.0, 2.0, target=3.0) == 3.0


@pytest.mark.parametrize("kl, error", [(0, -0.2), (5, -1 / 6), (6, 0), (6.6, 0.1), (7.2, 0.2), (60, 0.2), (math.inf, 0.2)])
def test_the_proportional_rule_by_hand(kl, error):
    assert proportional_rule(0.5, kl, target=6.0, horizon=1000, steps=100) == pytest.approx(0.5 * (1 + 0.1 * error), rel=1e-14)


def test_a_horizon_at_twice_the_target_multiplies_by_about_one_fifth_more():
    coef = 1.0
    for _ in range(1000):
        coef = proportional_rule(coef, 12.0, target=6.0, horizon=1000, steps=1)
    assert coef == pytest.approx(math.exp(0.2), rel=1e-4)


@every_rule
def test_a_coefficient_of_zero_stays_zero(rule):
    for kl in (0.0, 1.0, 1e9, math.inf):
        assert rule(0.0, kl, 1.0) == 0.0


@every_rule
def test_at_the_target_the_coefficient_stays(rule):
    assert rule(0.3, 2.0, 2.0) == pytest.approx(0.3, rel=1e-14)


@every_rule
@given(coef=st.floats(1e-6, 1e4), low=st.floats(-1, 1e6), gap=st.floats(0, 1e6), target=st.floats(1e-6, 1e3))
def test_a_larger_kl_never_leads_to_a_smaller_coefficient_and_the_bounds_hold(rule, coef, low, gap, target):
    below, above = rule(coef, low, target), rule(coef, low + gap, target)
    assert 1e-6 <= below <= above <= 1e4


@every_rule
def test_a_kl_of_a_million_nats_and_one_of_infinity_end_at_the_upper_bound(rule):
    for kl in (1e6, 1e300, math.inf):
        coef = 1.0
        for _ in range(600):
            coef = rule(coef, kl, 1.0)
        assert coef == 1e4


@every_rule
def test_a_long_run_of_small_kls_ends_at_the_lower_bound_and_can_come_back(rule):
    coef = 1.0
    for _ in range(1200):
        coef = rule(coef, 0.0, 1.0)
    assert coef == 1e-6
    assert rule(coef, 100.0, 1.0) > 1e-6


@every_rule
def test_a_coefficient_beyond_the_bounds_is_brought_back(rule):
    assert rule(1e9, 1.0, 1.0) == 1e4
    assert rule(1e-9, 1.0, 1.0) == 1e-6


def test_the_bounds_of_the_exponential_rule_are_the_callers():
    assert exponential_rule(1.0, 100.0, target=1.0, rate=1.0, low=0.5, high=2.0) == 2.0
    assert exponential_rule(1.0, 0.0, target=100.0, rate=1.0, low=0.5, high=2.0) == 0.5
    assert exponential_rule(5.0, 1.0, target=1.0, rate=1.0, low=2.0, high=2.0) == 2.0


def test_a_rate_of_zero_moves_nothing_even_for_an_infinite_kl():
    assert exponential_rule(0.3, math.inf, target=1.0, rate=0.0) == pytest.approx(0.3, rel=1e-14)
    assert exponential_rule(0.3, 5.0, target=1.0, rate=0.0) == pytest.approx(0.3, rel=1e-14)


@every_rule
@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_that_is_not_a_positive_number_is_refused(rule, target):
    with pytest.raises(ValueError) as caught:
        rule(1.0, 1.0, target)
    assert str(caught.value) == (
        f"The KL target must be a positive number of nats, not {target}. To keep a coefficient fixed, use no rule."
    )


@every_rule
@pytest.mark.parametrize("coef", [-0.1, math.nan, math.inf])
def test_a_coefficient_that_is_negative_or_not_finite_is_refused(rule, coef):
    with pytest.raises(ValueError) as caught:
        rule(coef, 1.0, 1.0)
    assert str(caught.value) == f"A KL coefficient must be 0 or a positive number, not {coef}."


@every_rule
def test_a_kl_that_is_not_a_number_is_refused(rule):
    with pytest.raises(ValueError) as caught:
        rule(1.0, math.nan, 1.0)
    assert str(caught.value) == "The KL that a coefficient rule was given is not a number. Check the update that measured it."


@pytest.mark.parametrize("rate", [-0.1, math.nan])
def test_a_rate_that_would_run_away_is_refused(rate):
    with pytest.raises(ValueError) as caught:
        exponential_rule(1.0, 1.0, target=1.0, rate=rate)
    assert (
        str(caught.value)
        == f"The rate of a KL coefficient must be 0 or more, not {rate}: a negative one runs away from the target."
    )


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_bounds_that_are_no_interval_of_positive_numbers_are_refused(low, high):
    with pytest.raises(ValueError) as caught:
        exponential_rule(1.0, 1.0, target=1.0, rate=0.1, low=low, high=high)
    assert str(caught.value) == (
        f"The bounds of a KL coefficient must satisfy 0 < low <= high, not low = {low} and high = {high}."
    )


@pytest.mark.parametrize("horizon, steps", [(0, 1), (0, 0), (-1, 0), (1, -1), (1, 5), (10, 50), (math.nan, 1), (1, math.nan)])
def test_steps_that_could_turn_a_coefficient_negative_are_refused(horizon, steps):
    with pytest.raises(ValueError) as caught:
        proportional_rule(1.0, 1.0, target=1.0, horizon=horizon, steps=steps)
    assert str(caught.value) == (
        f"The proportional rule needs 0 <= steps < 5 * horizon, not steps = {steps} and horizon = {horizon}. "
        "Use a longer horizon."
    )


def test_up_to_five_horizons_a_call_the_coefficient_stays_positive():
    assert proportional_rule(1.0, 0.0, target=1.0, horizon=1, steps=4.999) == pytest.approx(1 - 0.2 * 4.999, rel=1e-9)
    assert proportional_rule(1.0, 0.0, target=1.0, horizon=0.5, steps=0) == 1.0
