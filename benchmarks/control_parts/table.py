"""From runs to the table: scores scaled task by task, averaged over tasks and seeds, beside the paper's."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from surefoot.stages.control_seeds import interval

# Table 1 of Schulman et al. 2017: seven tasks, a million steps, three seeds
PAPER = {
    "none": -0.39,
    **{"clip-0.1": 0.76, "clip-0.2": 0.82, "clip-0.3": 0.70},
    **{"doubling-0.003": 0.68, "doubling-0.01": 0.74, "doubling-0.03": 0.71},
    **{"fixed-0.3": 0.62, "fixed-1": 0.71, "fixed-3": 0.72, "fixed-10": 0.69},
}
LABELS = {
    "none": "no clipping or penalty",
    "clip": "clipping, epsilon = {}",
    "doubling": "adaptive KL, doubling rule, target {}",
    "exponential": "adaptive KL, the chapter's exponential rule, target {}",
    "fixed": "fixed KL, beta = {}",
}


def label(setting: str) -> str:
    kind, _, value = setting.partition("-")
    return LABELS[kind].format(value)


def summarized(files: list[dict[str, Any]], settings: list[str]) -> dict[str, Any]:
    """`files` are the results of one number of steps: runs with `seeds`, and random returns with `mean`.

    A setting has a score where each of the tasks has a run of it. The interval is that of the mean over seeds, a seed's figure
    being its mean over tasks.
    """
    random = {each["task"]: each["mean"] for each in files if "mean" in each}
    scores = {
        (each["task"], each["setting"]): {s: run["score"] for s, run in each["seeds"].items()}
        for each in files
        if "seeds" in each
    }
    tasks = sorted({task for task, _ in scores if task in random})
    scale = {
        task: {"random": random[task], "best": max(max(runs.values()) for (t, _), runs in scores.items() if t == task)}
        for task in tasks
    }
    rows = {}
    for setting in settings:
        found = {task: scores[task, setting] for task in tasks if (task, setting) in scores}
        if not found:
            continue
        scaled = {task: {s: _scaled(score, **scale[task]) for s, score in runs.items()} for task, runs in found.items()}
        row: dict[str, Any] = {"returns": {task: fmean(runs.values()) for task, runs in found.items()}}
        row["scaled"] = {task: fmean(runs.values()) for task, runs in scaled.items()}
        if len(found) == len(tasks):
            row["score"] = fmean(row["scaled"].values())
            shared = set.intersection(*(set(runs) for runs in scaled.values()))
            means = [fmean(runs[s] for runs in scaled.values()) for s in sorted(shared)]
            row["seeds"] = len(means)
            row["interval"] = list(interval(means)) if len(means) > 1 else None
        rows[setting] = row
    return {"tasks": scale, "rows": rows}


def _scaled(score: float, random: float, best: float) -> float:
    return (score - random) / (best - random) if best > random else 0.0


def as_markdown(summary: dict[str, Any]) -> str:
    """Scores beside the paper's, and each task's mean return."""
    tasks = list(summary["tasks"])
    lines = ["| | paper | here | " + " | ".join(tasks) + " |", "|---" * (3 + len(tasks)) + "|"]
    for setting, row in summary["rows"].items():
        paper = f"{PAPER[setting]:.2f}" if setting in PAPER else ""
        score = f"{row['score']:.2f}" if "score" in row else ""
        if row.get("interval") is not None:
            score += f" ± {(row['interval'][1] - row['interval'][0]) / 2:.2f}"
        returns = [f"{row['returns'][task]:,.0f}" if task in row["returns"] else "" for task in tasks]
        lines.append(f"| {label(setting)} | {paper} | {score} | " + " | ".join(returns) + " |")
    for name in ("random", "best"):
        values = [f"{summary['tasks'][task][name]:,.0f}" for task in tasks]
        lines.append(
            f"| {name if name == 'random' else 'the best run'} | | {0 if name == 'random' else 1} | " + " | ".join(values) + " |"
        )
    return "\n".join(lines)
