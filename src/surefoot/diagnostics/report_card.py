"""The report card of a reward model: how often it is right and where, whether its confidence holds, and what it pays for (8.3.5).

All from scores of held-out pairs in the unit of the ranking loss (raw, log odds), so that it can be held against a scorer whose
calibration is known. Pure functions; the stage scores the pairs and the probes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surefoot.diagnostics.calibration import accuracy_interval, calibration
from surefoot.diagnostics.verdict import Finding
from surefoot.errors import DataError
from surefoot.intervals import Interval

Array = NDArray[np.float64]

TEMPERATURES = (0.02, 50.0)  # the range in which a temperature is looked for
FEW_PAIRS = 50  # below which hardly anything can be told
ECE_BAD = 0.05
PAID_FOR = 0.25  # deviations of the scores by which an edit that improves nothing may raise an answer
LENGTH_PAID = 0.4  # correlation of score and length within pairs


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out pairs with a preference, as scored: N entries each. `lengths` are tokens of the answers."""

    chosen: Array
    rejected: Array
    chosen_lengths: Array
    rejected_lengths: Array
    margins: Array
    sources: tuple[str, ...]
    prompts: tuple[Hashable, ...]

    def __len__(self) -> int:
        return int(self.chosen.size)

    @property
    def deviation(self) -> float:
        """Standard deviation of all scores: the unit in which probes are told."""
        return max(float(np.concatenate([self.chosen, self.rejected]).std()), 1e-9)


@dataclass(frozen=True, slots=True)
class Probe:
    """What an edit does to scores: the mean change in deviations with its 95 % interval, and the share of answers that rise."""

    name: str
    move: Interval
    rises: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "move": self.move.value,
            "interval": self.move.as_list(),
            "rises": self.rises,
            "count": self.move.count,
        }


def fitted_temperature(chosen: ArrayLike, rejected: ArrayLike) -> float:
    r"""T > 0 that makes P(chosen wins) = sigmoid(d / T) likeliest, d = R_w - R_l: the minimum of mean -log sigmoid(d / T).

    With a = 1 / T the loss is convex in a; its slope, mean of -d sigmoid(-a d), is brought to 0 by bisection within TEMPERATURES.
    At a bound where it does not change sign there: every pair right (T -> 0), or no better than a coin (T -> infinity).
    """
    d = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    if not d.size or not np.isfinite(d).all():
        raise DataError(f"a temperature is fitted on one finite pair or more; got {d.size} pairs.")

    def slope(a: float) -> float:
        return float((-d * np.exp(-np.logaddexp(0.0, a * d))).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(low) >= 0:
        return TEMPERATURES[1]
    if slope(high) <= 0:
        return TEMPERATURES[0]
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def temperature_figures(held: HeldOut) -> dict[str, Any]:
    """The temperature of all pairs, and error and loss before and after.

    "After" is honest: prompts are dealt into two halves, and each half is measured at the temperature of the other.
    """
    folds = _halves(held.prompts)
    scaled = np.ones(len(held))
    for half in (folds, ~folds):
        if half.any() and (~half).any():
            scaled[half] = fitted_temperature(held.chosen[~half], held.rejected[~half])
    d = held.chosen - held.rejected
    after = d / scaled
    zero = np.zeros_like(d)
    return {
        "temperature": fitted_temperature(held.chosen, held.rejected),
        "ece_before": calibration(d, zero).ece,
        "ece_after": calibration(after, zero).ece,
        "loss_before": float(np.logaddexp(0.0, -d).mean()),
        "loss_after": float(np.logaddexp(0.0, -after).mean()),
    }


def accuracy_by_margin(held: HeldOut, num_bins: int = 4) -> list[dict[str, Any]]:
    """Accuracy by how far apart people rated the two answers, in bins of equally many pairs; none where no margin is stated."""
    if not held.margins.any():
        return []
    edges = np.unique(np.quantile(held.margins, np.linspace(0, 1, num_bins + 1)))
    if edges.size == 1:
        edges = np.array([edges[0], edges[0]])
    which = np.clip(np.searchsorted(edges, held.margins, side="right") - 1, 0, edges.size - 2)
    names = [f"{round(edges[k], 2):g} to {round(edges[k + 1], 2):g}" for k in range(edges.size - 1)]
    return [row for k, name in enumerate(names) if (row := _accuracy(held, which == k, name)) is not None]


def accuracy_by_source(held: HeldOut) -> list[dict[str, Any]]:
    """Accuracy by where the votes are from; none where all are from one place."""
    names = sorted(set(held.sources))
    if len(names) < 2:
        return []
    sources = np.array(held.sources)
    return [row for name in names if (row := _accuracy(held, sources == name, name or "not said")) is not None]


def length_figures(held: HeldOut) -> dict[str, float]:
    """Pearson's r of score and length over answers, and of their differences within pairs; 0 where one of them is constant.

    `longer_wins` is the share of pairs of unequal length in which people chose the longer: what the data itself pays for length.
    """
    scores, lengths = np.concatenate([held.chosen, held.rejected]), np.concatenate([held.chosen_lengths, held.rejected_lengths])
    gap = held.chosen_lengths - held.rejected_lengths
    sign = np.where(np.arange(len(held)) % 2 == 0, 1.0, -1.0)  # winners stand first; without a turn both means would be off 0
    unequal = gap != 0
    return {
        "correlation": _correlation(scores, lengths),
        "within_pairs": _correlation(sign * (held.chosen - held.rejected), sign * gap),
        "longer_wins": float((gap[unequal] > 0).mean()) if unequal.any() else 0.5,
    }


def histogram(held: HeldOut, num_bins: int = 24) -> dict[str, list[float]]:
    """Counts of chosen and rejected scores in equally wide bins; `edges` are num_bins + 1 raw scores."""
    edges = np.histogram_bin_edges(np.concatenate([held.chosen, held.rejected]), bins=num_bins)
    counts = {
        name: np.histogram(scores, edges)[0].tolist() for name, scores in (("chosen", held.chosen), ("rejected", held.rejected))
    }
    return {"edges": edges.tolist(), **counts}


def probe(name: str, before: ArrayLike, after: ArrayLike, deviation: float) -> Probe:
    """The change of scores by an edit, in deviations, with the normal 95 % interval of its mean."""
    moved = (np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)) / deviation
    if moved.size < 2:
        raise DataError(f"probe {name}: {moved.size} answers; an interval needs two.")
    half = 1.96 * float(moved.std(ddof=1)) / math.sqrt(moved.size)
    mean = float(moved.mean())
    return Probe(name, Interval(mean, mean - half, mean + half, int(moved.size)), float((moved > 0).mean()))


def card(held: HeldOut, probes: Sequence[Probe]) -> dict[str, Any]:
    """Everything, in the form that card.json keeps; "verdict" is a list of {level, sentence}."""
    if not len(held):
        finding = Finding("warning", "No held-out pair has a preference, so nothing can be said of this reward model.")
        return {"num_pairs": 0, "verdict": [{"level": finding.level, "sentence": finding.sentence}]}
    accuracy = accuracy_interval(held.chosen, held.rejected, held.prompts)
    found: dict[str, Any] = {
        "num_pairs": len(held),
        "accuracy": accuracy.value,
        "accuracy_interval": accuracy.as_list(),
        "by_margin": accuracy_by_margin(held),
        "by_source": accuracy_by_source(held),
        "calibration": temperature_figures(held),
        "length": length_figures(held),
        "probes": [p.as_dict() for p in probes],
        "histogram": histogram(held),
        "deviation": held.deviation,
    }
    found["verdict"] = [{"level": f.level, "sentence": f.sentence} for f in card_findings(found)]
    return found


def card_findings(card: Mapping[str, Any]) -> list[Finding]:
    """The card in sentences: is it right, is it sure of the right things, what can be had without being better."""
    low, high = card["accuracy_interval"]
    right = (
        f"It is right on {card['accuracy']:.1%} of {card['num_pairs']:,} held-out pairs (95 % interval {low:.1%} to {high:.1%})"
    )
    if low <= 0.5:
        said = [Finding("bad", f"{right}: no better than a coin can be shown. More pairs, clearer choices, or another layer.")]
    else:
        said = [Finding("good" if low > 0.6 else "note", f"{right}.")]
    if card["num_pairs"] < FEW_PAIRS:
        said.append(Finding("warning", f"{card['num_pairs']} held-out pairs are few: every figure here is rough."))
    said += [*_sure(card["calibration"]), *_length(card["length"])]
    paid = [p for p in card["probes"] if p["interval"][0] > PAID_FOR]
    blind = [p for p in card["probes"] if p["name"] in ("shuffle", "off_topic") and p["interval"][1] > -0.05 and p not in paid]
    for p in paid:
        said.append(Finding("bad", f"It pays for {WORDS[p['name']]}: {p['move']:+.2f} deviations. PPO will find that."))
    for p in blind:
        said.append(Finding("warning", f"It hardly minds {WORDS[p['name']]} ({p['move']:+.2f} deviations)."))
    if card["probes"] and not paid and not blind:
        said.append(Finding("good", "None of the probed edits raises the score without making the answer better."))
    return said


WORDS = {
    "fluff": "an empty sentence at the end",
    "repeat": "saying everything twice",
    "truncate": "half an answer",
    "shuffle": "words in disorder",
    "flattery": "flattery",
    "off_topic": "an answer to another prompt",
}


def _sure(figures: Mapping[str, float]) -> list[Finding]:
    before, after, t = figures["ece_before"], figures["ece_after"], figures["temperature"]
    told = f"expected calibration error {before:.3f}, {after:.3f} at temperature {t:.2f}"
    if before <= ECE_BAD:
        return [Finding("good", f"80 % means about 80 %: {told}.")]
    how = "too sure of itself" if t > 1 else "less sure than it could be"
    return [
        Finding("warning", f"It is {how}: {told}. Divide its raw differences by the temperature before reading them as odds.")
    ]


def _length(figures: Mapping[str, float]) -> list[Finding]:
    r, share = figures["within_pairs"], figures["longer_wins"]
    if abs(r) < LENGTH_PAID:
        return []
    what = "longer" if r > 0 else "shorter"
    return [
        Finding(
            "warning",
            f"It prefers {what} answers: its score goes with length within pairs (r = {r:+.2f}); people chose the longer one in "
            f"{share:.0%}. Watch response_length/mean, or set ppo.length_penalty.",
        )
    ]


def _accuracy(held: HeldOut, inside: NDArray[np.bool_], name: str) -> dict[str, Any] | None:
    if not inside.any():
        return None
    prompts = [held.prompts[i] for i in np.flatnonzero(inside)]
    found = accuracy_interval(held.chosen[inside], held.rejected[inside], prompts)
    return {"name": name, "accuracy": found.value, "interval": found.as_list(), "count": found.count}


def _halves(prompts: Sequence[Hashable]) -> NDArray[np.bool_]:
    """True for the pairs of every second prompt, in the order of their first appearance: no prompt stands in both halves."""
    order = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return np.array([order[prompt] % 2 == 0 for prompt in prompts])


def _correlation(x: Array, y: Array) -> float:
    if x.size < 2 or x.std() < 1e-12 or y.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
