"""A small made-up language of reviews, with raters: sentences, ratings and gold judge of the `tiny` preset, all from a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

SUBJECTS = (
    *("film", "plot", "cast", "score", "pace", "script", "scene", "ending", "hero", "villain", "music", "humor", "camera"),
    *("lighting", "dialog", "story", "acting", "opening", "sequel", "drama", "trailer", "setting", "montage", "costume"),
)
VERBS = ["was", "seemed", "felt", "looked", "stayed", "became", "remained", "proved"]
ADVERBS = ["truly", "rather", "very", "quite", "so"]
VALENCE = {
    "superb": 3.5, "lovely": 3.0, "bright": 2.0, "moving": 2.5, "good": 1.5, "fine": 1.0, "plain": 0.0, "long": -0.5, "odd": -0.5,
    "flat": -1.5, "dull": -2.0, "weak": -2.0, "bad": -2.5, "awful": -3.5,
}  # fmt: skip


NUM_OPINIONS = (0, 1, 2, 2, 2, 2, 2, 3)  # words of opinion in a sentence, drawn from these
FULL_OPINION = 2  # a sentence with fewer says little, and is rated so: else a model would learn to say little


def sentences(count: int, seed: int) -> list[str]:
    """`count` sentences like "the plot seemed rather dull and long ."; some have no opinion and end at once."""
    draw = random.Random(seed)
    out = []
    for _ in range(count):
        words = ["the", draw.choice(SUBJECTS), draw.choice(VERBS)]
        for k in range(draw.choice(NUM_OPINIONS)):
            words += ["and"] * (k > 0) + [draw.choice(ADVERBS)] * (draw.random() < 0.4) + [draw.choice(tuple(VALENCE))]
        out.append(" ".join([*words, "."]))
    return out


def gold(texts: Sequence[str]) -> list[float]:
    """The true rating of a text: the sum of its words' valences over their number, or over FULL_OPINION where there are fewer."""
    out = []
    for text in texts:
        found = [VALENCE[word] for word in text.split() if word in VALENCE]
        out.append(sum(found) / max(len(found), FULL_OPINION))
    return out


def rating(text: str, seed: int) -> float:
    """One rater's rating: the gold one with noise of deviation 0.5, rounded, within -4..4."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    noise = random.Random(digest).gauss(0, 0.5)
    return float(max(-4, min(4, round(gold([text])[0] + noise))))


def vocabulary_texts() -> list[str]:
    """What the tiny tokenizer is trained on."""
    return sentences(2000, seed=12345)


def bucket(opening: str) -> int:
    """The set of an opening: 0 SFT and reward model (60 %), 1 PPO prompts (20 %), 2 evaluation prompts (20 %)."""
    point = hashlib.sha256(opening.encode()).digest()[0] / 256
    return 0 if point < 0.6 else 1 if point < 0.8 else 2
