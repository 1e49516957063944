"""Figures of text, counted by hand."""

import pytest

from surefoot.diagnostics.text import distinct_n, duplicate_share, length_statistics, repetition, words
from surefoot.errors import DataError


def test_words_are_lower_case_and_each_punctuation_mark_stands_alone() -> None:
    assert words("Don't stop!!  I’m 3.5 ok\n") == ["don't", "stop", "!", "!", "i’m", "3", ".", "5", "ok"]
    assert words("  ") == []


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c"], 2, 1.0),
        (["a b a b"], 2, 2 / 3),  # ab ba ab
        (["a b", "A  B"], 2, 1 / 2),  # pooled: the same bigram in both answers
        (["a b", "b a"], 2, 1.0),  # n-grams do not cross answers
        (["a", "b"], 2, 0.0),  # no bigram at all
        (["a a a b"], 1, 1 / 2),
    ],
)
def test_distinct_n_by_hand(texts: list[str], n: int, expected: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(expected)


def test_distinct_n_falls_when_a_model_says_the_same_to_every_prompt() -> None:
    different = [f"answer number {i} is this one" for i in range(20)]
    assert distinct_n(["the best film ever made"] * 20) == pytest.approx(1 / 20)
    assert distinct_n(different) > 0.4


def test_duplicate_share_counts_every_answer_that_occurs_again() -> None:
    assert duplicate_share(["x", "X ", "y", "z", "z", "z", "w", "v"]) == 5 / 8
    assert duplicate_share(["a", "b"]) == 0.0


def test_repetition_by_hand() -> None:
    """ "a a a a a" has the trigram aaa three times: 2 of 3 stood earlier. The other answer has none."""
    assert repetition(["a a a a a", "one two three four"]) == pytest.approx((2 / 3 + 0) / 2)
    assert repetition(["a b"]) == 0.0


def test_length_statistics_by_hand() -> None:
    found = length_statistics([2, 4, 4, 10])
    assert (found.mean, found.median, found.minimum, found.maximum) == (5.0, 4.0, 2.0, 10.0)
    assert found.deviation == pytest.approx(3.0)  # (9 + 1 + 1 + 25) / 4 = 9


@pytest.mark.parametrize("figure", [distinct_n, duplicate_share, repetition])
def test_a_figure_of_no_answers_is_refused_and_so_is_one_string(figure) -> None:
    with pytest.raises(DataError, match="no answers"):
        figure([])
    with pytest.raises(DataError, match="wants a list of answers and got one string"):
        figure("one answer")


def test_length_statistics_and_distinct_n_refuse_what_has_no_meaning() -> None:
    with pytest.raises(DataError, match="no mean length"):
        length_statistics([])
    with pytest.raises(DataError, match="n = 0"):
        distinct_n(["a"], 0)
