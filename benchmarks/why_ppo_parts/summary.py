"""From the runs to the numbers of the page: means over seeds with 95 % intervals, and falls of J by the size of the step."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from scipy.stats import t as student

Update = dict[str, Any]
RANGE = {"tokens": 1.0, "cartpole": 500.0}  # J of the best policy; 0 or about 20 at random
NOTABLE = 0.01  # of the range
KL_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, math.inf)


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"settings": [setting(*key, group) for key, group in grouped(runs).items()], "falls_by_kl": falls_by_kl(runs)}


def grouped(runs: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[list[Update]]]:
    """The updates of each seed, by task, objective and epochs."""
    groups: dict[tuple[str, str, int], list[list[Update]]] = defaultdict(list)
    for run in runs:
        groups[run["task"], run["objective"], run["epochs"]].append(run["updates"])
    return groups


def setting(task: str, objective: str, epochs: int, seeds: list[list[Update]]) -> dict[str, Any]:
    """One number a seed, then mean and interval over seeds. Shares are of a seed's updates; J in the task's unit.

    fell: the measured J was lower after the update. fell_surely and rose_surely: by more than two standard errors (tokens: at
    all). fell_notably: by more than 1 % of the range. ratio_mean_off: E[r] is more than two standard errors away from 1 on
    fresh samples.
    """
    figures: dict[str, Callable[[list[Update]], float]] = {
        "return_final": lambda seed: statistics.mean(u["return_after"] for u in seed[-5:]),
        "return_mean": lambda seed: statistics.mean(u["return_after"] for u in seed),
        "fell": lambda seed: share(u["change"] < 0 for u in seed),
        "fell_surely": lambda seed: share(u["change"] < -2 * u["change_se"] for u in seed),
        "rose_surely": lambda seed: share(u["change"] > 2 * u["change_se"] for u in seed),
        "fell_notably": lambda seed: share(u["change"] < -NOTABLE * RANGE[task] for u in seed),
        "largest_fall": lambda seed: max(0.0, *(-u["change"] for u in seed)),
        "change_se": lambda seed: statistics.mean(u["change_se"] for u in seed),
        "kl_median": lambda seed: statistics.median(u["kl"] for u in seed),
        "kl_max": lambda seed: max(u["kl"] for u in seed),
        "ratio_var_median": lambda seed: statistics.median(u["ratio_var_exact"] for u in seed),
        "ratio_var_max": lambda seed: max(u["ratio_var_exact"] for u in seed),
        "ratio_max_median": lambda seed: statistics.median(u["ratio_max"] for u in seed),
        "ratio_max": lambda seed: max(u["ratio_max"] for u in seed),
        "ratio_mean_off": lambda seed: share(abs(standard_errors_from_1(u)) > 2 for u in seed),
        "ratio_above_100": lambda seed: share(u["ratio_max"] >= 100 for u in seed),
        "clip_fraction": lambda seed: statistics.mean(u["clip_fraction"] for u in seed),
        "outside_fraction": lambda seed: statistics.mean(u["outside_fraction"] for u in seed),
        "beta_final": lambda seed: seed[-1]["beta"],
    }
    facts = {"task": task, "objective": objective, "epochs": epochs, "seeds": len(seeds), "updates": len(seeds[0])}
    return facts | {name: interval([figure(seed) for seed in seeds]) for name, figure in figures.items()}


def markdown(settings: list[dict[str, Any]], task: str) -> str:
    """The settings of a task as a table: means over seeds, and ± the half-width of the 95 % interval."""
    clear = "fell_notably" if task == "tokens" else "fell_surely"
    columns = {
        "J at the end": ("return_final", ""),
        "KL, median": ("kl_median", ""),
        "KL, largest": ("kl_max", ""),
        "variance of r, largest": ("ratio_var_max", ""),
        "largest r": ("ratio_max", ""),
        "clipped": ("clip_fraction", "%"),
        "E[r] off by 2 s.e.": ("ratio_mean_off", "%"),
        "J fell": ("fell", "%"),
        "by > 1 %" if task == "tokens" else "by > 2 s.e.": (clear, "%"),
        "largest fall": ("largest_fall", ""),
    }
    lines = ["| objective | epochs | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for row in (row for row in settings if row["task"] == task):
        cells = [cell(row[name], unit) for name, unit in columns.values()]
        lines.append(f"| {row['objective']} | {row['epochs']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(figure: dict[str, float], unit: str) -> str:
    """Two digits; in percent where asked. KLs and ratios are skewed: where the interval reaches 0 it is left to the JSON."""
    mean, half = figure["mean"], figure.get("half_width", 0.0)
    half = half if unit or half < mean else 0.0
    form, scale = ("{:.0f} %", 100.0) if unit else ("{:.2g}", 1.0)
    form = "{:.0f}" if not unit and 100 <= abs(mean) < 1e5 else form
    text = form.format(scale * mean)
    return f"{text.removesuffix(' %')} ± {form.format(scale * half)}" if half > 0 else text


def standard_errors_from_1(update: Update) -> float:
    """(mean of r - 1) / its standard error; 0 where no ratio differs from 1."""
    return (update["ratio_mean"] - 1) / update["ratio_mean_se"] if update["ratio_mean_se"] > 0 else 0.0


def share(answers: Iterable[bool]) -> float:
    return statistics.mean(map(float, answers))


def interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds and the half-width of Student's 95 % interval; no half-width of one seed."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return {"mean": rounded(mean)}
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": rounded(mean), "half_width": rounded(half)}


def rounded(x: float) -> float:
    return float(f"{x:.4g}")


def falls_by_kl(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each task and decade of KL(pi_old || pi_theta): how many updates there were, and the shares after which J fell."""
    rows = []
    for task in dict.fromkeys(run["task"] for run in runs):
        updates = [u for run in runs if run["task"] == task for u in run["updates"]]
        for low, high in itertools.pairwise(KL_EDGES):
            inside = [u for u in updates if low <= u["kl"] < high]
            if inside:
                rows.append(
                    {
                        "task": task,
                        "kl_from": low,
                        "kl_to": high if high < math.inf else None,
                        "updates": len(inside),
                        "fell": rounded(share(u["change"] < 0 for u in inside)),
                        "fell_surely": rounded(share(u["change"] < -2 * u["change_se"] for u in inside)),
                        "fell_notably": rounded(share(u["change"] < -NOTABLE * RANGE[task] for u in inside)),
                        "mean_change": rounded(statistics.mean(u["change"] for u in inside)),
                    }
                )
    return rows
