"""The pictures of docs/why-ppo.md, as PNG on white. Titles say what was found, with the measured numbers in them.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; each objective also has a marker of its own.
"""

from __future__ import annotations

import statistics
import textwrap
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .summary import KL_EDGES, RANGE, Update, grouped, standard_errors_from_1

OBJECTIVES = {
    "policy_gradient": ("policy gradient", "#D55E00", "o"),
    "clip": ("clip 0.2", "#0072B2", "s"),
    "penalty": ("penalty, fixed beta 1", "#009E73", "^"),
    "adaptive": ("penalty, adaptive beta", "#CC79A7", "D"),
}
TASKS = {"tokens": "8-word language", "cartpole": "CartPole-v1"}
RETURN = {"tokens": "J (exact; 1 is the best policy)", "cartpole": "J (steps an episode, 500 at most)"}
KINDS = {"k1": ("#D55E00", "o"), "k2": ("#E69F00", "s"), "k3": ("#0072B2", "^")}
EXACT = {"exact, states kept": ("#009E73", "D"), "exact, logits kept": ("#56B4E9", "v")}
STYLE = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
STYLE |= {"grid.color": "#e5e5e5", "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "white"}


def draw_all(runs: list[dict[str, Any]], summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draws every picture into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {(s["task"], s["objective"], s["epochs"]): s for s in summary["settings"]}
    with plt.rc_context(STYLE):
        figures = {
            "return": returns(runs, settings),
            "falls": falls(settings),
            "falls-by-kl": falls_by_kl(runs, summary["falls_by_kl"]),
            "step": step_sizes(settings),
            "ratio-mean": ratio_means(runs),
            "kl-error": kl_error(summary["kl"]),
            "kl-cost": kl_cost(summary["kl"]),
        }
        return [saved(figure, folder / f"why-ppo-{name}.png") for name, figure in figures.items()]


def saved(figure: Figure, path: Path) -> Path:
    """As PNG of 128 colours, a third of the bytes that all colours take."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)
    return path


def panels(rows: int, columns: int, *, width: float, height: float, title: str, **given: Any) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **given)
    figure.suptitle(textwrap.fill(title, int(9 * width)), fontsize=13, fontweight="bold", x=0.01, ha="left")
    return figure, axes


def legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=1.6, columnspacing=1.4)


def epochs_of(settings: dict[tuple[str, str, int], Any]) -> list[int]:
    return sorted({epochs for _, _, epochs in settings})


def mean(setting: dict[str, Any], name: str) -> float:
    return float(setting[name]["mean"])


def returns(runs: list[dict[str, Any]], settings: dict[tuple[str, str, int], Any]) -> Figure:
    """J after each update: the mean over seeds, and the range of the seeds as a band."""
    epochs, groups, most = epochs_of(settings), grouped(runs), max(epochs_of(settings))
    ends = {name: mean(settings["tokens", name, most], "return_final") for name in OBJECTIVES}
    title = (
        f"With {most} epochs a batch the plain policy gradient breaks down: J ends at {ends['policy_gradient']:.2f} in the "
        f"8-word language, clip at {ends['clip']:.2f}, penalty at {ends['penalty']:.2f}"
    )
    figure, axes = panels(2, len(epochs), width=12, height=6.4, title=title, sharey="row", sharex="row")
    for row, task in enumerate(TASKS):
        for column, n in enumerate(epochs):
            ax = axes[row][column]
            for name, (label, colour, _) in OBJECTIVES.items():
                curves = [[u["return_after"] for u in seed] for seed in groups[task, name, n]]
                by_update = list(zip(*curves, strict=True))
                x = range(1, len(by_update) + 1)
                low, middle, high = ([of(v) for v in by_update] for of in (min, statistics.mean, max))
                ax.plot(x, middle, color=colour, label=label, linewidth=2)
                ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.set_title(f"{n} epoch{'s' if n > 1 else ''} a batch" if row == 0 else "")
            ax.set_xlabel("update")
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes[row][0].set_ylabel(f"{TASKS[task]}\n{RETURN[task]}", fontsize=10)
    legend_below(figure, axes[0][0])
    return figure


def falls(settings: dict[tuple[str, str, int], Any]) -> Figure:
    """Shares of updates after which J fell; solid where the fall is notable (tokens) or beyond the noise (CartPole)."""
    epochs = epochs_of(settings)
    row = settings["tokens", "clip", max(epochs)]
    title = (
        f"A limited step is no guarantee: with {max(epochs)} epochs J, which is exact in the 8-word language, falls after "
        f"{mean(row, 'fell'):.0%} of clip's updates, after {mean(row, 'fell_notably'):.0%} of them by more than 1 % of its range"
    )
    figure, axes = panels(1, 2, width=12, height=4.6, title=title, sharey=True)
    solid = {"tokens": ("fell_notably", "more than 1 % of the range"), "cartpole": ("fell_surely", "more than 2 standard errors")}
    for ax, (task, (key, words)) in zip(axes[0], solid.items(), strict=True):
        for i, (name, (label, colour, _)) in enumerate(OBJECTIVES.items()):
            x = [k + (i - 1.5) * 0.2 for k in range(len(epochs))]
            clear, all_falls = ([mean(settings[task, name, n], share) for n in epochs] for share in (key, "fell"))
            ax.bar(x, all_falls, width=0.18, color=colour, alpha=0.3)
            ax.bar(x, clear, width=0.18, color=colour, label=label)
        ax.set_title(f"{TASKS[task]} (solid: by {words})")
        ax.set_xticks(range(len(epochs)), [f"{n}" for n in epochs])
        ax.set_xlabel("epochs a batch")
        ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes[0][0].set_ylabel("updates after which J fell")
    legend_below(figure, axes[0][0])
    return figure


CLEAR_FALL = {"tokens": "fell_notably", "cartpole": "fell_surely"}


def clear_falls(table: list[dict[str, Any]], task: str, low: float, high: float) -> float:
    """The share of clear falls among the updates whose KL lies between `low` and `high`; 0 where there are none."""
    rows = [row for row in table if row["task"] == task and low <= row["kl_from"] and (row["kl_to"] or 1e9) <= high]
    count = sum(row["updates"] for row in rows)
    return sum(row[CLEAR_FALL[task]] * row["updates"] for row in rows) / count if count else 0.0


def falls_by_kl(runs: list[dict[str, Any]], table: list[dict[str, Any]]) -> Figure:
    """Every update: the change of J against the KL it moved by; above each decade the share of clear falls."""
    small, large = ([clear_falls(table, task, *edges) for task in TASKS] for edges in ((0, 0.01), (1, 1e9)))
    title = (
        f"J falls in the large steps: clearly after {large[0]:.0%} (8-word language) and {large[1]:.0%} (CartPole) of the "
        f"updates beyond 1 nat, after {small[0]:.1%} and {small[1]:.1%} of those below 0.01 nats"
    )
    figure, axes = panels(1, 2, width=12, height=5.0, title=title)
    meaning = {"tokens": "more than 1 % of the range", "cartpole": "more than 2 standard errors"}
    for ax, task in zip(axes[0], TASKS, strict=True):
        for name, (label, colour, marker) in OBJECTIVES.items():
            updates = [u for run in runs if (run["task"], run["objective"]) == (task, name) for u in run["updates"]]
            x, y = [max(u["kl"], 1e-5) for u in updates], [u["change"] / RANGE[task] for u in updates]
            ax.scatter(x, y, s=16, color=colour, marker=marker, label=label, alpha=0.55, linewidth=0)
        ax.axhline(0, color="#444444", linewidth=1)
        ax.set(xscale="log", xlim=(5e-6, 60))
        top = ax.get_ylim()[1]
        ax.set_ylim(top=top * 1.3)
        for row in (row for row in table if row["task"] == task):
            middle = max(row["kl_from"], 1e-5) * 3.16 if row["kl_to"] else 8
            ax.text(middle, top * 1.1, f"{row[CLEAR_FALL[task]]:.0%}\nof {row['updates']}", ha="center", fontsize=10)
        for edge in KL_EDGES[1:-1]:
            ax.axvline(edge, color="#bbbbbb", linewidth=0.8, linestyle=":")
        ax.set_title(f"{TASKS[task]} (numbers: fell by {meaning[task]})")
        ax.set_xlabel("KL(old || new), nats a step; below 1e-5 drawn there")
        ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes[0][0].set_ylabel("change of J in one update, of its range")
    legend_below(figure, axes[0][0])
    return figure


def step_sizes(settings: dict[tuple[str, str, int], Any]) -> Figure:
    """KL, variance and maximum of the ratio against epochs: medians of a seed's updates, mean and range over seeds."""
    epochs = epochs_of(settings)
    most = max(epochs)
    gradient, clip = (mean(settings["cartpole", name, most], "kl_max") for name in ("policy_gradient", "clip"))
    title = (
        f"Epochs make the policy gradient's steps large: with {most} on CartPole up to {gradient:.2g} nats an update, with clip "
        f"{clip:.2g} (solid: a run's median update; dotted: its largest)"
    )
    figure, axes = panels(2, 3, width=12, height=6.6, title=title, sharex=True)
    names = {"kl_max": "KL(old || new), nats a step", "ratio_var_max": "variance of the ratio", "ratio_max": "largest ratio"}
    for row, task in enumerate(TASKS):
        for ax, (key, label) in zip(axes[row], names.items(), strict=True):
            for name, (objective, colour, marker) in OBJECTIVES.items():
                middle = key.replace("_max", "_median") if key != "ratio_max" else "ratio_max_median"
                y = [mean(settings[task, name, n], middle) for n in epochs]
                ax.plot(range(len(epochs)), y, color=colour, marker=marker, label=f"{objective}", linewidth=2)
                worst = [mean(settings[task, name, n], key) for n in epochs]
                ax.plot(range(len(epochs)), worst, color=colour, marker=marker, markersize=4, linewidth=1, linestyle=":")
            ax.set_yscale("log")
            ax.set_ylabel(label)
            ax.set_title(TASKS[task])
            ax.set_xticks(range(len(epochs)), [f"{n}" for n in epochs])
            if row == 1:
                ax.set_xlabel("epochs a batch")
    legend_below(figure, axes[0][0])
    return figure


def ratio_means(runs: list[dict[str, Any]]) -> Figure:
    """The mean ratio on fresh samples against the ratio's exact variance, one point an update."""
    updates = [u for run in runs for u in run["updates"] if u["ratio_mean_se"] > 0]
    small, large = ([u for u in updates if (u["ratio_var_exact"] < 1) == is_small] for is_small in (True, False))

    def off(some: list[Update]) -> float:
        return statistics.mean(abs(standard_errors_from_1(u)) > 2 for u in some) if some else 0.0

    title = (
        f"E[r] = 1 can be seen while the variance is below 1 ({off(small):.0%} of the updates are 2 standard errors off); "
        f"above it a sample misses the rare large ratios ({off(large):.0%})"
    )
    figure, axes = panels(1, 2, width=12, height=4.8, title=title, sharey=True)
    for ax, task in zip(axes[0], TASKS, strict=True):
        for name, (label, colour, marker) in OBJECTIVES.items():
            chosen = [u for run in runs if (run["task"], run["objective"]) == (task, name) for u in run["updates"]]
            chosen = [u for u in chosen if u["ratio_var_exact"] > 0]
            x, y = [min(max(u["ratio_var_exact"], 1e-5), 1e12) for u in chosen], [u["ratio_mean"] for u in chosen]
            ax.errorbar(x, y, [2 * u["ratio_mean_se"] for u in chosen], fmt=marker, markersize=4, color=colour, alpha=0.5,
                        label=label, elinewidth=0.8)  # fmt: skip
        ax.axhline(1, color="#444444", linewidth=1)
        ax.set_xscale("log")
        ax.set_ylim(0.4, 1.8)
        ax.set_title(TASKS[task])
        ax.set_xlabel("variance of the ratio, exact over actions (drawn from 1e-5 to 1e12)")
    axes[0][0].set_ylabel("mean ratio of fresh samples ± 2 standard errors")
    legend_below(figure, axes[0][0])
    return figure


def kl_error(kl: dict[str, Any]) -> Figure:
    """Deviation, bias and sign of one sample's estimate; the noise of its gradient where q moves."""
    rows = kl["error"]
    near = min(rows, key=lambda row: abs(row["kl"] - 0.01))
    title = (
        f"At {near['kl']:.3f} nats one k1 has {near['k1']['std'] / near['kl']:.0f} times the KL as its deviation and is negative "
        f"in {near['k1']['share_negative']:.0%} of the samples; k3 has {near['k3']['std'] / near['kl']:.1f} times and never is"
    )
    figure, axes = panels(1, 3, width=12, height=4.2, title=title)
    x = [row["kl"] for row in rows]
    for kind, (colour, marker) in KINDS.items():
        line = {"color": colour, "marker": marker, "label": kind, "linewidth": 2}
        axes[0][0].plot(x, [row[kind]["std"] / row["kl"] for row in rows], **line)
        axes[0][1].plot(x, [row[kind]["bias"] / row["kl"] for row in rows], **line)
        noise = [row for row in kl["gradient"] if (row["moving"], row["kind"]) == ("q", kind)]
        axes[0][2].plot([row["kl"] for row in noise], [row["noise"] for row in noise], **line)
    axes[0][0].set(title="Deviation of one sample", ylabel="standard deviation / KL", yscale="log")
    axes[0][1].set(title="Bias", ylabel="bias / KL")
    axes[0][1].yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes[0][2].set(title="Gradient of one sample, q moves", ylabel="standard deviation / length", yscale="log")
    for ax in axes[0]:
        ax.set(xscale="log", xlabel="KL(p || q), nats a token")
    for ax in (axes[0][0], axes[0][2]):
        ax.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
        ax.minorticks_off()
    legend_below(figure, axes[0][0])
    return figure


def kl_cost(kl: dict[str, Any]) -> Figure:
    """Forward and backward, relative to the surrogate alone."""
    rows = kl["cost"]
    last = rows[-1]
    title = (
        f"Over {last['vocabulary']:,} words an exact KL costs {last['ratio']['exact, logits kept'] - 1:.0%} more than the "
        f"surrogate, or {last['ratio']['exact, states kept'] - 1:.0%} where hidden states are kept in place of logits"
    )
    figure, axes = panels(1, 1, width=7.6, height=4.6, title=title)
    ax = axes[0][0]
    for name, (colour, marker) in {**KINDS, **EXACT}.items():
        y = [row["ratio"][name] for row in rows]
        ax.plot([row["vocabulary"] for row in rows], y, color=colour, marker=marker, label=name, linewidth=2)
    ax.axhline(1, color="#444444", linewidth=1)
    ax.set(xscale="log", xlabel=f"vocabulary (hidden width {kl['width']})", ylabel="CPU time; surrogate alone = 1")
    ax.set_ylim(bottom=0.8)
    ax.set_xticks([row["vocabulary"] for row in rows], [f"{row['vocabulary']:,}" for row in rows])
    ax.minorticks_off()
    legend_below(figure, ax)
    return figure
