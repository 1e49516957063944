"""What the alarms say of recorded runs: which rang, when, and whether the planted feature was named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from surefoot.config import PPOConfig
from surefoot.intervals import wilson_interval
from surefoot.stages.alarms import REWARD, Watch

from .runs import SHIFT_AFTER

SHAPE, TOKENS = ("length", "repetition"), ("token", "position")
Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def rang(updates: Sequence[Mapping[str, Any]], *, judged: bool) -> list[tuple[int, str, str]]:
    """(update, alarm, words) of every alarm that began to ring, under the limits of the configuration."""
    watch, cfg, found = Watch(), PPOConfig(), []
    for number, row in enumerate(updates, 1):
        metrics, words = dict(row["metrics"]), dict(row["words"])
        if not judged:
            metrics = {key: value for key, value in metrics.items() if not key.startswith("judge/")}
            metrics |= {key: value for key, value in row["unjudged"].items() if not isinstance(value, str)}
            words |= {key: value for key, value in row["unjudged"].items() if isinstance(value, str)}
        watch, ringing = watch.after(metrics, cfg, words)
        found += [(number, name, told) for name, told in ringing.items() if watch.is_new(name)]
    return found


def verdict(run: Mapping[str, Any], *, judged: bool) -> dict[str, Any]:
    """What rang in a run; whether the planted feature was named, and whether the first feature that was named is the planted."""
    events = rang(run["updates"], judged=judged)
    named = [event for event in events if event[1] in REWARD]
    right = [event for event in named if event[1] == run["alarm"] and run["word"] in event[2]]
    return {
        "rang": [[update, name, told] for update, name, told in events],
        "named_at": right[0][0] if right else None,
        "named_first": bool(right) and right[0][0] == named[0][0],
    }


def summarized(runs: Runs) -> dict[str, Any]:
    """Counts by kind, with the judge and without, and what rang in every run."""
    kinds = list(dict.fromkeys(kind for kind, _ in runs))
    out: dict[str, Any] = {"limits": limits(), "judged": {}, "unjudged": {}, "runs": {}}
    for way in ("judged", "unjudged"):
        for kind in kinds:
            each = {seed: verdict(run, judged=way == "judged") for (own, seed), run in runs.items() if own == kind}
            out[way][kind] = _counts(kind, list(each.values()))
            out["runs"] |= {f"{kind}-{seed} {way}": found for seed, found in each.items()}
    return out


def _counts(kind: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the runs of one kind: how many rang, how many named the planted feature, how many rang for a change of prompts."""
    total = len(found)
    quiet = sum(not run["rang"] for run in found)
    if kind in ("clean", "control"):
        prompts = sum(any(name == "prompts" for _, name, _ in run["rang"]) for run in found)
        return {
            "runs": total,
            "rang": total - quiet,
            "rang_interval": _interval(total - quiet, total),
            "rang_for_prompts": prompts,
        }
    if kind == "shift":
        after = [[u for u, name, _ in run["rang"] if name == "prompts" and u > SHIFT_AFTER] for run in found]
        delays = [min(updates) - SHIFT_AFTER for updates in after if updates]
        early = sum(any(name == "prompts" and u <= SHIFT_AFTER for u, name, _ in run["rang"]) for run in found)
        return {"runs": total, "within_5": sum(d <= 5 for d in delays), "delays": delays, "too_early": early}
    named = [run["named_at"] for run in found if run["named_at"] is not None]
    return {
        "runs": total,
        "named": len(named),
        "named_interval": _interval(len(named), total),
        "named_first": sum(run["named_first"] for run in found),
        "median_update": sorted(named)[len(named) // 2] if named else None,
    }


def _interval(count: int, total: int) -> list[float]:
    """Wilson's, 95 %."""
    found = wilson_interval(count, total)
    return [round(found.low, 3), round(found.high, 3)]


def limits() -> dict[str, Any]:
    """The limits of the alarms as the configuration has them."""
    return {name: value for name, value in PPOConfig().model_dump().items() if name.startswith("alarm_")}


def calibrated(runs: Runs) -> dict[str, Any]:
    """Of clean runs, the most extreme figure of each run that would have been out of range in two updates in a row, sorted.

    Beginning with the largest: a limit between the k-th and the next would have rung in k of the runs.
    """
    meters = {
        "alarm_feature": lambda row, first: max(_shares(row["metrics"], TOKENS) + _shares(row["unjudged"], ("position",))),
        "alarm_feature_unjudged": lambda row, first: max(_shares(row["unjudged"], ("token",))),
        "alarm_shape": lambda row, first: max(_shares(row["metrics"], SHAPE) + _shares(row["unjudged"], SHAPE)),
        "alarm_distance": lambda row, first: row["metrics"]["drift/distance"] / first["drift/distance"],
        "alarm_prompts (states)": lambda row, first: row["metrics"].get("drift/prompt_states", 0.0),
        "alarm_prompts (tokens)": lambda row, first: row["metrics"].get("drift/prompt_tokens", 0.0),
        "alarm_prompts (length)": lambda row, first: row["metrics"].get("drift/prompt_length", 0.0) ** 0.5,
        "alarm_length": lambda row, first: abs(row["metrics"]["response_length/mean"] / first["response_length/mean"] - 1),
        "alarm_variety": lambda row, first: -row["metrics"]["drift/distinct_2"] / first["drift/distinct_2"],
        "alarm_entropy": lambda row, first: -row["metrics"]["policy/entropy_avg"] / first["policy/entropy_avg"],
        "alarm_kl": lambda row, first: row["metrics"]["objective/kl"],
        "alarm_fluency": lambda row, first: first["drift/fluency"] - row["metrics"]["drift/fluency"],
    }
    out: dict[str, Any] = {"runs": len(runs)}
    for name, meter in meters.items():
        extremes = []
        for run in runs.values():
            a, b, *later = run["updates"]
            first = {key: (a["metrics"][key] + b["metrics"][key]) / 2 for key in a["metrics"] if key in b["metrics"]}
            values = [meter(row, first) for row in later]
            extremes.append(max(min(pair) for pair in pairwise(values)))
        out[name] = [float(f"{value:.3g}") for value in sorted(extremes, reverse=True)]
    return out


def _shares(row: Mapping[str, Any], features: Sequence[str]) -> list[float]:
    return [row.get(f"drift/reward_{name}", 0.0) for name in features]


def markdown(figures: Mapping[str, Any]) -> str:
    """The table of docs/trust.md."""
    lines = ["| runs | with a judge | without judges |", "|---|---|---|"]
    for kind in figures["judged"]:
        lines.append(f"| {kind} | {_cell(kind, figures['judged'][kind])} | {_cell(kind, figures['unjudged'][kind])} |")
    return "\n".join(lines)


def _cell(kind: str, counts: Mapping[str, Any]) -> str:
    if kind in ("clean", "control"):
        return f"{counts['rang']} of {counts['runs']} rang, {counts['rang_for_prompts']} for prompts"
    if kind == "shift":
        return f"{counts['within_5']} of {counts['runs']} within 5 updates, {counts['too_early']} before the change"
    at = counts["median_update"]
    return f"{counts['named']} of {counts['runs']} named ({counts['named_first']} as the first), median update {at}"
