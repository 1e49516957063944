"""Intervals and calibration against arithmetic by hand, scipy, and simulated repetitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from surefoot.diagnostics.calibration import (
    Bin,
    accuracy_by_length_gap,
    accuracy_interval,
    bootstrap_interval,
    calibration,
    win_rate,
    wins,
)
from surefoot.errors import DataError
from surefoot.intervals import wilson_interval


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 10), (50, 100), (255, 256), (256, 256), (0, 40)])
def test_wilson_interval_is_that_of_scipy(right: int, count: int) -> None:
    oracle = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    found = wilson_interval(right, count)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert (found.value, found.count) == (right / count, count)


def test_wilson_interval_holds_the_truth_in_about_95_percent_of_repetitions() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.8, size=2_000)
    held = np.mean([(i := wilson_interval(float(k), 200)).low <= 0.8 <= i.high for k in draws])
    assert 0.935 <= held <= 0.965  # 3 standard errors of 2,000 repetitions are 0.015


def test_wilson_interval_touches_the_ends_only_where_all_or_none_won() -> None:
    assert wilson_interval(0, 7).low == 0.0
    assert wilson_interval(7, 7).high == 1.0
    assert wilson_interval(1, 7).low > 0
    assert wilson_interval(6, 7).high < 1


@pytest.mark.parametrize(("won", "count"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_interval_refuses_counts_that_cannot_be(won: float, count: int) -> None:
    with pytest.raises(DataError, match="an interval needs 1 or more observations"):
        wilson_interval(won, count)


def test_a_tie_is_half_a_win() -> None:
    assert wins([3, 1, 2, 5], [1, 3, 2, 4]).tolist() == [1, 0, 0.5, 1]
    assert win_rate([3, 1, 2, 5], [1, 3, 2, 4]).value == 2.5 / 4


def test_accuracy_is_the_share_of_pairs_in_the_right_order() -> None:
    found = accuracy_interval(chosen=[2.0, 0.5, -1.0], rejected=[1.0, 0.6, -2.0])
    assert found.value == pytest.approx(2 / 3)
    assert found.count == 3


def test_pairs_of_one_prompt_widen_the_interval_of_the_accuracy() -> None:
    # 4 clusters of 5 equal pairs, 3 right and 1 wrong: p = 0.75, residuals 1.25, 1.25, 1.25, -3.75,
    # variance 4/3 * 18.75 / 400 = 0.0625 = p (1 - p) / 3: as good as 3 independent pairs
    chosen, rejected = [1.0] * 15 + [0.0] * 5, [0.0] * 15 + [1.0] * 5
    found = accuracy_interval(chosen, rejected, [i // 5 for i in range(20)])
    assert (found.value, found.count) == (0.75, 20)
    assert (found.low, found.high) == pytest.approx((wilson_interval(2.25, 3).low, wilson_interval(2.25, 3).high))
    alone = accuracy_interval(chosen, rejected)
    assert found.low < alone.low and found.high > alone.high


@pytest.mark.parametrize("seed", range(3))
def test_the_clustered_interval_holds_the_truth_as_often_as_it_says(seed: int) -> None:
    draw = np.random.default_rng(seed)
    held, plain, repetitions = 0, 0, 400
    for _ in range(repetitions):
        shares = draw.beta(6, 2, size=60)  # mean 0.75: what a prompt's pairs have in common
        right = (draw.random((60, 8)) < shares[:, None]).reshape(-1).astype(float)
        clustered = accuracy_interval(right, 1 - right, [i // 8 for i in range(right.size)])
        independent = accuracy_interval(right, 1 - right)
        held += clustered.low <= 0.75 <= clustered.high
        plain += independent.low <= 0.75 <= independent.high
    assert held / repetitions > 0.92 > plain / repetitions  # 95 % wanted; 400 repetitions have a deviation of 1.1 %


def test_pairs_that_are_prompts_of_their_own_count_one_by_one() -> None:
    chosen, rejected = [1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    # residuals 1/4, 1/4, 1/4, -3/4: variance 4/3 * 3/4 / 16 = 1/16 = p (1 - p) / 3, one pair less for the share that is estimated
    assert accuracy_interval(chosen, rejected, list("abcd")).low == pytest.approx(wilson_interval(2.25, 3).low)
    with pytest.raises(DataError, match="4 pairs have 3 clusters named"):
        accuracy_interval(chosen, rejected, list("abc"))
    assert accuracy_interval([1.0] * 6, [0.0] * 6, list("aabbcc")).low == wilson_interval(3, 3).low  # three prompts, all right


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
def test_swapping_the_sides_turns_a_win_rate_over(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    there, back = win_rate(a, b), win_rate(b, a)
    assert there.value + back.value == pytest.approx(1)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))


@pytest.mark.parametrize(
    ("after", "before", "words"),
    [
        ([1.0], [1.0, 2.0], "equally many numbers on both sides; got 1 and 2"),
        ([], [], "no numbers"),
        ([1.0, math.nan], [0.0, 0.0], r"first\[1\] = nan is not finite \(1 of 2\)"),
        ([1.0], [math.inf], r"second\[0\] = inf is not finite"),
    ],
)
def test_win_rate_refuses_numbers_it_cannot_compare(after: list[float], before: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        win_rate(after, before)


def test_bootstrap_interval_of_many_values_is_the_normal_one() -> None:
    x = np.random.default_rng(1).normal(3.0, 2.0, size=1_000)
    found = bootstrap_interval(x, np.random.default_rng(2))
    half = 1.96 * x.std() / math.sqrt(x.size)
    assert found.value == x.mean()
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.01)


def test_bootstrap_interval_is_the_same_for_the_same_seed_and_has_no_width_for_equal_values() -> None:
    x = [0.0, 1.0, 1.0, 0.5]
    assert bootstrap_interval(x, np.random.default_rng(3)) == bootstrap_interval(x, np.random.default_rng(3))
    assert bootstrap_interval([2.5] * 9, np.random.default_rng(3)).as_list() == [2.5, 2.5]


def test_bootstrap_interval_does_not_depend_on_the_size_of_its_blocks() -> None:
    """700,000 values leave one resample a block: a mean of resamples of all blocks, not of the last one."""
    x = np.concatenate([np.zeros(350_000), np.ones(350_000)])
    found = bootstrap_interval(x, np.random.default_rng(4), resamples=20)
    assert found.value == 0.5
    assert abs(found.low - 0.5) < 0.003 and abs(found.high - 0.5) < 0.003 and found.low < found.high


def test_calibration_by_hand() -> None:
    """sigmoid(ln 3) = 3/4 and sigmoid(ln 9) = 9/10. Bins of [1/2, 1] in two: [0.5, 0.75) and [0.75, 1]."""
    chosen = [math.log(3), 0.0, 0.0, math.log(9), 0.0]
    rejected = [0.0, math.log(3) + 1e-9, 0.0, 0.0, 0.0]
    found = calibration(chosen, rejected, num_bins=2)
    low, high = found.bins
    assert low.confidence == pytest.approx(0.5) and low.accuracy == 0.5 and low.count == 2  # two ties, each half right
    assert high.confidence == pytest.approx((0.75 + 0.75 + 0.9) / 3) and high.accuracy == pytest.approx(2 / 3) and high.count == 3
    assert found.ece == pytest.approx(0.6 * abs(0.8 - 2 / 3))


def test_calibration_leaves_empty_bins_out_and_a_certain_pair_lands_in_the_last() -> None:
    found = calibration([1_000.0], [-1_000.0])
    assert found.bins == (Bin(1.0, 1.0, 1),)
    assert found.ece == 0.0
    assert found.as_dict() == {"bins": [{"confidence": 1.0, "accuracy": 1.0, "count": 1}], "ece": 0.0}


def test_calibration_does_not_change_when_all_pairs_get_the_same_offset() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert calibration(a + 3, b + 3).ece == pytest.approx(calibration(a, b).ece)


def test_length_gaps_fall_into_the_bins_of_the_docstring() -> None:
    gaps = [-30, -10, -9, -3, -2, 0, 2, 3, 9, 10, 55]
    lengths = [(60 + gap, 60) for gap in gaps]
    found = accuracy_by_length_gap([1.0] * 11, [0.0] * 11, [a for a, _ in lengths], [b for _, b in lengths])
    assert [(g.low, g.high, g.accuracy.count) for g in found] == [
        (-math.inf, -9, 2),
        (-9, -2, 2),
        (-2, 3, 3),
        (3, 10, 2),
        (10, math.inf, 2),
    ]


def test_a_scorer_that_pays_for_length_is_right_only_where_the_chosen_answer_is_longer() -> None:
    rng = np.random.default_rng(6)
    long, short = rng.integers(1, 60, size=400), rng.integers(1, 60, size=400)
    found = accuracy_by_length_gap(long, short, long, short)  # the score IS the length
    assert found[0].accuracy.value == 0.0
    assert found[-1].accuracy.value == 1.0


def test_length_gaps_refuse_edges_that_do_not_rise_and_lengths_of_other_pairs() -> None:
    with pytest.raises(DataError, match=r"edges = \(3, 3\) must rise"):
        accuracy_by_length_gap([1.0], [0.0], [1], [1], edges=(3, 3))
    with pytest.raises(DataError, match="2 lengths for 1 pairs"):
        accuracy_by_length_gap([1.0], [0.0], [1, 2], [1, 2])
