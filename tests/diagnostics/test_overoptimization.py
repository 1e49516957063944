"""Over-optimisation's arithmetic: best-of-n against every subset, laws against planted ones, turns against planted humps."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.core import best_of_n_kl
from surefoot.diagnostics.overoptimization import (
    Curve,
    best_of_n,
    best_of_n_curve,
    best_of_n_weights,
    draws,
    estimate,
    fit,
    gain_at,
    law,
    mean_interval,
    sizes,
    top_of,
    turn,
)
from surefoot.errors import DataError


def over_all_subsets(proxy: list[float], values: list[float], n: int) -> float:
    """The definition: every subset of n, its highest proxy score, the mean value of those that have it."""
    found = []
    for subset in combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        tied = [i for i in range(len(proxy)) if proxy[i] == best]  # any of them is as likely to be the one in the subset
        found.append(sum(values[i] for i in tied) / len(tied))
    return sum(found) / len(found)


@settings(deadline=None)
@given(st.data())
def test_best_of_n_is_the_mean_over_all_subsets_ties_shared(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7))
    proxy = data.draw(st.lists(st.integers(-2, 2).map(float), min_size=count, max_size=count))
    values = data.draw(st.lists(st.floats(-5, 5), min_size=count, max_size=count))
    n = data.draw(st.integers(1, count))
    (found,) = best_of_n(np.array([proxy]), np.array([values]), n)
    assert found == pytest.approx(over_all_subsets(proxy, values, n), abs=1e-12)


def test_best_of_n_by_hand() -> None:
    proxy, values = np.array([[1.0, 2.0, 3.0]]), np.array([[10.0, 20.0, 60.0]])
    assert best_of_n(proxy, values, 1) == pytest.approx([30.0])
    assert best_of_n(proxy, values, 2) == pytest.approx([(20 + 60 + 60) / 3])  # of {1,2}, {1,3}, {2,3}
    assert best_of_n(proxy, values, 3) == pytest.approx([60.0])


@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_the_weights_of_best_of_n_are_a_distribution_and_best_of_one_is_the_mean(count: int) -> None:
    for n in sizes(count):
        assert best_of_n_weights(count, n).sum() == pytest.approx(1.0)
    assert best_of_n_weights(count, 1) == pytest.approx(np.full(count, 1 / count))
    assert best_of_n_weights(count, count)[-1] == 1


def test_best_of_n_is_unbiased_for_fresh_samples() -> None:
    generator = np.random.default_rng(0)
    fresh = generator.normal(size=(200_000, 4)).max(1).mean()  # E max of 4 normals, 1.0294
    pools = generator.normal(size=(4_000, 8))
    assert best_of_n(pools, pools, 4).mean() == pytest.approx(fresh, abs=0.03)  # 4 standard errors
    assert fresh == pytest.approx(1.0294, abs=0.01)


def test_the_kl_of_best_of_n_is_that_of_the_enumerated_distribution_of_many_distinct_answers() -> None:
    """Of M equally likely answers the i-th best is taken with (i/M)^n - ((i-1)/M)^n; its KL to 1/M goes to log n - (n-1)/n."""
    for n in (1, 2, 4, 16):
        errors = []
        for m in (10, 100, 10_000):
            rank = np.arange(1, m + 1) / m
            p = rank**n - (rank - 1 / m) ** n
            kl = float((p[p > 0] * np.log(p[p > 0] * m)).sum())
            errors.append(best_of_n_kl(n) - kl)
        assert all(error >= -1e-9 for error in errors) and errors[-1] < 1e-2
        assert errors == sorted(errors, reverse=True) or n == 1


def test_the_sizes_run_from_one_to_all_evenly_in_log_n() -> None:
    assert sizes(1) == [1]
    assert sizes(16) == [1, 2, 3, 4, 6, 8, 11, 16]
    assert sizes(20)[-2:] == [16, 20]


@pytest.mark.parametrize("n, count", [(0, 4), (5, 4)])
def test_more_than_all_samples_cannot_be_taken(n: int, count: int) -> None:
    with pytest.raises(DataError, match=f"best of {n} cannot be taken of {count} samples. Use 1 to {count}."):
        best_of_n_weights(count, n)


def planted(kind: str, alpha: float, beta: float, *, noise: float, prompts: int = 64, seed: int = 0, top: float = 25.0) -> Curve:
    """A curve of the law with noise of each prompt at each point, and KLs that scatter from prompt to prompt."""
    generator = np.random.default_rng(seed)
    means = np.linspace(0.3, math.sqrt(top), 12) ** 2
    kl = means[:, None] * generator.gamma(9.0, 1 / 9.0, (12, prompts)) if kind == "rl" else np.repeat(means[:, None], prompts, 1)
    gain = law(kind, kl.mean(1), alpha, beta)[:, None] + noise * generator.normal(size=(12, prompts))  # type: ignore[arg-type]
    return Curve(kind, tuple(range(1, 13)), kl, gain)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind, alpha, beta", [("best_of_n", 1.0, 0.13), ("rl", 1.2, 0.6), ("rl", 0.5, -0.1)])
def test_a_planted_law_without_noise_is_found_exactly(kind: str, alpha: float, beta: float) -> None:
    curve = planted(kind, alpha, beta, noise=0.0)
    found = fit(curve, draws(64, 50))
    assert found is not None
    assert (found.alpha.value, found.beta.value) == pytest.approx((alpha, beta), abs=1e-9)
    assert found.knee == (None if beta < 0 else pytest.approx(top_of(curve.kind, alpha, beta)))


@pytest.mark.parametrize("kind, alpha, beta", [("best_of_n", 1.0, 0.13), ("rl", 1.2, 0.6)])
def test_planted_parameters_lie_within_their_intervals_about_as_often_as_said(kind: str, alpha: float, beta: float) -> None:
    hits = 0
    for seed in range(100):
        found = fit(planted(kind, alpha, beta, noise=1.0, seed=seed), draws(64, 300, seed))
        assert found is not None
        hits += found.alpha.low <= alpha <= found.alpha.high and found.beta.low <= beta <= found.beta.high
    assert 82 <= hits <= 100  # both at once: 90 to 95 of 100, less 3 deviations


@pytest.mark.parametrize(
    "kind, alpha, beta, top",
    [("best_of_n", 2.0, 0.5, 4.0), ("rl", 2.0, 1.0, math.e**2), ("best_of_n", 1.0, 0.0, None), ("rl", 1.0, -0.5, None)],
)
def test_the_top_of_a_law_is_where_it_is_highest(kind: str, alpha: float, beta: float, top: float | None) -> None:
    found = top_of(kind, alpha, beta)  # type: ignore[arg-type]
    assert found == (None if top is None else pytest.approx(top))
    if found is not None:
        around = law(kind, np.array([found * 0.9, found, found * 1.1]), alpha, beta)  # type: ignore[arg-type]
        assert around.argmax() == 1


def test_a_law_of_best_of_n_that_only_falls_has_its_top_at_the_sft_model() -> None:
    assert top_of("best_of_n", -1.0, 0.2) == 0.0


def test_a_hump_has_its_knee_within_the_interval_and_a_fall_above_nothing() -> None:
    curve = planted("rl", 1.2, 0.9, noise=0.5, seed=3)
    which = draws(64, 500)
    found, seen = fit(curve, which), turn(curve, which)
    assert found is not None and found.knee_interval is not None
    assert found.knee_interval[0] <= math.exp(2 * (1.2 / 0.9 - 1)) <= found.knee_interval[1]
    assert found.knee_share > 0.99
    true_top = law("rl", np.array([math.exp(2 * (1.2 / 0.9 - 1))]), 1.2, 0.9)[0]
    true_end = law("rl", curve.kl.mean(1)[-1:], 1.2, 0.9)[0]
    assert seen.fall.low <= true_top - true_end <= seen.fall.high and seen.fall.low > 0
    assert seen.rise.value == pytest.approx(true_top, abs=0.2)


def test_a_flat_curve_seldom_counts_as_a_fall_whichever_point_was_luckiest() -> None:
    falls, naive = 0, 0.0
    for seed in range(100):
        gain = 1.0 + np.random.default_rng(seed).normal(size=(12, 64))
        seen = turn(Curve("rl", tuple(range(12)), np.ones((12, 64)), gain), draws(64, 200))
        falls += seen.fall.low > 0
        naive += (gain.mean(1).max() - gain.mean(1)[-1]) / 100
    assert falls <= 8  # 2.5 are said to; the highest point less the last would be 0.2 too large
    assert naive > 0.15


def test_a_curve_below_the_sft_model_has_its_top_there() -> None:
    gain = np.repeat(np.linspace(-0.1, -2, 6)[:, None], 10, 1)
    seen = turn(Curve("rl", tuple(range(6)), np.ones((6, 10)), gain), draws(10, 20))
    assert seen.top is None and seen.rise.value == 0 and seen.fall.value == pytest.approx(2.0)


def test_too_few_points_are_not_fitted() -> None:
    kl = np.repeat(np.array([[0.0], [1.0], [2.0]]), 8, 1)
    assert fit(Curve("best_of_n", (1, 2, 3), kl, kl), draws(8, 10)) is None


def test_a_curve_at_equal_kl_is_read_between_its_points_in_the_root() -> None:
    kl, gain = np.array([[1.0, 1.0], [9.0, 9.0]]), np.array([[2.0, 2.0], [4.0, 6.0]])
    found = gain_at(Curve("rl", (1, 2), kl, gain), [0.25, 1.0, 4.0, 100.0], draws(2, 3))
    assert found[0] == pytest.approx([1.0, 2.0, 3.5, 5.0])  # d: 0.5 of 1; 1; half way from 1 to 3; the end
    assert found.shape == (4, 4) and estimate(found[:, 0]).value == pytest.approx(1.0)


def test_draws_keep_each_half_of_the_prompts_among_themselves_and_are_the_same_again() -> None:
    which = draws(7, 50)
    assert which.shape == (50, 7)
    assert set(which[:, :4].flat) <= {0, 2, 4, 6} and set(which[:, 4:].flat) <= {1, 3, 5}
    assert (which == draws(7, 50)).all() and not (which == draws(7, 50, 1)).all()
    with pytest.raises(DataError, match="1 prompt has no bootstrap"):
        draws(1, 10)


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    gain = np.random.default_rng(0).normal(size=(1, 400))
    (found,) = mean_interval(gain, draws(400, 2_000))
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_a_curve_of_best_of_n_begins_at_nothing_and_its_gain_in_the_proxy_never_falls() -> None:
    generator = np.random.default_rng(1)
    proxy = generator.normal(size=(20, 16))
    curve = best_of_n_curve(proxy, proxy, proxy.mean(1))
    assert curve.names[0] == 1 and curve.gain[0] == pytest.approx(np.zeros(20)) and curve.kl[0] == pytest.approx(np.zeros(20))
    assert (np.diff(curve.gain.mean(1)) > 0).all()


def test_a_curve_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="a curve of 2 points"):
        Curve("rl", (1, 2), np.ones((3, 4)), np.ones((2, 4)))
