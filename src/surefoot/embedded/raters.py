"""Raters simulated from human ratings, for answers that nobody has rated: what rounds ask when no person is there.

A simulated rater sees the predicted mean rating of an answer with the noise of one person, rounded to their scale of -4 to 4, and
chooses the answer that it rates higher. It is a stand-in that says so: its opinions are a model's, its disagreement is people's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

NAME = "simulated-raters"  # as the store names the source of their votes: function:simulated-raters
LARGEST = 4


@dataclass(frozen=True, slots=True)
class SimulatedRaters:
    """Votes on pairs of texts. A pair's two raters are drawn from `seed` and the texts alone, so that a vote can be repeated.

    `mean_rating`: texts -> predicted mean ratings; `deviation`: of one person's rating around the mean.
    """

    mean_rating: Callable[[Sequence[str]], Sequence[float]]
    deviation: float
    seed: int

    def __call__(self, prompt: str, a: str, b: str) -> str | tuple[str, int]:
        """ "tie" for equal ratings, else the higher one with strength: a gap of 1 or 2 is 1, of 7 or 8 is 4."""
        draw = random.Random(hashlib.sha256(repr((self.seed, prompt, a, b)).encode("utf-8", "surrogatepass")).digest())
        texts = [prompt + a, prompt + b]
        ratings = [round(float(mean) + draw.gauss(0, self.deviation)) for mean in self.mean_rating(texts)]
        first, second = (max(-LARGEST, min(LARGEST, rating)) for rating in ratings)
        if first == second:
            return "tie"
        return ("a" if first > second else "b", (abs(first - second) + 1) // 2)


def simulated_raters(world: str, seed: int) -> SimulatedRaters:
    """The raters of the world: `tiny` (the gold rating, deviation 0.5, as the world's own), or the film reviews.

    Those of the film reviews know the ratings of the set "train" alone: the reward model may learn from the same people, and the
    judges of the evaluation from none of them. The deviation is that of the people of that set around their sentences' means.
    """
    if world == "tiny":
        from surefoot.embedded.tiny_world import gold

        return SimulatedRaters(gold, 0.5, seed)
    from surefoot.embedded.judges import MiniLMJudge
    from surefoot.embedded.ratings import load_ratings
    from surefoot.embedded.splits import split_of

    squares = [
        fmean((rating - fmean(one.raters)) ** 2 for rating in one.raters)
        for one in load_ratings()
        if split_of(one.text) == "train" and len(one.raters) > 1
    ]
    return SimulatedRaters(MiniLMJudge(split="train").score, fmean(squares) ** 0.5, seed)
