"""DETAILS.md, the items that concern data, by number."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.content import content_hash
from surefoot.errors import DataError
from surefoot.lm.data import PreferenceRow, never_trained_on, rows_from, split_by_prompt


def preferences(prompts: list[str]) -> tuple[PreferenceRow, ...]:
    rows = [{"prompt": p, "chosen": f"a{i}", "rejected": "b"} for i, p in enumerate(prompts)]
    return rows_from(rows, "preferences").rows


many = st.lists(st.sampled_from([f"prompt {i}" for i in range(12)]), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1)


@given(many, st.floats(0.01, 0.99), st.integers(0, 5))
def test_item_52_no_prompt_stands_in_both_train_and_validation(prompts, share, seed):
    rows = preferences(prompts)
    train, validation = split_by_prompt(rows, share, seed)
    assert not {content_hash(row.prompt) for row in train} & {content_hash(row.prompt) for row in validation}
    assert Counter(row.chosen for row in [*train, *validation]) == Counter(row.chosen for row in rows)  # every row once
    assert train and validation


def test_item_52_the_share_is_that_of_the_distinct_prompts():
    rows = preferences([f"prompt {i % 50}" for i in range(200)])
    train, validation = split_by_prompt(rows, 0.2, seed=0)
    assert len({row.prompt for row in validation}) == 10  # 0.2 * 50
    assert len(validation) == 40  # with all four rows of each
    assert len(train) == 160


@given(many.flatmap(lambda prompts: st.tuples(st.just(prompts), st.permutations(prompts))))
def test_item_52_the_split_does_not_depend_on_the_order_of_the_rows(both):
    one, other = (split_by_prompt(preferences(list(prompts)), 0.3, seed=1)[1] for prompts in both)
    assert {row.prompt for row in one} == {row.prompt for row in other}


def test_item_52_another_seed_holds_other_prompts_out():
    rows = preferences([f"prompt {i}" for i in range(40)])
    held_out = [frozenset(row.prompt for row in split_by_prompt(rows, 0.25, seed)[1]) for seed in range(4)]
    assert len(set(held_out)) == 4


def test_item_52_both_parts_keep_the_order_of_the_rows():
    rows = preferences([f"prompt {i}" for i in range(20)])
    for part in split_by_prompt(rows, 0.5, seed=0):
        assert part == [row for row in rows if row in part]


def test_item_52_a_share_of_zero_holds_nothing_out():
    rows = preferences(["x", "y"])
    assert split_by_prompt(rows, 0.0, seed=0) == (list(rows), [])


def test_item_52_a_validation_set_that_is_given_loses_the_rows_whose_prompts_are_trained_on():
    train, given = preferences(["x", "y"]), preferences(["z", "x", "x"])
    kept, said = never_trained_on(given, train)
    assert [(row.prompt, row.chosen) for row in kept] == [("z", "a0")]
    assert said == "validation: 2 rows left out, whose prompts are trained on"
    assert never_trained_on(given, preferences(["w"])) == (list(given), "")
    bare = rows_from([{"text": text} for text in "ab"], "completions").rows
    assert never_trained_on(bare, bare[1:])[0] == [bare[0]]  # the text is what is compared where there is no prompt
    with pytest.raises(DataError, match=r"all 2 rows of data\.validation have a prompt that is trained on, so nothing"):
        never_trained_on(preferences(["x", "x"]), train)


@pytest.mark.parametrize(
    "prompts, share, sentence",
    [
        (["x", "x"], 0.1, "2 rows with 1 distinct prompt cannot be split. Give a validation set."),
        (["x", "y"], 1.0, "the validation share is 1.0. Use a number from 0 to below 1."),
        (["x", "y"], -0.1, "the validation share is -0.1. Use a number from 0 to below 1."),
    ],
)
def test_item_52_what_cannot_be_split_is_refused(prompts, share, sentence):
    with pytest.raises(DataError) as caught:
        split_by_prompt(preferences(prompts), share, seed=0)
    assert str(caught.value) == sentence
