"""A shift of the prompts: against arithmetic, in expectation, on each kind of change, and in parts that add up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from surefoot.diagnostics.prompt_shift import MIN_PROMPTS, PromptSums, prompt_shift, prompt_sums, shift_words
from surefoot.types import Prompts


def prompts(count: int, seed: int, *, low: int = 0, shortest: int = 3, keys: str = "") -> tuple[Prompts, Tensor]:
    """Prompts of random tokens from `low` to low + 39, with random states of 32 numbers of very different size."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(low, low + 40, (count, shortest + 4), generator=draw)
    mask = torch.arange(shortest + 4).flip(0) < torch.randint(shortest, shortest + 5, (count, 1), generator=draw)
    names = tuple(f"{keys or seed}-{i}" for i in range(count))
    states = torch.randn(count, 32, generator=draw) * torch.logspace(-3, 3, 32)
    return Prompts(ids, mask, names, names), states


def shifted(now: tuple[Prompts, Tensor], seed: int = 1) -> dict[str, float]:
    return prompt_shift(prompt_sums(*prompts(128, seed)), prompt_sums(*now))


def test_it_is_about_1_where_nothing_has_changed() -> None:
    figures = [shifted(prompts(64, 100 + seed), 200 + seed) for seed in range(60)]
    for name, spread in (("length", 0.6), ("tokens", 0.15), ("states", 0.15)):
        mean = sum(one[name] for one in figures) / len(figures)
        assert mean == pytest.approx(1, abs=spread), name
    assert max(one["states"] for one in figures) < 2.5 and max(one["tokens"] for one in figures) < 2.5


def test_each_kind_of_change_shows_in_its_own_figure() -> None:
    assert shifted(prompts(64, 2, shortest=6))["length"] > 25
    other = shifted(prompts(64, 2, low=20))
    assert other["tokens"] > 5 and other["length"] < 16 and other["states"] < 3
    same, states = prompts(64, 2)
    moved = shifted((same, states + 0.8 * torch.logspace(-3, 3, 32)))
    assert moved["states"] > 5 and moved["tokens"] < 3


def test_one_column_by_hand() -> None:
    """16 lengths of 3 and 5 by turns, then 16 of 4 and 6: means 4 and 5, deviations 1; 1 / ((32 / 30) (1/16 + 1/16)) = 7.5."""

    def of_lengths(short: int) -> PromptSums:
        mask = torch.arange(8).flip(0) < torch.tensor([short, short + 2] * 8)[:, None]
        names = tuple(map(str, range(16)))
        return prompt_sums(Prompts(torch.zeros(16, 8, dtype=torch.long), mask, names, names), torch.zeros(16, 1))

    before, now = of_lengths(3), of_lengths(4)
    figures = prompt_shift(before, now)
    assert figures["length"] == pytest.approx(7.5) and figures["states"] == 0
    assert shift_words(before, now) == "prompts have 5.0 tokens, and had 4.0 at the start"


def test_a_prompt_counts_once_however_often_it_is_answered_and_parts_add_up() -> None:
    given, states = prompts(40, 3)
    twice = given.rows([i for i in range(40) for _ in range(3)])
    whole, again = prompt_sums(given, states), prompt_sums(twice, states.repeat_interleave(3, 0))
    assert torch.equal(whole.sums, again.sums) and torch.equal(whole.count, again.count)
    halves = [prompt_sums(given.rows(range(a, b)), states[a:b]) for a, b in ((0, 11), (11, 40))]
    both = halves[0] + halves[1]
    assert torch.allclose(both.sums, whole.sums) and torch.allclose(both.squares, whole.squares) and both.count == 40


def test_few_prompts_say_nothing() -> None:
    few = prompt_sums(*prompts(MIN_PROMPTS - 1, 4))
    assert prompt_shift(few, prompt_sums(*prompts(64, 5))) == {} == prompt_shift(prompt_sums(*prompts(64, 5)), few)
