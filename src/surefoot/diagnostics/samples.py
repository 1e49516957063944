"""Which answers a report shows: the best, the worst and some at random; and answers along a PPO run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.diagnostics.run_view import Row, RunView, is_number
from surefoot.diagnostics.wording import as_text, number, signed

SHOWN_SAMPLES = 20
_BEST = 5  # and as many of the worst; the rest are drawn at random


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with both answers. `scores` are (judge, before, after); `tag` is best, worst or random."""

    tag: str
    prompt: str
    before: str
    after: str
    scores: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class StepSample:
    """One answer of the policy while it was trained."""

    step: str
    prompt: str
    completion: str
    facts: str


def chosen_samples(rows: Sequence[Row], *, judge: str = "judge", count: int = SHOWN_SAMPLES) -> list[Sample]:
    """Up to `count` rows: the 5 that gained most by `judge`, the 5 that gained least, and the rest drawn with a fixed seed.

    The gain is after - before of the judge, else of VADER, else of the reward. Rows without scores are drawn at random.
    """
    pairs = [row for row in rows if "before" in row and "after" in row]
    gains = {i: gain for i, row in enumerate(pairs) if (gain := _gain(row, judge)) is not None}
    ranked = sorted(gains, key=lambda i: (-gains[i], i))
    each = min(_BEST, count // 4) if len(pairs) > count else min(_BEST, len(ranked) // 3)
    tags = {i: "best" for i in ranked[:each]} | {i: "worst" for i in ranked[len(ranked) - each :]}
    others = [i for i in range(len(pairs)) if i not in tags]
    drawn = random.Random(0).sample(others, min(len(others), count - len(tags)))
    order = [*ranked[:each], *reversed(ranked[len(ranked) - each :]), *sorted(drawn)]
    return [_sample(pairs[i], tags.get(i, "random"), judge) for i in order]


def step_samples(run: RunView, *, each: int = 3) -> list[StepSample]:
    """Answers of the first, the middle and the last recorded step: the lowest, the middle and the highest score of each."""
    rows = [row for row in run.samples if "completion" in row and is_number(row.get("step"))]
    steps = sorted({row["step"] for row in rows})
    if not steps:
        return []
    chosen = []
    for step in dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])):
        here = sorted(
            (row for row in rows if row["step"] == step), key=lambda row: row["score"] if is_number(row.get("score")) else 0.0
        )
        where = sorted({round(i * (len(here) - 1) / max(1, each - 1)) for i in range(each)})
        chosen += [_step_sample(here[i]) for i in where]
    return chosen


def _scored(row: Row, judge: str) -> list[str]:
    """Names with a number before and after, the judge that decides first, the reward last. Lengths are no scores."""
    names = [key.removesuffix("_before") for key, value in row.items() if key.endswith("_before") and is_number(value)]
    order = {judge: 0, "judge": 1, "vader": 3, "reward": 4}
    return sorted((n for n in names if n != "length" and is_number(row.get(f"{n}_after"))), key=lambda n: order.get(n, 2))


def _gain(row: Row, judge: str) -> float | None:
    names = _scored(row, judge)
    return float(row[f"{names[0]}_after"]) - float(row[f"{names[0]}_before"]) if names else None


def _sample(row: Row, tag: str, judge: str) -> Sample:
    scores = tuple((name, signed(row[f"{name}_before"]), signed(row[f"{name}_after"])) for name in _scored(row, judge))
    prompt, before, after = (as_text(row.get(key, "")).strip() for key in ("prompt", "before", "after"))
    return Sample(tag, prompt, before, after, scores)


def _step_sample(row: Row) -> StepSample:
    facts = [f"{name} {number(row[name])}" for name in ("score", "kl", "length") if is_number(row.get(name))]
    if row.get("finished") is False:
        facts.append("cut by length")
    return StepSample(f"{row['step']:g}", as_text(row.get("prompt", "")), as_text(row["completion"]).strip(), ", ".join(facts))
