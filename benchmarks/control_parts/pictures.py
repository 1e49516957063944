"""The curves of Table 1 as one PNG on white: a panel a task, a line a setting."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure

from why_ppo_parts.pictures import STYLE, panels, saved

from .table import label

# Okabe and Ito's colours; of a kind with several values each has a line style
KINDS = {"none": "#000000", "clip": "#0072B2", "doubling": "#CC79A7", "exponential": "#E69F00", "fixed": "#009E73"}
STYLES = ("-", "--", ":", "-.")
COLUMNS = 2


def draw_curves(folder: Path, summary: dict[str, Any], path: Path) -> Path:
    """The mean over seeds of the return of the last 100 episodes, and the range of the seeds as a band."""
    with pyplot.rc_context(STYLE):
        figure = _curves(folder, summary)
        path.parent.mkdir(parents=True, exist_ok=True)
        return saved(figure, path)


def _curves(folder: Path, summary: dict[str, Any]) -> Figure:
    tasks, settings = list(summary["tasks"]), list(summary["rows"])
    rows = -(-len(tasks) // COLUMNS)
    title = "Return of the last 100 training episodes: mean of the seeds, and their range"
    figure, axes = panels(rows, min(COLUMNS, len(tasks)), width=12, height=0.9 + 3.6 * rows, title=title)
    places = [ax for row in axes for ax in row]
    for ax in places[len(tasks) :]:
        ax.set_visible(False)
    for ax, task in zip(places, tasks, strict=False):
        for setting in settings:
            if (file := folder / f"{task}-{setting}.json").exists():
                _draw(ax, json.loads(file.read_text(encoding="utf-8"))["seeds"], setting, settings)
        ax.axhline(summary["tasks"][task]["random"], color="#777777", linewidth=1, linestyle=(0, (1, 3)))
        ax.set_title(f"{task}-v5 (dotted line: random actions)")
        ax.set_xlabel("steps")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
    lines = {name: line for ax in places for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, handlelength=2.4)
    return figure


def _draw(ax: Any, seeds: dict[str, dict[str, Any]], setting: str, settings: list[str]) -> None:
    kind = setting.partition("-")[0]
    alike = [each for each in settings if each.partition("-")[0] == kind]
    points = [
        (steps, returns)
        for steps, *returns in zip(next(iter(seeds.values()))["steps"], *(run["return"] for run in seeds.values()), strict=True)
        if None not in returns  # no episode has ended yet
    ]
    x = [steps for steps, _ in points]
    style = {"color": KINDS[kind], "linestyle": STYLES[alike.index(setting) % len(STYLES)]}
    ax.plot(x, [fmean(returns) for _, returns in points], label=label(setting), linewidth=1.8, **style)
    ax.fill_between(x, [min(r) for _, r in points], [max(r) for _, r in points], color=KINDS[kind], alpha=0.08, linewidth=0)
