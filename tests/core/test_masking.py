"""The reductions that honour a mask."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from surefoot.core import Moments, masked_mean, moments, scale_only, standardize, zero_outside
from surefoot.core.masking import _accumulator

POISON = [100.0, math.nan, math.inf, -math.inf]
TRUE, FALSE = True, False


@pytest.mark.parametrize("poison", POISON)
def test_zero_outside_gives_zero_and_no_gradient_whatever_stands_in_the_slot(poison):
    x = tensor([2.0, poison], requires_grad=True)
    kept = zero_outside(x, tensor([TRUE, FALSE]))
    assert kept.tolist() == [2.0, 0.0]
    (kept * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 0.0]


def test_a_mask_of_another_shape_is_refused_although_it_would_broadcast():
    with pytest.raises(ValueError) as caught:
        zero_outside(torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool))
    assert str(caught.value) == "The mask has shape (2, 1) and the tensor (2, 3). They must be equal."
    for reduction in (masked_mean, moments, standardize, scale_only):
        with pytest.raises(ValueError):
            reduction(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))


def test_masked_mean_is_the_mean_of_the_slots_that_count():
    assert masked_mean(tensor([1.0, 2.0, 40.0, 6.0]), tensor([TRUE, TRUE, FALSE, TRUE])).item() == 3.0  # (1 + 2 + 6) / 3


def test_masked_means_of_parts_add_up_to_the_mean_under_the_global_count():
    parts = [tensor([1.0]), tensor([5.0, 5.0, 5.0])]
    masks = [torch.ones_like(part, dtype=torch.bool) for part in parts]
    assert sum(masked_mean(x, m, count=4).item() for x, m in zip(parts, masks, strict=True)) == 4.0  # (1 + 15) / 4
    assert sum(masked_mean(x, m, count=tensor(4)).item() for x, m in zip(parts, masks, strict=True)) == 4.0
    assert (
        statistics.mean(masked_mean(x, m).item() for x, m in zip(parts, masks, strict=True)) == 3.0
    )  # (1 + 5) / 2: another number


@pytest.mark.parametrize("count", [None, 0, 0.0, tensor(0), tensor(0.0)])
def test_a_count_of_zero_gives_a_mean_of_zero_and_a_gradient_of_zero(count):
    x = tensor([math.nan, 3.0], requires_grad=True)
    mean = masked_mean(x, tensor([FALSE, FALSE]), count)
    mean.backward()
    assert mean.item() == 0.0
    assert x.grad.tolist() == [0.0, 0.0]


def test_a_count_in_double_precision_does_not_change_the_dtype_of_the_mean():
    assert masked_mean(tensor([3.0]), tensor([TRUE]), count=tensor(2.0, dtype=torch.double)).dtype == torch.float32


def test_a_count_below_one_divides_as_it_is():
    assert masked_mean(tensor([3.0]), tensor([TRUE]), count=0.5).item() == 6.0


def test_a_count_of_zero_gives_zero_even_where_the_mask_is_not_empty():
    x = tensor([3.0], requires_grad=True)
    mean = masked_mean(x, tensor([TRUE]), count=0)
    mean.backward()
    assert (mean.item(), x.grad.item()) == (0.0, 0.0)


@pytest.mark.parametrize("poison", POISON)
def test_a_masked_slot_reaches_neither_the_mean_nor_its_gradient(poison):
    x = tensor([1.0, poison, 3.0], requires_grad=True)
    mean = masked_mean(x, tensor([TRUE, FALSE, TRUE]))
    mean.backward()
    assert mean.item() == 2.0
    assert x.grad.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    # 1 + 4096 / 4096: half precision keeps 11 bits or fewer and would lose every other one of 4097 ones
    mean = masked_mean(torch.ones(4097, dtype=dtype), torch.ones(4097, dtype=torch.bool), count=1)
    assert mean.dtype == torch.float32
    assert mean.item() == 4097.0


def test_double_precision_stays_double():
    assert masked_mean(tensor([1 / 3], dtype=torch.double), tensor([TRUE])).item() == 1 / 3


def test_moments_are_count_sum_and_squared_deviations_from_the_mean():
    found = moments(tensor([2.0, 4.0, math.nan, 6.0, 8.0]), tensor([TRUE, TRUE, FALSE, TRUE, TRUE]))
    assert (found.count.item(), found.sum.item(), found.m2.item()) == (4, 20, 20)  # 9 + 1 + 1 + 9
    assert (found.mean.item(), found.variance.item()) == (5, 5)


def test_moments_of_nothing_are_three_zeros_with_mean_and_variance_zero():
    empty = moments(tensor([math.nan]), tensor([FALSE]))
    assert [v.item() for v in (empty.count, empty.sum, empty.m2, empty.mean, empty.variance)] == [0, 0, 0, 0, 0]
    assert empty.about(7.0).item() == 0
    assert empty.about(tensor(math.nan)).item() == 0  # the mean of all ranks, where none has a step


def test_moments_keep_the_variance_of_float32_numbers_around_ten_thousand():
    x = 1e4 + torch.randn(1000, generator=torch.Generator().manual_seed(0))
    exact = statistics.pvariance([float(v) for v in x])
    found = moments(x, torch.ones(1000, dtype=torch.bool))
    assert found.variance.item() == pytest.approx(exact, rel=1e-12)
    sums_of_squares = (x**2).mean() - x.mean() ** 2  # what float32 makes of the textbook formula
    assert abs(sums_of_squares.item() / exact - 1) > 0.5


def test_moments_survive_a_mean_that_was_rounded():
    # in float64 the mean of these is off by up to 1e-8 of a deviation of 1e-7: the correction term keeps the digits
    x = tensor([1e9, 1e9 + 1e-7, 1e9 + 2e-7] * 7, dtype=torch.double)
    found = moments(x, torch.ones(21, dtype=torch.bool))
    exact = statistics.pvariance([float(v) for v in x])  # exact rational arithmetic
    assert found.variance.item() == pytest.approx(exact, rel=1e-6)


def test_moments_are_exact_where_no_float64_lies_near_the_mean():
    # four numbers a and three a + 1, where a + 1 is the next float64: the mean a + 3/7 cannot be stored, the squares sum to 12/7
    a = 2.0**52
    found = moments(tensor([a, a, a, a, a + 1, a + 1, a + 1], dtype=torch.double), torch.ones(7, dtype=torch.bool))
    assert found.m2.item() == pytest.approx(12 / 7, rel=1e-15)


def test_moments_are_taken_in_float64_except_on_apple_silicon_which_has_none():
    assert _accumulator(torch.device("cpu")) == _accumulator(torch.device("cuda")) == torch.float64
    assert _accumulator(torch.device("mps")) == torch.float32
    assert moments(tensor([1.0]), tensor([TRUE])).count.dtype == torch.float64


def test_squared_deviations_of_two_sets_do_not_add_but_their_moments_do():
    # [0, 2] and [10, 12]: 2 + 2 = 4 within, and 36 + 16 + 16 + 36 = 104 about the common mean 6
    everything = torch.ones(2, dtype=torch.bool)
    left, right = moments(tensor([0.0, 2.0]), everything), moments(tensor([10.0, 12.0]), everything)
    assert left.m2.item() + right.m2.item() == 4
    both = left + right
    assert (both.count.item(), both.sum.item(), both.m2.item()) == (4, 24, 104)


numbers = st.lists(st.floats(-1e3, 1e3, width=32), max_size=8)


@given(numbers, numbers, numbers)
def test_moments_of_parts_combine_to_the_moments_of_the_whole_in_any_grouping(a, b, c):
    def of(values):
        return moments(tensor(values, dtype=torch.float32), torch.ones(len(values), dtype=torch.bool))

    def fields(found):
        return [found.count.item(), found.sum.item(), found.m2.item()]

    whole = fields(of(a + b + c))
    assert fields((of(a) + of(b)) + of(c)) == pytest.approx(whole, rel=1e-12, abs=1e-9)
    assert fields(of(a) + (of(b) + of(c))) == pytest.approx(whole, rel=1e-12, abs=1e-9)


@given(numbers, numbers)
def test_ranks_that_can_only_sum_find_the_moments_of_the_whole(a, b):
    own = [moments(tensor(v, dtype=torch.float32), torch.ones(len(v), dtype=torch.bool)) for v in (a, b)]
    count, total = own[0].count + own[1].count, own[0].sum + own[1].sum
    everyone = Moments(count, total, own[0].about(total / count) + own[1].about(total / count))
    whole = moments(tensor(a + b, dtype=torch.float32), torch.ones(len(a + b), dtype=torch.bool))
    assert everyone.m2.item() == pytest.approx(whole.m2.item(), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("poison", POISON)
def test_standardize_gives_mean_zero_and_population_variance_one_and_zero_outside(poison):
    x, mask = tensor([2.0, 4.0, poison, 6.0, 8.0], dtype=torch.double), tensor([TRUE, TRUE, FALSE, TRUE, TRUE])
    unit = 1 / math.sqrt(5)  # deviations -3, -1, 1, 3; variance 5
    assert standardize(x, mask).tolist() == pytest.approx([-3 * unit, -unit, 0, unit, 3 * unit], abs=1e-8)
    assert standardize(x, mask)[2].item() == 0.0


@pytest.mark.parametrize("poison", POISON)
def test_scale_only_gives_variance_one_keeps_the_mean_and_is_zero_outside(poison):
    x, mask = tensor([2.0, 4.0, poison, 6.0, 8.0], dtype=torch.double), tensor([TRUE, TRUE, FALSE, TRUE, TRUE])
    scaled = scale_only(x, mask)
    assert scaled.tolist() == pytest.approx([3.66, 4.55, 0, 5.45, 6.34], abs=0.005)
    kept = moments(scaled, mask)
    assert kept.mean.item() == pytest.approx(5, abs=1e-12)
    assert kept.variance.item() == pytest.approx(1, abs=1e-8)
    assert scaled[2].item() == 0.0


@pytest.mark.parametrize("function, masked", [(standardize, 0.0), (scale_only, 0.0)])
def test_equal_numbers_become_their_own_deviation_of_zero(function, masked):
    x = tensor([3.0, 3.0, 7.0])
    assert function(x, tensor([TRUE, TRUE, FALSE])).tolist() == [function(tensor([3.0]), tensor([TRUE])).item()] * 2 + [masked]
    assert standardize(tensor([3.0]), tensor([TRUE])).item() == 0.0
    assert scale_only(tensor([3.0]), tensor([TRUE])).item() == 3.0


def test_the_added_deviation_is_one_part_in_a_hundred_million():
    x = tensor([-1e-8, 1e-8], dtype=torch.double)  # a deviation of 1e-8 is doubled by the 1e-8 that is added
    assert standardize(x, tensor([TRUE, TRUE])).tolist() == pytest.approx([-0.5, 0.5], rel=1e-9)


@pytest.mark.parametrize("function", [standardize, scale_only])
def test_an_empty_mask_gives_zeros(function):
    assert function(tensor([math.nan, 4.0]), tensor([FALSE, FALSE])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("function, expected", [(standardize, [-0.5, 1.0]), (scale_only, [5.5, 7.0])])
def test_given_moments_take_the_place_of_the_own_ones(function, expected):
    given_moments = Moments(tensor(4.0), tensor(24.0), tensor(16.0))  # mean 6, deviation 2
    assert function(tensor([5.0, 8.0]), tensor([TRUE, TRUE]), given_moments).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_standardizing_keeps_the_dtype(dtype):
    x, mask = tensor([1.0, 3.0], dtype=dtype), tensor([TRUE, TRUE])
    assert standardize(x, mask).dtype == scale_only(x, mask).dtype == dtype


def test_standardize_is_sound_for_float32_numbers_around_ten_thousand():
    x = 1e4 + torch.randn(1000, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1000, dtype=torch.bool)
    out = moments(standardize(x, mask), mask)
    assert abs(out.mean.item()) < 1e-7
    assert out.variance.item() == pytest.approx(1, abs=1e-6)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6))
def test_nothing_in_a_masked_slot_reaches_standardize_or_its_gradient(values):
    clean = tensor([*values, 0.0], dtype=torch.double, requires_grad=True)
    dirty = tensor([*values, math.nan], dtype=torch.double, requires_grad=True)
    mask = tensor([TRUE] * len(values) + [FALSE])
    weights = torch.arange(len(values) + 1, dtype=torch.double)
    given_moments = Moments(tensor(2.0), tensor(3.0), tensor(5.0))
    for function in (standardize, scale_only):
        results = [function(x, mask, given_moments) for x in (clean, dirty)]
        assert torch.equal(*results)
        gradients = [torch.autograd.grad((r * weights).sum(), x)[0] for r, x in zip(results, (clean, dirty), strict=True)]
        assert torch.equal(*gradients)
        assert gradients[1][-1].item() == 0.0
