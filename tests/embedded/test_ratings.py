"""Parsing and cleaning, on text made on the spot; the counts of the real archive."""

import pytest

from surefoot.embedded.ratings import RatedSentence, clean, load_ratings, parse_ratings
from surefoot.errors import DataError

SENTENCES = "1\t0.5\tA ''bold''    and   brave film.\r\n2_a\t-2\tR&amp;amp;D, `dull'\r\n\r\n"
RATINGS = "1\t0.5\t0.5\t[1, 0]\r\n2_a\t-2.0\t0\t[-2, -3, -1]\r\n"


def test_sentences_and_raters_meet_by_id() -> None:
    assert parse_ratings(SENTENCES, RATINGS, "amazon") == [
        RatedSentence("amazon-1", 'A "bold" -- and -- brave film.', 0.5, (1.0, 0.0), "amazon"),
        RatedSentence("amazon-2_a", "R&D, 'dull'", -2.0, (-2.0, -3.0, -1.0), "amazon"),
    ]


@pytest.mark.parametrize(
    "raw, cleaned",
    [
        ("  It's  a\u00a0film ", "It's a film"),
        ("...a roller coaster ride of a movie", "...a roller coaster ride of a movie"),  # case, dots and a missing stop stay
        ("Tom &amp;#38; Ann &lt;3", "Tom & Ann <3"),
    ],
)
def test_cleaning_is_conservative(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned == clean(cleaned)


@pytest.mark.parametrize(
    "sentences, ratings, message",
    [
        (SENTENCES, "1\t0.5\t0.5\n", "movie ratings, line 1: expected id, mean, deviation"),
        (SENTENCES, "1\t0.5\t0.5\t[1, x]\n", "movie ratings, line 1: expected id, mean, deviation"),
        (SENTENCES, "1\t0.5\t0.5\t[1, 1]\n", "movie ratings, line 1: the mean of 1 is stated as 0.5"),
        ("7\t0\tHello.\n", RATINGS, "movie sentences, line 1: expected a rated id"),
        ("1\t0.5\n", RATINGS, "movie sentences, line 1: expected a rated id"),
    ],
)
def test_rows_of_another_shape_are_refused_by_line(sentences: str, ratings: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_ratings(sentences, ratings, "movie")


@pytest.mark.embedded
def test_the_archive_holds_what_its_authors_say() -> None:
    films = load_ratings()
    assert len(films) == 10605 and len(load_ratings("amazon")) == 3708  # the counts of its README
    assert len({one.id for one in films}) == 10605
    assert all(-4 <= rating <= 4 for one in films for rating in one.raters)
    assert 18 < sum(len(one.raters) for one in films) / len(films) < 19.5
    assert not [one.text for one in films if "&amp;" in one.text or "  " in one.text or "Ã" in one.text]
