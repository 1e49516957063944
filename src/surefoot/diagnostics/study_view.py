"""A study of over-optimisation as the report shows it: sentences, a figure a variant, all variants on one axis, tables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import plotly.graph_objects as go

from surefoot.diagnostics.card_view import CardTable
from surefoot.diagnostics.charts import Chart, Table
from surefoot.diagnostics.run_view import Row, is_number
from surefoot.diagnostics.study import PROXY
from surefoot.diagnostics.verdict import Finding, Level
from surefoot.diagnostics.wording import as_text, number

WAYS = (("ppo", "PPO", "circle"), ("best_of_n", "best of n", "diamond"))
_AXES = {
    "xaxis": {"title": {"text": "d = √KL(policy ‖ SFT), √nats a sequence"}, "rangemode": "tozero"},
    "yaxis": {"title": {"text": "gain over the SFT model, its deviations"}},
}


@dataclass(frozen=True, slots=True)
class StudyView:
    """What the page shows of a study."""

    findings: tuple[Finding, ...]
    charts: tuple[Chart, ...]
    tables: tuple[CardTable, ...]


def study_view(study: Row) -> StudyView | None:
    """The study of overoptimize.json; None where there is none."""
    if not isinstance(study.get("variants"), list) or not study["variants"]:
        return None
    found = [
        Finding(f["level"], as_text(f.get("sentence"))) for f in study.get("verdict", []) if f.get("level") in get_args(Level)
    ]
    charts = [_variant_chart(variant, study, i) for i, variant in enumerate(study["variants"])]
    if len(study["variants"]) > 1:
        charts.insert(0, _all_variants(study))
    tables = [_laws(study), _turns(study), *_equal_kl(study)]
    return StudyView(tuple(found), tuple(charts), tuple(table for table in tables if table.rows))


def _variant_chart(variant: Mapping[str, Any], study: Row, place: int) -> Chart:
    """Judge and reward over sqrt(KL), PPO and best-of-n on one axis, laws with bands, the knee as a dotted line."""
    main = as_text(study["main"])
    traces: list[go.Scatter] = []
    for (way, words, symbol), colours in zip(WAYS, (("one", "two"), ("three", "four")), strict=True):
        found = variant[way]
        traces += _band(found["fit"].get(main), colours[0])
        traces.append(_points(found, main, f"{main}, {words}", colours[0], symbol))
        traces += _law(found["fit"].get(main), f"law of {main}, {words}", colours[0])
        traces.append(_points(found, PROXY, f"reward, {words}", colours[1], symbol, joined=True))
    others = [judge for judge in study["judges"] if judge != main]
    traces += [
        _points(variant["ppo"], judge, f"{judge}, PPO", "muted", "circle-open", joined=True, is_shown=False) for judge in others
    ]
    traces += _knee(variant, main, traces)
    end = variant["ppo"]["points"][-1]
    name = as_text(variant["name"])
    return Chart(
        id=f"study-{place}",
        title=f"{name}: {' '.join(map(as_text, variant['settings'])) or 'the settings of the study'}",
        what=f"What {main} and the reward gained over the SFT model while PPO, or best of n, walked away from it. Points are "
        "measured on the same held-out prompts; curves are the laws of Gao et al. with their 95 % bands.",
        others=(),
        healthy=f"{main} and reward rise together; {main} has not turned where the run ends",
        what_to_do="A judge that turns while the reward rises: stop there (overoptimize.stop_kl), raise ppo.kl_coef, or give the "
        "reward more labels or more members.",
        figure=_figure(traces),
        description=f"{main} ends at {end['gain'][main]['value']:+.2f} and the reward at {end['gain'][PROXY]['value']:+.2f} "
        f"deviations, at a KL of {end['kl']:.1f} nats",
        table=_point_table(variant, study),
    )


def _all_variants(study: Row) -> Chart:
    """The main judge of every variant, means over the seeds."""
    main = as_text(study["main"])
    traces = []
    for i, variant in enumerate(study["variants"]):
        colour = ("one", "two", "three", "four")[i % 4]
        traces.append(_points(variant["ppo"], main, as_text(variant["name"]), colour, "circle", joined=True))
    first = study["variants"][0]
    traces.append(_points(first["best_of_n"], main, f"best of n by the reward of {as_text(first['name'])}", "muted", "diamond"))
    rows = tuple(
        (as_text(v["name"]), number(p["kl"]), _with_interval(p["gain"][main]))
        for v in study["variants"]
        for p in v["ppo"]["points"]
    )
    return Chart(
        id="study-all",
        title=f"All variants by {main}",
        what=f"What {main} gained over the SFT model, by how far PPO had gone; means over {len(study['seeds'])} "
        f"seed{'s' if len(study['seeds']) > 1 else ''} of {study['num_prompts']} prompts each.",
        others=(),
        healthy="the higher curve at equal KL is the better reward; the one that goes further without turning is the safer one",
        what_to_do="Compare at equal KL, in the tables below: a variant that has gone less far has had less time to fall.",
        figure=_figure(traces),
        description=f"{len(study['variants'])} variants",
        table=Table(("variant", "KL", f"gain of {main}"), rows),
    )


def _points(
    found: Mapping[str, Any], key: str, name: str, colour: str, symbol: str, *, joined: bool = False, is_shown: bool = True
) -> go.Scatter:
    """What was measured; the intervals stand in the hover text."""
    points = found["points"]
    label = "update" if "update" in points[0] else "n"
    words = [
        f"{label} {p[label]}, KL {p['kl']:.2f}: {_with_interval(p['gain'][key])}<extra>{html.escape(name)}</extra>"
        for p in points
    ]
    return go.Scatter(
        x=[_root(p["kl"]) for p in points],
        y=[p["gain"][key]["value"] for p in points],
        mode="lines+markers" if joined else "markers",
        name=html.escape(name),
        hovertemplate=words,
        marker={"size": 7, "symbol": symbol},
        line={"width": 1},
        visible=True if is_shown else "legendonly",
        meta={"colour": colour},
    )


def _law(fitted: Mapping[str, Any] | None, name: str, colour: str) -> list[go.Scatter]:
    if not fitted:
        return []
    line = fitted["line"]
    return [
        go.Scatter(
            x=[_root(kl) for kl in line["kl"]],
            y=line["gain"],
            mode="lines",
            name=html.escape(name),
            hoverinfo="skip",
            line={"width": 2},
            showlegend=False,
            meta={"colour": colour},
        )
    ]


def _band(fitted: Mapping[str, Any] | None, colour: str) -> list[go.Scatter]:
    if not fitted:
        return []
    line = fitted["line"]
    x = [_root(kl) for kl in line["kl"]]
    return [
        go.Scatter(
            x=[*x, *reversed(x)],
            y=[*line["high"], *reversed(line["low"])],
            mode="lines",
            fill="toself",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            meta={"colour": colour, "role": "band"},
        )
    ]


def _knee(variant: Mapping[str, Any], main: str, traces: Sequence[go.Scatter]) -> list[go.Scatter]:
    """A dotted line where the law of PPO turns, if that lies within what was measured."""
    fitted = variant["ppo"]["fit"].get(main)
    largest = max(p["kl"] for p in variant["ppo"]["points"])
    if not fitted or not is_number(fitted["knee_kl"]) or fitted["knee_kl"] > largest:
        return []
    heights = [y for trace in traces for y in trace.y]
    x = _root(fitted["knee_kl"])
    return [
        go.Scatter(
            x=[x, x],
            y=[min(0.0, *heights), max(heights)],
            mode="lines",
            name=f"knee, KL {fitted['knee_kl']:.1f}",
            meta={"role": "reference"},
            hoverinfo="skip",
        )
    ]


def _figure(traces: Sequence[go.Scatter]) -> dict[str, Any]:
    layout = {**_AXES, "template": None, "showlegend": True, "hovermode": "closest", "height": 380}
    return dict(go.Figure(list(traces), layout=layout).to_plotly_json())


def _point_table(variant: Mapping[str, Any], study: Row) -> Table:
    keys = [*study["judges"], PROXY]
    rows = []
    for way, words, _ in WAYS:
        label = "update" if way == "ppo" else "n"
        for p in variant[way]["points"]:
            rows.append((f"{words}, {label} {p[label]}", number(p["kl"]), *(_with_interval(p["gain"][key]) for key in keys)))
    return Table(("point", "KL", *keys), tuple(rows))


def _laws(study: Row) -> CardTable:
    rows = []
    for variant in study["variants"]:
        for way, words, _ in WAYS:
            for key, found in variant[way]["fit"].items():
                if found:
                    knee = "never" if found["knee_kl"] is None else number(found["knee_kl"])
                    rows.append(
                        (
                            f"{as_text(variant['name'])}, {words}, {key}",
                            _with_interval(found["alpha"]),
                            _with_interval(found["beta"]),
                            knee,
                            f"{found['knee_share']:.0%}",
                        )
                    )
    what = (
        "R(d) = d (α − β d) of best of n, d (α − β log d) of PPO, with 95 % intervals over prompts. The knee is the KL at which "
        "the law is highest; inside: the share of bootstrap draws whose knee lies within what was measured."
    )
    return CardTable("Fitted laws", what, ("curve", "α", "β", "knee at KL", "inside"), tuple(rows))


def _turns(study: Row) -> CardTable:
    rows = []
    for variant in study["variants"]:
        for way, words, _ in WAYS:
            for key, found in variant[way]["turn"].items():
                top = found["top"]
                where = (
                    "SFT" if top["point"] is None else f"{'update' if way == 'ppo' else 'n'} {top['point']}, KL {top['kl']:.1f}"
                )
                name = f"{as_text(variant['name'])}, {words}, {key}"
                rows.append((name, where, _with_interval(found["rise"]), _with_interval(found["fall"])))
    what = (
        "The highest point in the data, without a law. Rise to it and fall from it to the end are measured on the prompts that "
        "did not choose it; a fall whose interval lies above 0 is one."
    )
    return CardTable("Turns in the data", what, ("curve", "highest at", "rise", "fall since"), tuple(rows))


def _equal_kl(study: Row) -> list[CardTable]:
    """What each variant gained at equal KL, by the main judge, and the differences from the first."""
    rows, main = study.get("at_equal_kl") or [], as_text(study["main"])
    if not rows:
        return []
    names = list(rows[0]["gain"])
    gains = [(f"{row['kl']:g}", *(_with_interval(row["gain"][name][main]) for name in names), _best(row, main)) for row in rows]
    what = (
        f"Gain of {main} over the SFT model at equal KL, between the points that were measured, with 95 % intervals over prompts."
    )
    tables = [CardTable("At equal KL", what, ("KL", *names, f"best of n ({names[0]})"), tuple(gains))]
    if len(names) > 1:
        gaps = [(f"{row['kl']:g}", *(_with_interval(row["against"][name][main]) for name in names[1:])) for row in rows]
        what = (
            f"The same less that of {names[0]}, on the same prompts. An interval on one side of 0 is a difference beyond chance."
        )
        tables.append(CardTable(f"Against {names[0]}, at equal KL", what, ("KL", *names[1:]), tuple(gaps)))
    return tables


def _best(row: Mapping[str, Any], main: str) -> str:
    found = row["best_of_n"].get(next(iter(row["gain"])))
    return "–" if found is None else _with_interval(found[main])


def _with_interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})".replace("-", "−")


def _root(kl: float) -> float:
    return round(max(kl, 0.0) ** 0.5, 6)
