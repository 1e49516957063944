"""Agreement and bias of votes: against the libraries that define the coefficients, and votes whose flaw was planted."""

from __future__ import annotations

import random
from dataclasses import replace

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from surefoot.errors import DataError
from surefoot.intervals import binomial_at_least, binomial_at_most
from surefoot.preferences import Vote
from surefoot.preferences.agreement import (
    agreement,
    cohen_kappa,
    krippendorff_alpha,
    length_bias,
    opinions,
    position,
    position_bias,
    self_agreement,
    side_position,
    standings,
)

CHOICES = ("a", "b", "tie", "both_bad")
VOTE = Vote(1, 1, "a", "human:ann", None, None, None, None, 0.0)


def vote(pair: int, choice: str, source: str = "ann", **more: object) -> Vote:
    return replace(VOTE, pair=pair, choice=choice, source=f"human:{source}", **more)


labels = st.lists(st.tuples(st.sampled_from(CHOICES), st.sampled_from(CHOICES)), min_size=1, max_size=40)


@given(labels)
def test_kappa_is_that_of_scikit_learn(both):
    first, second = (dict(enumerate(column)) for column in zip(*both, strict=True))
    found = cohen_kappa(first, second)
    if len(set(first.values()) | set(second.values())) == 1:
        assert found is None  # both gave one and the same label throughout: 0 / 0
    else:
        oracle = cohen_kappa_score(list(first.values()), list(second.values()), labels=list(CHOICES))
        assert found == pytest.approx(oracle, abs=1e-12)


def test_kappa_counts_the_pairs_that_both_have_labelled():
    # shared: 1, 2, 3, 4; p_o = 3/4; p_1 = (3/4, 1/4), p_2 = (2/4, 2/4): p_e = 3/8 + 1/8; (3/4 - 1/2) / (1/2) = 1/2
    first = {1: "a", 2: "a", 3: "a", 4: "b", 5: "b"}
    second = {1: "a", 2: "a", 3: "b", 4: "b", 6: "a"}
    assert cohen_kappa(first, second) == pytest.approx(0.5)
    assert cohen_kappa({1: "a"}, {2: "a"}) is None


tables = st.integers(2, 5).flatmap(
    lambda raters: st.lists(st.lists(st.none() | st.integers(-4, 4), min_size=raters, max_size=raters), min_size=1, max_size=25)
)


@given(tables, st.sampled_from(["nominal", "ordinal"]))
def test_alpha_is_that_of_the_krippendorff_package(table, level):
    units = [[label for label in row if label is not None] for row in table]
    found = krippendorff_alpha(units, level)
    paired = [label for unit in units if len(unit) > 1 for label in unit]
    if len(set(paired)) < 2:
        assert found is None
        return
    reliability = np.array([[np.nan if label is None else label for label in row] for row in table], dtype=float).T
    oracle = krippendorff.alpha(reliability_data=reliability, level_of_measurement=level)
    assert found == pytest.approx(oracle, abs=1e-9)


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
def test_alpha_of_one_pair_by_hand(level):
    # units (1, 1) and (1, 2): o_11 = 2, o_12 = o_21 = 1, n_1 = 3, n_2 = 1, n = 4. With two labels the ordinal distance is one
    # constant, which cancels: alpha = 1 - 3 * 2 / (2 * 3 * 1) = 0
    assert krippendorff_alpha([(1, 1), (1, 2)], level) == pytest.approx(0.0)


def test_a_near_miss_costs_less_on_the_ordinal_scale_and_as_much_on_the_nominal_one():
    common = [(k, k) for k in range(-4, 5)]
    near, far = ([*common, (3, 4)], [*common, (-4, 4)])
    assert krippendorff_alpha(near, "ordinal") > krippendorff_alpha(far, "ordinal") + 0.1
    assert krippendorff_alpha(near) == pytest.approx(krippendorff_alpha(far), abs=0.01)


@pytest.mark.parametrize(
    "choice, strength, left, stated, seen",
    [
        ("a", 4, "a", 4, 4),
        ("a", 4, "b", 4, -4),
        ("b", 2, "a", -2, -2),
        ("b", None, "b", -1, 1),  # no strength: slightly
        ("tie", None, "a", 0, 0),
        ("both_bad", None, "a", None, None),
        ("a", 3, None, 3, None),  # shown to nobody
    ],
)
def test_a_vote_has_a_place_on_the_scale_and_one_as_it_was_seen(choice, strength, left, stated, seen):
    cast = vote(1, choice, strength=strength, left=left)
    assert (position(cast), side_position(cast)) == (stated, seen)


def test_agreement_of_annotators_reads_first_votes_and_leaves_skips_and_imports_out():
    votes = [vote(pair, choice, name) for name, told in (("x", "aabb"), ("y", "aabb")) for pair, choice in enumerate(told)]
    votes += [vote(0, "b", "x"), vote(9, "skip", "x"), vote(9, "a", "y")]  # a hidden repeat; a pair that x did not judge
    votes += [replace(VOTE, pair=pair, choice="b", source=source) for pair in range(4) for source in ("ratings", "import:file")]
    found = agreement(votes)
    assert found.num_shared_pairs == 4
    assert found.kappas == {("human:x", "human:y"): 1.0}
    assert (found.nominal, found.ordinal) == (1.0, 1.0)


def test_who_settled_a_pair_is_no_opinion_on_it():
    votes = [
        vote(1, "a"),
        vote(1, "b", "bea"),
        vote(1, "a", "bea", kind="adjudication"),
        vote(2, "b", "bea", kind="adjudication"),
    ]
    seen = opinions(votes)
    assert {name: {pair: one.choice for pair, one in by.items()} for name, by in seen.items()} == {
        "human:ann": {1: "a"},
        "human:bea": {1: "b"},
    }


def test_agreement_of_nobody_is_not_defined():
    found = agreement([])
    assert (found.num_shared_pairs, found.kappas, found.nominal, found.ordinal) == (0, {}, None, None)


def test_agreement_with_oneself_compares_each_repeat_with_the_vote_before():
    votes = [vote(1, "a", left="a"), vote(2, "b"), vote(1, "a", left="b"), vote(2, "a"), vote(2, "a"), vote(3, "a")]
    found = self_agreement([*votes, vote(1, "a", "once"), vote(2, "skip")])
    assert list(found) == ["human:ann"]
    assert (found["human:ann"].value, found["human:ann"].count) == (2 / 3, 3)  # 1: same; 2: changed, then same


def test_position_bias_is_the_share_of_left_choices_with_scipys_p_value():
    votes = [vote(i, "a", left="a" if i < 14 else "b") for i in range(20)]
    silent = [vote(30, "tie", left="a"), vote(31, "skip", left="b"), vote(32, "a"), vote(33, "both_bad", left="a")]
    found = position_bias(votes + silent)
    assert (found.share.value, found.share.count) == (0.7, 20)
    assert found.p_value == pytest.approx(stats.binomtest(14, 20).pvalue)
    assert position_bias(silent) is None


def test_length_bias_is_the_share_of_choices_of_the_longer_answer():
    lengths = {1: (10, 5), 2: (10, 5), 3: (4, 9), 4: (7, 7)}
    found = length_bias([vote(1, "a"), vote(2, "b"), vote(3, "b"), vote(4, "a"), vote(5, "a"), vote(1, "tie")], lengths)
    assert (found.share.value, found.share.count) == (2 / 3, 3)  # equal lengths and unknown pairs are left out


@given(st.integers(0, 3000), st.data(), st.sampled_from([0.5, 0.01, 0.93]))
def test_binomial_tails_are_scipys(count, data, share):
    wins = data.draw(st.integers(0, count))
    assert binomial_at_most(wins, count, share) == pytest.approx(stats.binom.cdf(wins, count, share), rel=1e-8, abs=1e-290)
    assert binomial_at_least(wins, count, share) == pytest.approx(stats.binom.sf(wins - 1, count, share), rel=1e-8, abs=1e-290)


def test_binomial_tails_at_the_ends():
    assert binomial_at_most(-1, 5) == 0.0
    assert binomial_at_least(0, 5) == 1.0
    assert (binomial_at_most(4, 5, 1.0), binomial_at_most(0, 5, 0.0)) == (0.0, 1.0)
    with pytest.raises(DataError, match="a share from 0 to 1"):
        binomial_at_most(1, 2, 1.5)


FLIPPED = {"a": "b", "b": "a"}


def crowd(seed: int, flaw: str, *, num_pairs: int = 60, num_good: int = 4, error: float = 0.2, overlap: int = 3) -> list[Vote]:
    """Votes of good annotators, wrong with probability `error`, and of one with a flaw; `overlap` of them judge each pair."""
    draw = random.Random(seed)
    names = [*(f"good{k}" for k in range(num_good)), "odd"]
    votes = []
    for pair in range(num_pairs):
        truth = draw.choice("ab")
        for name in draw.sample(names, overlap):
            left = draw.choice("ab")
            said = FLIPPED[truth] if draw.random() < error else truth
            if name == "odd":
                said = {"none": said, "inverted": FLIPPED[said], "random": draw.choice("ab"), "left": left}[flaw]
            votes.append(vote(pair, said, name, left=left))
    return votes


@pytest.mark.parametrize(
    "flaw, finding, at_least",
    [("inverted", "inverted", 28), ("random", "random", 24), ("left", "random", 24), ("none", "fine", 30)],
)
def test_a_planted_annotator_is_found_and_the_good_ones_are_left_alone(flaw, finding, at_least):
    # 30 crowds; odd judges about 180 of 300 pairs
    found, accused = 0, 0
    for seed in range(30):
        by_source = {standing.source: standing for standing in standings(crowd(seed, flaw, num_pairs=300))}
        found += by_source["human:odd"].finding == finding
        accused += sum(s.finding != "fine" for name, s in by_source.items() if name != "human:odd")
    assert found >= at_least
    assert accused <= 1  # of 120


def test_a_standing_counts_by_hand():
    # others of x: pair 1 (b, b) majority b; pair 2 (a) a; pair 3 (a, b) a draw; pair 4 nobody. x says a, a, a, a.
    votes = [vote(1, "b", "y"), vote(1, "b", "z"), vote(2, "a", "y"), vote(3, "a", "y"), vote(3, "b", "z")]
    votes += [vote(pair, "a", "x") for pair in (1, 2, 3, 4)] + [vote(5, "tie", "x"), vote(5, "a", "y")]
    standing = {s.source: s for s in standings(votes)}["human:x"]
    assert (standing.compared, standing.agreeing, standing.finding) == (2, 1, "too few")
    assert (standing.p_inverted, standing.p_chance) == (pytest.approx(3 / 4), pytest.approx(3 / 4))


def test_two_who_disagree_throughout_are_both_named():
    votes = [vote(pair, choice, name) for pair in range(20) for name, choice in (("x", "a"), ("y", "b"))]
    assert [s.finding for s in standings(votes)] == ["inverted", "inverted"]


def test_nobody_stands_anywhere_without_votes():
    assert standings([]) == []
