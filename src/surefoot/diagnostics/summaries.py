"""What a report says in numbers and rows: headline, before and after, chosen samples, seconds. Pure functions of views."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surefoot.diagnostics.charts import number
from surefoot.diagnostics.metrics import find_metric
from surefoot.diagnostics.run_view import ReportView, Row, RunView, is_number

SHOWN_SAMPLES = 20
_BEST = 5  # and as many of the worst; the rest are drawn at random


@dataclass(frozen=True, slots=True)
class BigNumber:
    """A figure of the headline: its name, its value or `before` -> `after`, a line below it."""

    name: str
    before: str
    after: str
    note: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the table of all figures of verdict.json."""

    title: str
    key: str
    before: str
    after: str
    unit: str
    healthy: str


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


@dataclass(frozen=True, slots=True)
class LengthGap:
    """Pair accuracy of the pairs whose chosen answer is longer by `gap` tokens."""

    gap: str
    accuracy: str
    pairs: str


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of a stage, in words, and its share of the longest for the bar (0 to 100)."""

    name: str
    words: str
    percent: float


@dataclass(frozen=True, slots=True)
class RecordedNumber:
    """A recorded key's first and last value and its entry in docs/metrics.md; `what` is empty where there is none."""

    key: str
    first: str
    last: str
    what: str
    healthy: str


# title, key in verdict.json, is a share
_PAIRED = (
    ("Judge", "judge", False),
    ("VADER", "vader", False),
    ("Reward model", "reward", False),
    ("Distinct-2", "distinct2", False),
    ("Length", "length", False),
    ("SFT loss", "sft_loss", False),
)
_SINGLE = (
    ("Win rate by the judge", "judge_win_rate", True),
    ("KL to the SFT model", "kl_policy_sft", False),
    ("Duplicates", "duplicates", True),
    ("Accuracy of the reward model", "reward_model_accuracy", True),
)


def verdict_numbers(verdict: Row) -> list[BigNumber]:
    """The headline of an evaluation: win rate, judges, KL, variety, length; those that are missing are left out."""
    found = []
    if is_number(rate := verdict.get("judge_win_rate")):
        prompts = verdict.get("num_prompts")
        of = f"of {prompts:,} held-out prompts" if is_number(prompts) else "of held-out prompts"
        found.append(BigNumber("Wins by the judge", "", _share(rate), _span(verdict.get("judge_win_rate_interval")) or of))
    judge = as_text(verdict.get("judge", "never trained on"))
    judges = [("judge", "Judge", judge)] + ([("vader", "VADER", "a lexicon, −1 to 1")] if judge != "vader" else [])
    found += _paired_numbers(verdict, judges)
    if is_number(kl := verdict.get("kl_policy_sft")):
        found.append(BigNumber("KL to the SFT model", "", f"{kl:.1f}", "nats a sequence"))
    return found + _paired_numbers(
        verdict, (("distinct2", "Distinct-2", "variety of word pairs"), ("length", "Length", "tokens an answer"))
    )


def run_numbers(run: RunView) -> list[BigNumber]:
    """The headline of a single run: its main curves, first -> last."""
    keys = {
        "ppo": ("objective/scores", "objective/kl", "policy/entropy_avg", "critic/explained_variance", "response_length/mean"),
        "sft": ("loss", "validation/loss"),
        "reward": ("loss", "accuracy", "validation/loss", "validation/accuracy"),
        "control": ("rollout/ep_rew_mean", "train/explained_variance"),
    }.get(run.kind, ())
    found = []
    for key in keys:
        _, values = run.column(key)
        metric = find_metric(key, run.kind)
        if values and metric is not None:
            found.append(BigNumber(metric.title, number(values[0]) if len(values) > 1 else "", number(values[-1]), metric.unit))
    return found


def run_words(run: RunView) -> list[str]:
    """What a single run did, in sentences. No judge, no word of better."""
    if not run.metrics:
        return []
    steps = [float(row["step"]) for row in run.metrics if is_number(row.get("step"))]
    told = [f"{len(run.metrics):,} steps were recorded" + (f", the last is step {max(steps):g}." if steps else ".")]
    sentences = {
        "ppo": (
            ("objective/scores", "The reward went from {} to {}."),
            ("objective/kl", "The KL to the SFT model went from {} to {} nats."),
        ),
        "sft": (
            ("validation/loss", "The held-out loss went from {} to {} nats a token."),
            ("loss", "The training loss went from {} to {}."),
        ),
        "reward": (
            ("validation/accuracy", "Held-out pair accuracy went from {} to {}."),
            ("accuracy", "Pair accuracy went from {} to {}."),
        ),
        "control": (("rollout/ep_rew_mean", "The episode return went from {} to {}."),),
    }.get(run.kind, ())
    for key, sentence in sentences:
        _, values = run.column(key)
        if len(values) > 1:
            told.append(sentence.format(number(values[0]), number(values[-1])))
    if run.kind == "ppo" and not any(key.startswith("judge/") for key in run.recorded):
        told.append("No judge was asked, so this page shows that the reward moved, not that the answers are better.")
    return told


def comparisons(verdict: Row) -> list[Comparison]:
    """Every figure of verdict.json that is a number, before and after, with its unit and healthy range."""
    rows = []
    for title, key, is_share in _PAIRED:
        before, after = verdict.get(f"{key}_before"), verdict.get(f"{key}_after")
        if is_number(before) or is_number(after):
            rows.append(_comparison(title, f"{key}_after", before, after, is_share))
    if is_number(verdict.get("eos_rate")):
        rows.append(_comparison("Answers that end", "eos_rate", verdict.get("eos_rate_before"), verdict["eos_rate"], True))
    for title, key, is_share in _SINGLE:
        if is_number(value := verdict.get(key)):
            row = _comparison(title, key, None, value, is_share)
            span = _span(verdict.get(f"{key}_interval"))
            rows.append(Comparison(row.title, row.key, "", f"{row.after} ({span})" if span else row.after, row.unit, row.healthy))
    best = verdict.get("best_of_n")
    if isinstance(best, Mapping):
        figures = ", ".join(f"{name} {number(value)}" for name, value in best.items() if is_number(value) and name != "n")
        rows.append(
            Comparison(f"Best of {best.get('n', 'n')} without training", "best_of_n", "", figures, "", _healthy("best_of_n"))
        )
    return rows


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


def durations(view: ReportView) -> list[Duration]:
    """Seconds by stage, of verdict.json, else the sums of each run's timings."""
    told = (view.verdict or {}).get("seconds")
    seconds = {str(k): float(v) for k, v in told.items() if is_number(v)} if isinstance(told, Mapping) else {}
    if not seconds:
        for run in view.stages:
            for row in run.timings:
                for key, value in row.items():
                    if key != "step" and is_number(value):
                        name = f"{run.name}: {key.removeprefix('timing/')}"
                        seconds[name] = seconds.get(name, 0.0) + float(value)
    most = max(seconds.values(), default=0.0) or 1.0
    return [Duration(name, clock(value), round(100 * value / most, 1)) for name, value in seconds.items()]


def recorded_numbers(run: RunView) -> list[RecordedNumber]:
    """Every number the run recorded, so that nothing is hidden because no chart shows it."""
    rows = []
    for key in run.recorded:
        _, values = run.column(key)
        metric = find_metric(key, run.kind)
        rows.append(
            RecordedNumber(
                key, number(values[0]), number(values[-1]), metric.what if metric else "", metric.healthy if metric else ""
            )
        )
    return rows


def length_gaps(held_out: Row) -> list[LengthGap]:
    """Accuracy of the reward model by length(chosen) - length(rejected): a scorer that pays for length shows here."""
    rows = held_out.get("accuracy_by_length_gap")
    if not isinstance(rows, list):
        return []
    known = [r for r in rows if isinstance(r, Mapping) and is_number(r.get("accuracy")) and is_number(r.get("count"))]
    found = []
    for row, following in zip(known, [*known[1:], None], strict=True):
        low, high = row.get("from"), None if following is None else following.get("from")
        if is_number(low) and is_number(high):
            words = f"{signed_count(low)} to {signed_count(high - 1)} tokens"
        elif is_number(low):
            words = f"{signed_count(low)} tokens or more"
        else:
            words = f"{signed_count(high - 1)} tokens or less" if is_number(high) else "any"
        found.append(LengthGap(words, _share(row["accuracy"]), f"{row['count']:,.0f}"))
    return found


def clock(seconds: float) -> str:
    """8.3 s, 4 min 05 s, 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def signed(value: float) -> str:
    """+1.93 or −0.21, with the minus sign of print, as wide as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def signed_count(value: float) -> str:
    """+10, 0 or −9."""
    return f"{value:+.0f}".replace("-", "−") if value else "0"


def as_text(value: object) -> str:
    """Text of a prompt or an answer: a string as it is, messages as role and content, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(m, Mapping) and "content" in m for m in value):
        return "\n".join(f"{m.get('role', '')}: {m['content']}" for m in value)
    return json.dumps(value, ensure_ascii=False)


def _paired_numbers(verdict: Row, wanted: Sequence[tuple[str, str, str]]) -> list[BigNumber]:
    found = []
    for key, name, note in wanted:
        before, after = verdict.get(f"{key}_before"), verdict.get(f"{key}_after")
        if is_number(after):
            found.append(BigNumber(name, _figure(key, before), _figure(key, after), note))
    return found


def _figure(key: str, value: Any) -> str:
    if not is_number(value):
        return ""
    return f"{value:.1f}" if key == "length" else f"{value:.2f}" if key == "distinct2" else signed(value)


def _comparison(title: str, key: str, before: Any, after: Any, is_share: bool) -> Comparison:
    show = _share if is_share else number
    metric = find_metric(key)
    unit = "" if is_share or metric is None else metric.unit
    was, now = (show(value) if is_number(value) else "" for value in (before, after))
    return Comparison(title, key, was, now, unit, _healthy(key))


def _healthy(key: str) -> str:
    metric = find_metric(key)
    return metric.healthy if metric else ""


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _span(interval: Any) -> str:
    if isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)):
        return f"95 % interval {100 * interval[0]:.0f} to {100 * interval[1]:.0f} %"
    return ""


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
