"""Four disjoint sets of sentences by their opening words, and what the stages make of them.

A set is drawn by a hash of the first two words, so two sentences that open alike always fall into the same set: no prompt of PPO
or of the evaluation was an opening in fine-tuning, in reward training or in the judge's training.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypedDict

from surefoot.embedded.ratings import RatedSentence

Split = Literal["train", "judge", "ppo", "eval"]

SHARES: dict[Split, float] = {"train": 0.55, "judge": 0.30, "ppo": 0.09, "eval": 0.06}
PAIR_WORDS = 2  # a pair's prompt
PROMPT_WORDS = 3  # a prompt of PPO or of the evaluation

_PLAIN_WORD = re.compile(r"[^\W_]+(?:['’&,/][^\W_]*)*")  # a word of an opening that still wants to be continued


class PairRow(TypedDict):
    """Two sentences with the same opening words and what one person said of each: TRL's preference row with the truth beside it.

    `prompt + chosen` is a whole sentence: the completion keeps its leading space. A tie has its two sides in drawn order.
    """

    prompt: str
    chosen: str
    rejected: str
    tie: bool  # the two people gave the same number
    chosen_rating: float  # by the one person who was drawn for it
    rejected_rating: float
    chosen_mean: float  # over all people; may contradict the vote: that is the label noise
    rejected_mean: float
    chosen_id: str
    rejected_id: str


@dataclass(frozen=True, slots=True)
class RatingPairs:
    """Pairs to train on and pairs held out; no prompt, hence no sentence, occurs in both."""

    train: list[PairRow]
    held_out: list[PairRow]


def split_of(text: str) -> Split:
    """The set of a sentence, by a hash of its first two words (case and punctuation at their edges do not count).

    `SHARES` are shares of openings; frequent openings ("The film") make the shares of sentences differ by a few per cent.
    """
    point = point_of(opening_of(text))
    for split, share in SHARES.items():
        point -= share
        if point < 0:
            return split
    return "eval"  # rounding at the upper end


def sft_sentences(
    ratings: Iterable[RatedSentence], *, split: Split = "train", min_words: int = 5, max_words: int = 30
) -> list[str]:
    """Distinct sentences of a set, good and bad reviews alike: fine-tuning teaches the domain, not the opinion. In hashed order.

    The set "eval" gives the held-out sentences on which a fine-tuned model's loss is measured.
    """
    texts = {one.text for one in ratings if split_of(one.text) == split and min_words <= len(one.text.split()) <= max_words}
    return _shuffled(texts)


def rating_pairs(
    ratings: Iterable[RatedSentence],
    *,
    seed: int,
    pairs_per_sentence: int = 6,
    held_out_share: float = 1 / 3,
    split: Split = "train",
) -> RatingPairs:
    """Pairs of sentences of a set that share their first two words; the vote compares ONE drawn rater of each, so noise is real.

    Every pair draws its raters anew. Ties are kept. `pairs_per_sentence` bounds how often a sentence occurs on average: an
    opening of n sentences gives min(n (n - 1) / 2, n pairs_per_sentence / 2) pairs, else "This is" alone would be a third of
    all. Whole openings, whatever their case, are held out until they hold `held_out_share` of the sentences.
    """
    draw = random.Random(seed)
    groups: dict[str, dict[str, RatedSentence]] = defaultdict(dict)
    for one in ratings:
        words = one.text.split()
        if len(words) > PROMPT_WORDS and split_of(one.text) == split:
            groups[" ".join(words[:PAIR_WORDS])].setdefault(one.text, one)
    families: dict[str, list[str]] = defaultdict(list)  # "A film", "a film" and "A film," stay together
    for prompt in sorted(prompt for prompt, group in groups.items() if len(group) > 1):
        families[opening_of(prompt)].append(prompt)
    order = sorted(families)
    draw.shuffle(order)
    wanted = held_out_share * sum(len(groups[prompt]) for family in families.values() for prompt in family)
    pairs = RatingPairs([], [])
    for opening in order:
        side = pairs.held_out if wanted > 0 else pairs.train
        for prompt in families[opening]:
            side += _pairs_of(prompt, list(groups[prompt].values()), pairs_per_sentence, draw)
            wanted -= len(groups[prompt])
    draw.shuffle(pairs.train)
    draw.shuffle(pairs.held_out)
    return pairs


def ppo_prompts(ratings: Iterable[RatedSentence]) -> list[str]:
    """Distinct first three words of the sentences of the set "ppo", in hashed order: any first n are a fair sample."""
    return _prompts(ratings, "ppo")


def eval_prompts(ratings: Iterable[RatedSentence]) -> list[str]:
    """The same for the set "eval", on which before and after are compared; disjoint from PPO's even in their first two words."""
    return _prompts(ratings, "eval")


def _prompts(ratings: Iterable[RatedSentence], split: Split) -> list[str]:
    """Openings that want a continuation: three words of letters and digits, no bracket or quotation open, no full stop yet."""
    found: dict[str, str] = {}
    for one in ratings:
        words = one.text.split()
        opening = words[:PROMPT_WORDS]
        if len(words) > PROMPT_WORDS + 1 and split_of(one.text) == split and all(map(_PLAIN_WORD.fullmatch, opening)):
            found.setdefault(" ".join(opening).lower(), " ".join(opening))
    return _shuffled(found.values())


def _pairs_of(opening: str, group: Sequence[RatedSentence], pairs_per_sentence: int, draw: random.Random) -> list[PairRow]:
    every = list(combinations(group, 2))
    chosen = draw.sample(every, min(len(every), max(1, len(group) * pairs_per_sentence // 2)))
    return [_vote(opening, one, other, draw) for one, other in chosen]


def _vote(opening: str, one: RatedSentence, other: RatedSentence, draw: random.Random) -> PairRow:
    sides = [(one, draw.choice(one.raters)), (other, draw.choice(other.raters))]
    draw.shuffle(sides)  # a tie keeps this order
    (won, high), (lost, low) = sorted(sides, key=lambda side: -side[1])
    return PairRow(
        prompt=opening,
        chosen=won.text[len(opening) :],
        rejected=lost.text[len(opening) :],
        tie=high == low,
        chosen_rating=high,
        rejected_rating=low,
        chosen_mean=won.mean,
        rejected_mean=lost.mean,
        chosen_id=won.id,
        rejected_id=lost.id,
    )


def opening_of(text: str) -> str:
    return " ".join(re.sub(r"^\W+|\W+$", "", word) for word in text.lower().split()[:PAIR_WORDS])


def point_of(text: str) -> float:
    """A fixed point of [0, 1) for a text, the same on every machine (Python's own hash is salted)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _shuffled(texts: Iterable[str]) -> list[str]:
    """In the order of a hash that is not the one of the split: a fixed order without meaning."""
    return sorted(texts, key=lambda text: hashlib.sha256(f"order {text}".encode()).digest())
