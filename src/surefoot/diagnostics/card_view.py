"""The report card of a reward model as the report shows it: sentences, tables, and the histogram of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import plotly.graph_objects as go

from surefoot.diagnostics.charts import Chart, Table
from surefoot.diagnostics.report_card import WORDS
from surefoot.diagnostics.run_view import Row, is_number
from surefoot.diagnostics.verdict import Finding, Level
from surefoot.diagnostics.wording import as_text


@dataclass(frozen=True, slots=True)
class CardTable:
    """A table with its title and one sentence on how to read it."""

    title: str
    what: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class CardView:
    """What the page shows of a card."""

    findings: tuple[Finding, ...]
    tables: tuple[CardTable, ...]
    histogram: Chart | None


def card_view(card: Row) -> CardView | None:
    """The card of card.json; None where there is none. What is missing or damaged is left out."""
    verdict = [f for f in _rows(card.get("verdict")) if f.get("level") in get_args(Level) and isinstance(f.get("sentence"), str)]
    if not verdict:
        return None
    tables = (
        _probes(card),
        _temperature(card),
        _shares(card, "by_margin", "rated apart by"),
        _shares(card, "by_source", "votes of"),
    )
    found = tuple(Finding(f["level"], f["sentence"]) for f in verdict)
    return CardView(found, tuple(table for table in tables if table is not None), _histogram(card))


def _probes(card: Row) -> CardTable | None:
    rows = [p for p in _rows(card.get("probes")) if _has(p, "move", "rises", "count")]
    what = "What an edit that makes no answer better does to the score, in deviations, and the share of answers that rise."
    cells = tuple((WORDS.get(str(p.get("name")), as_text(p.get("name"))), f"{p['move']:+.2f}", f"{p['rises']:.0%}") for p in rows)
    return CardTable("Probes", what, ("edit", "moves by", "rise"), cells) if cells else None


def _temperature(card: Row) -> CardTable | None:
    found = card.get("calibration")
    keys = ("temperature", "ece_before", "ece_after", "loss_before", "loss_after")
    if not isinstance(found, Mapping) or not _has(found, *keys):
        return None
    what = (
        f"Raw differences divided by a temperature of {found['temperature']:.2f}, fitted on held-out pairs. After: each half "
        "of the prompts at the temperature of the other half."
    )
    rows = tuple(
        (name, f"{found[f'{key}_before']:.3f}", f"{found[f'{key}_after']:.3f}")
        for name, key in (("expected calibration error", "ece"), ("loss, nats a pair", "loss"))
    )
    return CardTable("Temperature", what, ("", "before", "after"), rows)


def _shares(card: Row, key: str, head: str) -> CardTable | None:
    rows = [row for row in _rows(card.get(key)) if _has(row, "accuracy", "count") and _is_interval(row.get("interval"))]
    title = "Accuracy by rating gap" if key == "by_margin" else "Accuracy by source"
    what = "How often the reward model is right, with the 95 % interval."
    cells = tuple(
        (
            as_text(row.get("name")),
            f"{row['accuracy']:.1%}",
            f"{row['interval'][0]:.1%} to {row['interval'][1]:.1%}",
            f"{row['count']:,.0f}",
        )
        for row in rows
    )
    return CardTable(title, what, (head, "right", "interval", "pairs"), cells) if cells else None


def _histogram(card: Row) -> Chart | None:
    found = card.get("histogram")
    if not isinstance(found, Mapping):
        return None
    edges, counts = _numbers(found.get("edges")), {name: _numbers(found.get(name)) for name in ("chosen", "rejected")}
    if len(edges) < 2 or any(len(c) != len(edges) - 1 for c in counts.values()):
        return None
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    traces = [
        go.Scatter(x=middles, y=c, mode="lines", name=name, line={"width": 2, "shape": "hvh"}) for name, c in counts.items()
    ]
    axes = {"xaxis": {"title": {"text": "raw score"}}, "yaxis": {"title": {"text": "answers"}}}
    figure = dict(go.Figure(traces, layout={**axes, "template": None, "showlegend": True}).to_plotly_json())
    rows = tuple((f"{x:.2f}", *(f"{counts[name][i]:,.0f}" for name in counts)) for i, x in enumerate(middles))
    return Chart(
        id="score-histogram",
        title="Scores of held-out answers",
        what="Raw scores of the answers that people chose and of those that they did not.",
        others=(),
        healthy="two overlapping hills, the chosen to the right, no spike and no far outlier",
        what_to_do="A spike: many answers get one score; look at their text. Outliers: set ppo.reward_clip.",
        figure=figure,
        description=f"{len(middles)} bins from {edges[0]:.2f} to {edges[-1]:.2f}",
        table=Table(("score", *counts), rows),
    )


def _rows(value: object) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _has(row: Mapping[str, Any], *keys: str) -> bool:
    return all(is_number(row.get(key)) for key in keys)


def _is_interval(value: object) -> bool:
    return len(_numbers(value)) == 2


def _numbers(value: object) -> list[float]:
    """`value` where it is a list of finite numbers; empty where it is anything else."""
    return value if isinstance(value, list) and all(is_number(x) for x in value) else []
