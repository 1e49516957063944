"""Two runs on one page: each curve of both on one axis, the settings in which they differ, and their last numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.diagnostics.charts import compared_charts
from surefoot.diagnostics.metrics import find_metric
from surefoot.diagnostics.report import TITLES, page, stopped
from surefoot.diagnostics.run_view import ReportView, RunView, read_report_view
from surefoot.diagnostics.summaries import comparisons
from surefoot.diagnostics.wording import number
from surefoot.errors import ConfigError
from surefoot.runs.durable import write_atomic

_SETTING = re.compile(r"( *)([A-Za-z_][A-Za-z0-9_]*):(?: (.*))?")
NOT_SET = "–"


def write_comparison(one: Path, other: Path) -> Path:
    """Writes report-with-OTHER.html into the folder of the run `one` and returns its path.

    Raises: RunError when one of them is no run folder; ConfigError when both are the same, or share no kind of run.
    """
    if one.resolve() == other.resolve():
        raise ConfigError(f"{one} is to be compared with itself. Name another run folder, or one alone for its own report.")
    a, b = read_report_view(one), read_report_view(other)
    if not _shared(a, b):
        held = [f"{path} holds {', '.join(run.kind for run in view.stages) or 'no run'}" for path, view in ((one, a), (other, b))]
        raise ConfigError(f"{held[0]}, {held[1]}: they have no curves in common. Name two runs of one kind.")
    target = one / f"report-with-{other.resolve().name}.html"
    write_atomic(target, page("compare.html.jinja", comparison_content(a, b)).encode("utf-8"))
    return target


def comparison_content(a: ReportView, b: ReportView) -> dict[str, Any]:
    """What the template is filled with. Runs are called A and B throughout, since their folders may share a name."""
    names = (f"A: {a.name}", f"B: {b.name}")
    both = list(zip(names, (a, b), strict=True))
    return {
        "names": names,
        "stopped": [f"{name[:2]} {stopped(run)}" for name, view in both for run in view.stages if run.is_unfinished],
        "problems": [*a.problems, *b.problems],
        "verdicts": _verdicts(a, b),
        "stages": [
            {
                "id": one.kind,
                "title": TITLES.get(one.kind, one.name),
                "charts": compared_charts(one, other, names),
                "settings": different_settings(one, other),
                "numbers": _last_numbers(one, other),
            }
            for one, other in _shared(a, b)
        ],
    }


def _shared(a: ReportView, b: ReportView) -> list[tuple[RunView, RunView]]:
    """Runs of the same kind in both, with metrics in both."""
    pairs = [(run, b.stage(run.kind)) for run in a.stages]
    return [(run, other) for run, other in pairs if other is not None and run.metrics and other.metrics]


def different_settings(a: RunView, b: RunView) -> list[tuple[str, str, str]]:
    """(dotted name, value in A, value in B) of the settings in which two runs differ."""
    ours, theirs = (_settings(run.config or "") for run in (a, b))
    every = dict.fromkeys([*ours, *theirs])
    rows = [(name, ours.get(name, NOT_SET), theirs.get(name, NOT_SET)) for name in every]
    return [row for row in rows if row[1] != row[2]]


def _settings(config: str) -> dict[str, str]:
    """The settings of a config.yaml as a run writes it: sections, and values of one line or of indented ones below."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in config.splitlines():
        match = _SETTING.fullmatch(line.partition("  #")[0].rstrip())
        if match is None:
            if found and line.strip() and not line.lstrip().startswith("#"):
                last = next(reversed(found))
                found[last] = f"{found[last]} {line.strip()}".strip()
            continue
        depth, name, value = len(match[1]), match[2], match[3]
        path = [(d, n) for d, n in path if d < depth] + [(depth, name)]
        found[".".join(n for _, n in path)] = value or ""
    return {name: value for name, value in found.items() if value}


def _last_numbers(a: RunView, b: RunView) -> list[dict[str, str]]:
    """Key, last number of each run, meaning; of keys that both recorded."""
    rows = []
    for key in a.recorded:
        (_, ours), (_, theirs) = a.column(key), b.column(key)
        if ours and theirs:
            metric = find_metric(key, a.kind)
            rows.append({"key": key, "a": number(ours[-1]), "b": number(theirs[-1]), "what": metric.what if metric else ""})
    return rows


def _verdicts(a: ReportView, b: ReportView) -> list[tuple[str, str, str, str]]:
    """(figure, policy of A, policy of B, unit) of two demos or evaluations; empty where one has no verdict."""
    if a.verdict is None or b.verdict is None:
        return []
    theirs: Mapping[str, Any] = {row.title: row for row in comparisons(b.verdict)}
    return [(row.title, row.after, theirs[row.title].after, row.unit) for row in comparisons(a.verdict) if row.title in theirs]
