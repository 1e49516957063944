"""What hacked rewards do to text: less variety, the same answer again, loops, other lengths. Pure functions of strings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from surefoot.errors import DataError

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")  # both apostrophes belong to a word


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Lengths of answers, in the unit they were given in; `deviation` is that of the population."""

    mean: float
    median: float
    minimum: float
    maximum: float
    deviation: float


def words(text: str) -> list[str]:
    """Lower-cased words and single punctuation marks: "Don't stop!!" -> ["don't", "stop", "!", "!"]."""
    return _WORD.findall(text.lower())


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams over all n-grams, pooled over the answers (Li et al. 2016). In [0, 1]; no n-gram at all gives 0.

    n-grams do not cross answers. The figure falls with the number of answers and with their length whatever the model does, so
    two models are compared on equally many answers under one length limit.

    Raises: DataError for n below 1 or no answer.
    """
    if n < 1:
        raise DataError(f"n = {n}; an n-gram has 1 or more words.")
    _refuse_none(texts, "distinct_n")
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def duplicate_share(texts: Sequence[str]) -> float:
    """Share of answers that occur at least twice; case and white space are ignored. Four equal answers among 8: 0.5."""
    _refuse_none(texts, "duplicate_share")
    keys = [" ".join(text.lower().split()) for text in texts]
    times = Counter(keys)
    return sum(times[key] > 1 for key in keys) / len(keys)


def repetition(texts: Sequence[str], n: int = 3) -> float:
    """Mean over answers of the share of n-grams that stood earlier in the same answer: 0 no loop, near 1 one phrase for ever.

    An answer of fewer than n words has no n-gram and counts 0.
    """
    _refuse_none(texts, "repetition")
    shares = []
    for text in texts:
        grams = _ngrams(words(text), n)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return fmean(shares)


def length_statistics(lengths: Sequence[float]) -> LengthStatistics:
    """Mean, median, extremes and deviation of lengths (tokens, words or characters, as given)."""
    if not lengths:
        raise DataError("length_statistics: no answers, so there is no mean length.")
    values = [float(length) for length in lengths]
    return LengthStatistics(fmean(values), float(median(values)), min(values), max(values), pstdev(values))


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _refuse_none(texts: Sequence[str], name: str) -> None:
    if isinstance(texts, str):
        raise DataError(f"{name} wants a list of answers and got one string.")
    if not texts:
        raise DataError(f"{name}: no answers to count.")
