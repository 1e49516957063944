"""What the votes of a pair say together: every rule against arithmetic in the comment."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import DataError
from surefoot.preferences import CHOICES, Vote, outcome
from surefoot.preferences.votes import checked_source

VOTE = Vote(1, 1, "a", "human:ann", None, None, None, None, 0.0)


def votes(*choices: str, strengths: tuple[int | None, ...] = ()) -> list[Vote]:
    given = [*strengths, *[None] * len(choices)]
    return [replace(VOTE, id=i, choice=c, strength=given[i], source=f"human:p{i}") for i, c in enumerate(choices)]


@pytest.mark.parametrize(
    "choices, chosen, target",
    [
        (("a",), "a", None),  # one mind: share 1
        (("b", "b"), "b", None),
        (("a", "a", "b"), "a", 2 / 3),
        (("b", "a", "b", "b"), "b", 3 / 4),
        (("a", "tie"), "a", 3 / 4),  # (1 + 1/2) / 2
        (("tie", "b", "b"), "b", 5 / 6),  # (1/2 + 1 + 1) / 3
        (("tie",), "a", 1 / 2),
        (("a", "b"), "a", 1 / 2),
        (("a", "skip", "both_bad"), "a", None),  # skip and both bad do not count
    ],
)
def test_the_share_of_votes_decides_who_is_chosen_and_is_the_target(choices, chosen, target):
    result = outcome(votes(*choices))
    assert result is not None
    assert result.chosen == chosen
    assert result.target == (None if target is None else pytest.approx(target, abs=1e-15))


@pytest.mark.parametrize("choices", [(), ("skip",), ("both_bad",), ("skip", "both_bad")])
def test_skip_and_both_bad_alone_state_no_preference(choices):
    assert outcome(votes(*choices)) is None


@pytest.mark.parametrize(
    "choices, strengths, margin",
    [
        (("a",), (1,), 0.0),  # slightly better: no margin beyond being better
        (("a",), (4,), 3.0),
        (("a", "a"), (2, 4), 2.0),  # (1 + 3) / 2
        (("a", "a", "b"), (2, 3, 4), 1.5),  # only those who agree: (1 + 2) / 2
        (("a", "a"), (None, 4), 3.0),  # only those who stated one
        (("a",), (None,), None),
        (("a", "b"), (4, 2), None),  # an even share has no margin
    ],
)
def test_the_margin_is_the_mean_strength_less_one_of_those_who_agree(choices, strengths, margin):
    result = outcome(votes(*choices, strengths=strengths))
    assert result is not None
    assert result.margin == margin


def test_an_imported_share_and_margin_come_back_as_they_were():
    result = outcome([replace(VOTE, choice="b", share=0.7, margin=-0.25)])
    assert result is not None
    assert (result.chosen, result.target, result.margin) == ("b", 0.7, -0.25)


def test_sources_are_those_who_stated_a_preference_sorted_and_once():
    cast = [
        replace(VOTE, source=s, choice=c) for s, c in [("ratings", "a"), ("human:z", "skip"), ("human:b", "b"), ("ratings", "a")]
    ]
    result = outcome(cast)
    assert result is not None
    assert result.sources == ("human:b", "ratings")


one_vote = st.builds(
    lambda choice, strength, share: replace(
        VOTE, choice=choice, **({"strength": strength, "share": share} if choice in "ab" else {})
    ),
    st.sampled_from(CHOICES),
    st.none() | st.integers(1, 4),
    st.none() | st.sampled_from([0.1, 0.2, 0.3, 0.6, 0.7, 0.9]),  # their float sums depend on the order
)


@given(st.lists(one_vote, max_size=9).flatmap(lambda cast: st.tuples(st.just(cast), st.permutations(cast))))
def test_the_order_of_votes_changes_nothing(both):
    cast, shuffled = both
    assert outcome(cast) == outcome(shuffled)


@given(st.lists(one_vote, max_size=9))
def test_swapping_the_sides_swaps_who_is_chosen_and_nothing_else(cast):
    swapped = [replace(v, choice={"a": "b", "b": "a"}.get(v.choice, v.choice)) for v in cast]
    one, other = outcome(cast), outcome(swapped)
    if one is None or other is None:
        assert one == other
    elif one.target == 0.5:
        assert one == other  # a tie has no side: a stands first by convention
    else:
        assert other.target == pytest.approx(one.target)  # the sum of shares and that of their complements round otherwise
        assert replace(one, chosen={"a": "b", "b": "a"}[one.chosen], target=other.target) == other


@pytest.mark.parametrize("source", ["human:ann", "ratings", "function:judges:shorter", "import:data-1.2_b"])
def test_a_source_that_names_who_votes_is_taken(source):
    assert checked_source(source) == source


@pytest.mark.parametrize(
    "source", ["", "ann", "human:", "human:Ann Lee", "human:" + "x" * 65, "ratings ", "function:a/b", "human:a\n"]
)
def test_a_source_that_names_nobody_is_refused(source):
    with pytest.raises(DataError) as caught:
        checked_source(source)
    assert str(caught.value) == (
        f"source = {source!r} does not say who votes. Use human:NAME, ratings, import:NAME (NAME: 1 to 64 of a-z 0-9 . _ -) "
        "or function:MODULE:FUNCTION."
    )
