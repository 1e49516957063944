"""Nothing that opens one set opens another; votes are what one person of each said."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.embedded.ratings import RatedSentence, load_ratings
from surefoot.embedded.splits import SHARES, eval_prompts, ppo_prompts, rating_pairs, sft_sentences, split_of

WORDS = st.text(alphabet="abcdeABC'.,", min_size=1, max_size=6)


def sentence(number: int, text: str, raters: tuple[float, ...]) -> RatedSentence:
    return RatedSentence(f"movie-{number}", text, sum(raters) / len(raters), raters, "movie")


def made_up(openings: int, each: int, raters: tuple[float, ...] = (2.0, -1.0, 0.0)) -> list[RatedSentence]:
    return [
        sentence(k * each + i, f"Opening{k} number of row {i} ends here.", raters) for k in range(openings) for i in range(each)
    ]


@given(st.lists(WORDS, min_size=2, max_size=2), st.lists(WORDS), st.lists(WORDS))
def test_the_first_two_words_alone_choose_the_set(opening: list[str], rest: list[str], other: list[str]) -> None:
    assert split_of(" ".join(opening + rest)) == split_of(" ".join([word.upper() for word in opening] + other))


def test_sets_have_their_shares_of_openings() -> None:
    count = Counter(split_of(f"word{k} next") for k in range(20000))
    for split, share in SHARES.items():
        assert count[split] / 20000 == pytest.approx(share, abs=0.015)  # 4 standard errors: 4 sqrt(.55 .45 / 20000)
    assert sum(SHARES.values()) == pytest.approx(1)


def test_the_hash_is_the_same_on_every_machine() -> None:
    """`printf 'the film' | sha256sum` begins with ab1cd3e921af, which is 0.668 of 2^48: the judge's."""
    texts = ("The film", "this is", "The movie,", "One of", "Auto Focus", "Lacking substance")
    # first 48 bits: .668        .261     .365         .647      .933          .956; train < .55 < judge < .85 < ppo < .94 < eval
    assert [split_of(text) for text in texts] == ["judge", "train", "train", "judge", "ppo", "eval"]


def test_pairs_share_their_prompt_and_rebuild_their_sentences() -> None:
    ratings = made_up(60, 5)
    text = {one.id: one.text for one in ratings}
    pairs = rating_pairs(ratings, seed=0)
    assert pairs.train and pairs.held_out
    for row in pairs.train + pairs.held_out:
        assert row["prompt"] + row["chosen"] == text[row["chosen_id"]]
        assert row["prompt"] + row["rejected"] == text[row["rejected_id"]]
        assert row["chosen_id"] != row["rejected_id"]
        assert row["tie"] == (row["chosen_rating"] == row["rejected_rating"]) and row["chosen_rating"] >= row["rejected_rating"]
        assert split_of(row["prompt"]) == "train"


def test_a_third_of_the_sentences_is_held_out_by_whole_openings() -> None:
    pairs = rating_pairs(made_up(300, 4), seed=1)
    prompts = [{row["prompt"] for row in rows} for rows in (pairs.train, pairs.held_out)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[1]) / len(prompts[0] | prompts[1]) == pytest.approx(1 / 3, abs=0.01)


def test_openings_that_differ_in_case_alone_are_held_out_together() -> None:
    ratings = made_up(100, 3) + [sentence(10_000 + k, one.text.upper(), (1.0,)) for k, one in enumerate(made_up(100, 3))]
    pairs = rating_pairs(ratings, seed=0)
    assert not {row["prompt"].lower() for row in pairs.train} & {row["prompt"].lower() for row in pairs.held_out}


def test_a_vote_is_one_drawn_rater_of_each_side() -> None:
    """Raters 1, 0 on one sentence and 0 on the other: half of the votes are ties, the others go to the first."""
    opening = next(f"Opening{k} number" for k in range(100) if split_of(f"Opening{k} number") == "train")
    twins = [sentence(0, f"{opening} one is good.", (1.0, 0.0)), sentence(1, f"{opening} two is dull.", (0.0, 0.0))]
    rows = [row for seed in range(400) for row in rating_pairs(twins, seed=seed, held_out_share=0).train]
    assert len(rows) == 400
    ties = [row for row in rows if row["tie"]]
    assert len(ties) == pytest.approx(200, abs=40)  # 4 standard errors
    assert all(row["chosen_id"] == "movie-0" for row in rows if not row["tie"])
    assert Counter(row["chosen_id"] for row in ties)["movie-0"] == pytest.approx(len(ties) / 2, abs=30), "a tie has no favourite"


def test_a_seed_gives_the_same_pairs_and_another_gives_others() -> None:
    ratings = made_up(40, 5)
    assert rating_pairs(ratings, seed=3) == rating_pairs(ratings, seed=3)
    assert rating_pairs(ratings, seed=3) != rating_pairs(ratings, seed=4)


def test_a_frequent_opening_does_not_rule() -> None:
    opening = next(f"Opening{k}" for k in range(100) if split_of(f"Opening{k} number") == "train")
    ratings = [sentence(k, f"{opening} number of row {k}.", (1.0, -1.0)) for k in range(50)]
    assert len(rating_pairs(ratings, seed=0, pairs_per_sentence=6, held_out_share=0).train) == 150  # 50 * 6 / 2, of 1,225


@pytest.mark.parametrize(
    "text", ["(Wendigo is) why we go there", "It works. And then it stops", 'The "best" film of all', "Too short to use"]
)
def test_openings_that_want_no_continuation_are_no_prompts(text: str) -> None:
    assert not [prompt for prompts in (ppo_prompts, eval_prompts) for prompt in prompts([sentence(0, text, (0.0,))])]


@pytest.mark.embedded
def test_the_real_sets_are_large_enough_and_disjoint() -> None:
    ratings = load_ratings()
    prompts, questions = ppo_prompts(ratings), eval_prompts(ratings)
    assert len(prompts) >= 500 and len(questions) >= 400
    sentences = {split: sft_sentences(ratings, split=split) for split in SHARES}
    assert len(sentences["train"]) >= 4500 and len(sentences["eval"]) >= 400
    assert all(5 <= len(text.split()) <= 30 for text in sentences["train"])
    opened = {split: {" ".join(text.lower().split()[:2]) for text in texts} for split, texts in sentences.items()}
    opened["ppo"] |= {" ".join(prompt.lower().split()[:2]) for prompt in prompts}
    opened["eval"] |= {" ".join(prompt.lower().split()[:2]) for prompt in questions}
    assert sum(map(len, opened.values())) == len(set().union(*opened.values()))
    pairs = rating_pairs(ratings, seed=0)
    assert len(pairs.train) > 2500 and len(pairs.held_out) > 1200
    votes = [row["chosen_mean"] > row["rejected_mean"] for row in pairs.train if not row["tie"]]
    assert 0.85 < sum(votes) / len(votes) < 0.90  # one person agrees with the majority in about 88 of 100 pairs
