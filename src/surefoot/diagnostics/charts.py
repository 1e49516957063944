"""Which curves a report shows, and their figures. Explanations come from `metrics`, colours from the page: both themes fit."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from surefoot.diagnostics.metrics import find_metric
from surefoot.diagnostics.run_view import RunView, is_number
from surefoot.diagnostics.wording import number

MAX_POINTS = 2_000  # of a curve; beyond it evenly spaced ones are shown, and the page says so
MAX_TABLE_ROWS = 12


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """One panel: curves of one unit. `target` is a key drawn as a dotted line, `level` a fixed one.

    `is_hidden_at_zero`: left out when every value is 0, since the setting behind it is off.
    """

    title: str
    keys: tuple[str, ...]
    unit: str
    target: str | None = None
    level: float | None = None
    is_log: bool = False
    is_share: bool = False
    is_hidden_at_zero: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers of a chart for those who cannot see it."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A panel ready for the page: what it means, where it should be, the figure, the same in words and numbers.

    `others` are (key, meaning) of the curves beside the main one.
    """

    id: str
    title: str
    what: str
    others: tuple[tuple[str, str], ...]
    healthy: str
    what_to_do: str
    figure: Mapping[str, Any]
    description: str
    table: Table


SPECS: dict[str, tuple[ChartSpec, ...]] = {
    "ppo": (
        ChartSpec("Reward", ("objective/scores", "objective/rlhf_reward"), "reward"),
        ChartSpec("MiniLM judge", ("judge/minilm",), "rating"),
        ChartSpec("VADER judge", ("judge/vader",), "compound score"),
        ChartSpec("KL to the SFT model", ("objective/kl",), "nats a sequence", target="kl/target"),
        ChartSpec("KL of an update", ("policy/approxkl_avg", "policy/kl_after"), "nats a token"),
        ChartSpec("Clip fraction", ("policy/clipfrac_avg", "policy/outside_fraction"), "", is_share=True),
        ChartSpec("Clip fraction of the critic", ("val/clipfrac_avg",), "", is_share=True, is_hidden_at_zero=True),
        ChartSpec("Entropy of a token", ("policy/entropy_avg",), "nats a token"),
        ChartSpec("Explained variance", ("critic/explained_variance",), "", level=0.0),
        ChartSpec("Length of answers", ("response_length/mean", "response_length/max"), "tokens"),
        ChartSpec("Answers cut by length", ("response_length/cut",), "", is_share=True),
        ChartSpec("KL by position", ("drift/kl_begin", "drift/kl_middle", "drift/kl_end"), "nats a token"),
        ChartSpec("Fluency under the SFT model", ("drift/fluency",), "nats a token"),
        ChartSpec("Variety", ("drift/distinct_2", "drift/distinct_1"), "", is_share=True),
        ChartSpec("Repetition", ("drift/repetition", "drift/duplicates"), "", is_share=True),
        ChartSpec("Reward and length", ("drift/reward_length_corr",), "", level=0.0),
        ChartSpec(
            "What pays beyond the judges",
            ("drift/reward_length", "drift/reward_repetition", "drift/reward_token", "drift/reward_position"),
            "share of the reward's variance",
        ),
        ChartSpec("Distance from the reward model's answers", ("drift/distance",), "", level=1.0),
        ChartSpec("Shift of prompts", ("drift/prompt_tokens", "drift/prompt_states"), "squared standard errors", level=1.0),
        ChartSpec("Tether coefficient", ("kl/coef",), "reward a nat"),
        ChartSpec("Penalty coefficient", ("kl/beta",), "reward a nat", is_log=True),
        ChartSpec("Ratio", ("val/ratio", "val/ratio_max"), "", level=1.0),
        ChartSpec("Policy loss", ("loss/policy_avg",), ""),
        ChartSpec("Value loss", ("loss/value_avg",), "reward²"),
        ChartSpec("Tether in the loss", ("kl/in_loss",), "nats a token"),
        ChartSpec("Gradient norm", ("grad_norm", "grad_norm_clipped"), ""),
        ChartSpec("Skipped steps", ("optimizer/skipped_steps",), "steps", is_hidden_at_zero=True),
        ChartSpec("Rollbacks", ("optimizer/rollbacks",), "times", is_hidden_at_zero=True),
        ChartSpec("Learning rate", ("lr",), ""),
    ),
    "sft": (
        ChartSpec("Training loss", ("loss", "validation/loss"), "nats a token"),
        ChartSpec("Gradient norm", ("grad_norm", "grad_norm_clipped"), ""),
        ChartSpec("Learning rate", ("lr",), ""),
    ),
    "reward": (
        ChartSpec("Ranking loss", ("loss", "validation/loss"), "nats a pair", level=0.6931),
        ChartSpec("Pair accuracy", ("accuracy", "validation/accuracy"), "", level=0.5, is_share=True),
        ChartSpec("Margin", ("margin", "validation/margin"), "raw score"),
        ChartSpec("Scores", ("mean_reward", "min_reward", "max_reward"), "raw score"),
        ChartSpec("Gradient norm", ("grad_norm", "grad_norm_clipped"), ""),
        ChartSpec("Learning rate", ("lr",), ""),
    ),
    "rounds": (
        ChartSpec("Accuracy of the reward model", ("rounds/reward_accuracy",), "", level=0.5, is_share=True),
        ChartSpec("KL to the SFT model", ("rounds/kl",), "nats a sequence"),
        ChartSpec("Votes", ("rounds/votes", "rounds/pairs"), "votes, pairs"),
        ChartSpec("Length of answers", ("rounds/length",), "tokens"),
        ChartSpec("Distinct-2", ("rounds/distinct2",), ""),
    ),
    "control": (
        ChartSpec("Episode return", ("rollout/ep_rew_mean", "eval/mean_reward"), "reward"),
        ChartSpec("KL of an update", ("train/kl_after", "train/approx_kl"), "nats a step", target="kl/beta_target"),
        ChartSpec("Penalty coefficient", ("kl/beta",), "1/nat", is_log=True),
        ChartSpec("Clip fraction", ("train/clip_fraction", "train/outside_fraction"), "", is_share=True),
        ChartSpec("Entropy loss", ("train/entropy_loss",), "nats a step"),
        ChartSpec("Explained variance", ("train/explained_variance",), "", level=0.0),
        ChartSpec("Value loss", ("train/value_loss",), "reward²"),
        ChartSpec("Policy loss", ("train/policy_gradient_loss",), ""),
        ChartSpec("Deviation of actions", ("train/std",), "unit of the action"),
        ChartSpec("Episode length", ("rollout/ep_len_mean", "eval/mean_ep_length"), "steps"),
        ChartSpec("Gradient norm", ("grad_norm", "grad_norm_clipped"), ""),
        ChartSpec("Skipped steps", ("optimizer/skipped_steps",), "steps", is_hidden_at_zero=True),
        ChartSpec("Learning rate", ("train/learning_rate",), ""),
    ),
}


def charts(run: RunView) -> list[Chart]:
    """The panels of a run for which it recorded numbers; judges without a panel of their own get one each."""
    specs = list(SPECS.get(run.kind, ()))
    shown = {key for spec in specs for key in spec.keys}
    specs[1:1] = [
        ChartSpec(f"Judge {key[6:]}", (key,), "") for key in run.recorded if key.startswith("judge/") and key not in shown
    ]
    specs[:0] = [
        ChartSpec(f"Win rate by {key[9:]}", (key,), "", level=0.5, is_share=True)
        for key in run.recorded
        if key.startswith("win_rate/")
    ]
    return [chart for i, spec in enumerate(specs) if (chart := _chart(spec, run, f"chart-{run.kind}-{i}")) is not None]


def compared_charts(a: RunView, b: RunView, names: tuple[str, str]) -> list[Chart]:
    """A panel for each main number that both runs recorded, both curves on one axis; `names` are those of the runs."""
    judges = [key for key in a.recorded if key.startswith("judge/")]
    specs = [*SPECS.get(a.kind, ()), *(ChartSpec(f"Judge {key[6:]}", (key,), "") for key in judges)]
    charts = {}
    for i, spec in enumerate(specs):
        key = spec.keys[0]
        curves = {name: run.column(key) for name, run in zip(names, (a, b), strict=True)}
        is_idle = spec.is_hidden_at_zero and not any(any(values) for _, values in curves.values())
        if key in charts or is_idle or not all(values for _, values in curves.values()):
            continue
        metric = find_metric(key, a.kind)
        assert metric is not None  # as in `_chart`
        traces = [_trace(name, *_thin(*curve), spec) for name, curve in curves.items()]
        charts[key] = Chart(
            id=f"chart-{a.kind}-{i}",
            title=spec.title,
            what=metric.what,
            others=(),
            healthy=metric.healthy,
            what_to_do=metric.what_to_do,
            figure=_figure(traces, unit=spec.unit, is_log=spec.is_log, is_share=spec.is_share),
            description=". ".join(_words(name, *curve) for name, curve in curves.items()),
            table=_table(curves),
        )
    return list(charts.values())


def reliability_chart(bins: list[Mapping[str, Any]], ece: float | None) -> Chart | None:
    """Confidence against accuracy, one point a bin, its area the number of pairs; the diagonal is perfect calibration."""
    rows = [b for b in bins if isinstance(b, Mapping) and all(is_number(b.get(k)) for k in ("confidence", "accuracy", "count"))]
    if not rows:
        return None
    x, y, counts = ([float(b[key]) for b in rows] for key in ("confidence", "accuracy", "count"))
    most = max(counts) or 1.0
    diagonal = go.Scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", name="perfect", meta={"role": "reference"}, hoverinfo="skip")
    sizes = [6 + 14 * (count / most) ** 0.5 for count in counts]
    hover = "says %{x:.0%}, right in %{y:.0%} of %{customdata:,} pairs<extra></extra>"
    points = go.Scatter(
        x=x,
        y=y,
        customdata=counts,
        mode="markers+lines",
        name="measured",
        marker={"size": sizes},
        line={"width": 1},
        hovertemplate=hover,
    )
    figure = _figure([points, diagonal], unit="", is_share=True)
    figure["layout"]["xaxis"] = {"title": {"text": "confidence"}, "tickformat": ".0%", "range": [0.48, 1.02]}
    figure["layout"]["yaxis"] = {
        "title": {"text": "share that is right"},
        "tickformat": ".0%",
        "range": [min(0.45, *y) - 0.03, 1.03],
    }
    table = Table(
        ("confidence", "right", "pairs"),
        tuple((f"{a:.1%}", f"{b:.1%}", f"{int(n):,}") for a, b, n in zip(x, y, counts, strict=True)),
    )
    error = "" if ece is None else f" The expected calibration error is {ece:.3f}."
    return Chart(
        id="calibration",
        title="Calibration",
        what="Whether 80 % means 80 %: how sure the reward model is of a held-out pair, against how often it is right. Large "
        "points are many pairs; the dotted diagonal is perfect." + error,
        others=(),
        healthy="points on the diagonal; below it the reward model is over-confident",
        what_to_do="Over-confident: fewer epochs or weight_decay.",
        figure=figure,
        description="; ".join(f"says {a:.0%}, right in {b:.0%} of {int(n)} pairs" for a, b, n in zip(x, y, counts, strict=True)),
        table=table,
    )


def _chart(spec: ChartSpec, run: RunView, id: str) -> Chart | None:
    """The panel of `spec`, or None when the run recorded none of its keys."""
    curves = {key: run.column(key) for key in spec.keys}
    curves = {key: curve for key, curve in curves.items() if curve[1]}
    if not curves or (spec.is_hidden_at_zero and not any(any(values) for _, values in curves.values())):
        return None
    main = find_metric(next(iter(curves)), run.kind)
    assert main is not None  # a test holds that every key of SPECS is documented; a judge's is by its family
    thinned = {key: _thin(*curve) for key, curve in curves.items()}
    traces = [_trace(key, steps, values, spec) for key, (steps, values) in thinned.items()]
    steps = [step for curve in thinned.values() for step in curve[0]]
    if spec.level is not None:
        traces.append(
            _reference(f"{spec.level:g}" if spec.level != 0.6931 else "ln 2", [min(steps), max(steps)], [spec.level] * 2)
        )
    if spec.target is not None and (aim := run.column(spec.target))[1]:
        traces.append(_reference("target", *aim))
    others = tuple(
        (key, metric.what.split(". ")[0].rstrip(".")) for key in list(curves)[1:] if (metric := find_metric(key, run.kind))
    )
    longest = max(len(values) for _, values in curves.values())
    cut = f" {MAX_POINTS:,} of {longest:,} points are drawn." if longest > MAX_POINTS else ""
    return Chart(
        id=id,
        title=spec.title,
        what=main.what + cut,
        others=others,
        healthy=main.healthy,
        what_to_do=main.what_to_do,
        figure=_figure(traces, unit=spec.unit, is_log=spec.is_log, is_share=spec.is_share, across=_ACROSS.get(run.kind, "step")),
        description=". ".join(_words(key, *curve) for key, curve in curves.items()),
        table=_table(curves),
    )


def _trace(name: str, steps: list[float], values: list[float], spec: ChartSpec) -> go.Scatter:
    form = "%{y:.1%}" if spec.is_share else "%{y:.4g}"
    mode = "markers" if len(values) <= 3 else "lines"  # a line through two points would tell of what was never measured
    name = html.escape(name)  # Plotly reads tags in names
    return go.Scatter(
        x=steps,
        y=values,
        mode=mode,
        name=name,
        hovertemplate=f"{form}<extra>{name}</extra>",
        line={"width": 2},
        marker={"size": 9},
    )


def _reference(name: str, steps: list[float], values: list[float]) -> go.Scatter:
    return go.Scatter(x=steps, y=values, mode="lines", name=name, meta={"role": "reference"}, hoverinfo="skip")


_ACROSS = {"rounds": "round, 0 is the SFT model"}  # what a step is, where it has a name of its own


def _figure(
    traces: list[go.Scatter], *, unit: str, is_log: bool = False, is_share: bool = False, across: str = "step"
) -> dict[str, Any]:
    """A figure as plain JSON values, without Plotly's own template: the page lays its theme under it."""
    axis: dict[str, Any] = {"title": {"text": unit}} if unit else {}
    if is_share:
        axis |= {"tickformat": ".0%", "rangemode": "tozero"}
    if is_log:
        axis |= {"type": "log"}
    figure = go.Figure(traces, layout={"yaxis": axis, "xaxis": {"title": {"text": across}}, "template": None})
    figure.update_layout(showlegend=len(traces) > 1)
    return dict(figure.to_plotly_json())


def _thin(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """At most MAX_POINTS evenly spaced points, the first and the last among them."""
    count = len(values)
    if count <= MAX_POINTS:
        return steps, values
    keep = [round(i * (count - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]
    return [steps[i] for i in keep], [values[i] for i in keep]


def _words(name: str, steps: list[float], values: list[float]) -> str:
    first, last = f"{number(values[0])} at step {steps[0]:g}", f"{number(values[-1])} at step {steps[-1]:g}"
    return f"{name}: {first}, {last}, lowest {number(min(values))}, highest {number(max(values))}"


def _table(curves: Mapping[str, tuple[list[float], list[float]]]) -> Table:
    """First, last and evenly spaced steps between them; a dash where a curve has no number at a step."""
    by_step = {key: dict(zip(*curve, strict=True)) for key, curve in curves.items()}
    steps = sorted({step for curve in curves.values() for step in curve[0]})
    if len(steps) > MAX_TABLE_ROWS:
        last = len(steps) - 1
        steps = [steps[round(i * last / (MAX_TABLE_ROWS - 1))] for i in range(MAX_TABLE_ROWS)]
    rows = ((f"{step:g}", *(number(c[step]) if step in c else "–" for c in by_step.values())) for step in steps)
    return Table(("step", *curves), tuple(rows))
