"""What a report says in numbers and rows: headline, before and after, seconds, every number. Pure functions of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surefoot.diagnostics.metrics import find_metric
from surefoot.diagnostics.run_view import ReportView, Row, RunView, is_number
from surefoot.diagnostics.wording import as_text, clock, interval_words, number, share, signed, signed_count


@dataclass(frozen=True, slots=True)
class BigNumber:
    """A figure of the headline: its name, its value or `before` -> `after`, a line below it."""

    name: str
    before: str
    after: str
    note: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the table of all figures: SFT, the policy with its interval, the best of n answers of SFT."""

    title: str
    before: str
    after: str
    interval: str
    best: str
    unit: str
    healthy: str


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


def alarm_sentences(run: RunView) -> list[str]:
    """A few sentences for each alarm that rang in a run of PPO: when, for which feature, what it means, and what to do."""
    sentences = []
    for key in run.recorded:
        steps = [step for step, value in zip(*run.column(key), strict=True) if value] if key.startswith("alarm/") else []
        metric = find_metric(key, "ppo")
        if steps and metric is not None:
            when = f"at update {steps[0]:g}" if len(steps) == 1 else f"in {len(steps)} updates from {steps[0]:g} to {steps[-1]:g}"
            kind = key.removeprefix("alarm/reward_")
            named = _paid_for(run, kind, steps[-1]) if kind != key else ""
            sentences.append(f"{metric.title}, {when}{named}. {metric.what} {metric.what_to_do}")
    return sentences


def _paid_for(run: RunView, kind: str, step: float) -> str:
    """What feature of this kind the reward paid for in an update, as it was recorded then."""
    key = f"drift/pays/{kind}"
    told = [as_text(row[key]) for row in run.metrics if row.get("step") == step and row.get(key)]
    return f": the reward pays for {told[-1]}" if told else ""


# title, keys of verdict.json before and after, key in its best_of_n, is a share
_FIGURES = (
    ("Win rate by the judge", "", "judge_win_rate", "judge_win_rate", True),
    ("Win rate by VADER", "", "vader_win_rate", "vader_win_rate", True),
    ("Judge", "judge_before", "judge_after", "judge", False),
    ("VADER", "vader_before", "vader_after", "vader", False),
    ("Reward model", "reward_before", "reward_after", "reward", False),
    ("KL to the SFT model", "", "kl_policy_sft", "kl", False),
    ("Distinct-2", "distinct2_before", "distinct2_after", "", False),
    ("Length", "length_before", "length_after", "", False),
    ("Answers that end", "eos_rate_before", "eos_rate", "", True),
    ("Duplicates", "duplicates_before", "duplicates", "", True),
    ("SFT loss", "sft_loss_before", "sft_loss_after", "", False),
    ("Accuracy of the reward model", "", "reward_model_accuracy", "", True),
)


def verdict_numbers(verdict: Row) -> list[BigNumber]:
    """The headline of an evaluation: win rate, judges, KL, variety, length; those that are missing are left out."""
    found = []
    if is_number(rate := verdict.get("judge_win_rate")):
        prompts = verdict.get("num_prompts")
        of = f"of {prompts:,} held-out prompts" if is_number(prompts) else "of held-out prompts"
        found.append(
            BigNumber("Wins by the judge", "", share(rate), interval_words(verdict.get("judge_win_rate_interval")) or of)
        )
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
        "control": ("eval/mean_reward", "rollout/ep_rew_mean", "train/explained_variance", "kl/beta"),
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
    lines = len(run.metrics)
    told = [
        f"{lines:,} step{' was' if lines == 1 else 's were'} recorded" + (f", the last is step {max(steps):g}." if steps else ".")
    ]
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
        "control": (
            ("rollout/ep_rew_mean", "The episode return, exploring, went from {} to {}."),
            ("eval/mean_reward", "By the likeliest actions it went from {} to {}."),
            ("kl/beta", "beta went from {} to {} as its rule followed the KL of an update."),
        ),
    }.get(run.kind, ())
    for key, sentence in sentences:
        _, values = run.column(key)
        if len(values) > 1 and (key != "kl/beta" or values[0] != values[-1]):
            told.append(sentence.format(number(values[0]), number(values[-1])))
    if run.kind == "ppo" and not any(key.startswith("judge/") for key in run.recorded):
        told.append("No judge was asked, so this page shows that the reward moved, not that the answers are better.")
    return told


def comparisons(verdict: Row) -> list[Comparison]:
    """Every figure of verdict.json that is a number, before and after, with its unit and healthy range."""
    found = verdict.get("best_of_n")
    best = dict(found) if isinstance(found, Mapping) else {}
    judge = as_text(verdict.get("judge", "judge"))
    best = {"judge": best.get(judge), "judge_win_rate": best.get(f"{judge}_win_rate"), **best}
    rows = []
    for title, before, after, best_key, is_share in _FIGURES:
        values = [verdict.get(before), verdict.get(after), best.get(best_key)]
        if not any(map(is_number, values)):
            continue
        show = share if is_share else number
        was, now, baseline = (show(value) if is_number(value) else "" for value in values)
        metric = find_metric(after)
        unit, healthy = ("" if is_share or metric is None else metric.unit), (metric.healthy if metric else "")
        rows.append(Comparison(title, was, now, interval_words(verdict.get(f"{after}_interval")), baseline, unit, healthy))
    return rows


def best_of(verdict: Row) -> str:
    """How the baseline without training is called, "best of 8"; empty where there is none."""
    best = verdict.get("best_of_n")
    if not isinstance(best, Mapping):
        return ""
    return f"best of {best['n']:g}" if is_number(best.get("n")) else "best of n"


def durations(view: ReportView) -> list[Duration]:
    """Seconds by stage, of verdict.json, else the sums of each run's timings."""
    told = (view.verdict or {}).get("seconds")
    seconds = {str(k): float(v) for k, v in told.items() if is_number(v)} if isinstance(told, Mapping) else {}
    if not seconds:
        for run in view.stages:
            for row in run.timings:
                for key, value in row.items():
                    if key != "step" and not key.startswith("time/") and is_number(value):  # time/fps is no number of seconds
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
        found.append(LengthGap(words, share(row["accuracy"]), f"{row['count']:,.0f}"))
    return found


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
