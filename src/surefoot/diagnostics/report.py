"""report.html: one self-contained file that opens offline. Verdict, curves, before and after, reward model, settings.

Whatever comes from a run (prompts, answers, names, settings) is text: the template escapes it, figures travel as JSON in which
`<` is written \\u003c, and a content security policy lets no script run but the three whose hashes it holds.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from surefoot.diagnostics.card_view import card_view
from surefoot.diagnostics.charts import Chart, charts, reliability_chart
from surefoot.diagnostics.replay_view import replay_content
from surefoot.diagnostics.run_view import ReportView, RunView, is_number, read_report_view
from surefoot.diagnostics.samples import chosen_samples, step_samples
from surefoot.diagnostics.study_view import study_view
from surefoot.diagnostics.summaries import (
    alarm_sentences,
    best_of,
    comparisons,
    durations,
    length_gaps,
    recorded_numbers,
    run_numbers,
    run_words,
    verdict_numbers,
)
from surefoot.diagnostics.verdict import Finding, findings, verdict_words
from surefoot.diagnostics.wording import as_text
from surefoot.runs.durable import write_atomic

__all__ = ["TITLES", "page", "render_report", "stopped", "verdict_words", "write_report"]

_TEMPLATES = Path(__file__).parent / "templates"
TITLES = {
    "sft": "Supervised fine-tuning",
    "pairs": "Pairs",
    "reward": "Reward model",
    "ppo": "PPO",
    "evaluate": "Evaluation",
    "rounds": "Rounds",
    "compare": "Comparison",
    "overoptimize": "Over-optimisation",
    "control": "PPO for control",
}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # no HTML file can hold these


def write_report(run: Path, notes: Sequence[str] = ()) -> Path:
    """Writes report.html into the folder of a run or a demo and returns its path. An older one is replaced whole or not at all.

    `notes` are sentences about the run that its folder does not know, such as that its votes are no longer those of the store.

    Raises: RunError when `run` is no run folder, or cannot be written to.
    """
    view = read_report_view(run)
    page = render_report(replace(view, notes=(*view.notes, *notes)))
    target = run / "report.html"
    write_atomic(target, page.encode("utf-8"))
    return target


def render_report(view: ReportView) -> str:
    """The page as text. The same view gives the same bytes."""
    return page("report.html.jinja", _content(view))


def page(template: str, content: Mapping[str, Any]) -> str:
    """A template of this folder, filled: style, scripts and their hashes, and `content`."""
    scripts = [get_plotlyjs().replace("\r", ""), _asset("report.js"), _asset("replay.js")]
    hashes = [_hash(script) for script in scripts]
    return _template(template).render(style=_asset("report.css"), scripts=scripts, script_hashes=hashes, **content)


@cache
def _template(name: str) -> jinja2.Template:
    """A page, compiled once: everything that is printed is escaped, and a name that is not filled is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _content(view: ReportView) -> dict[str, Any]:
    """What the template is filled with."""
    lone = view.stages[0] if len(view.stages) == 1 and view.verdict is None else None
    verdict = view.verdict
    told = (
        [Finding("note", sentence) for sentence in run_words(lone)] if lone else findings(verdict) if verdict is not None else []
    )
    evaluation = next((run for run in view.stages if any("before" in row for row in run.samples)), None)
    ppo = view.stage("ppo")
    reward = view.stage("reward")
    held_out = reward.held_out if reward else {}
    study = next((found for run in view.stages if (found := study_view(run.study)) is not None), None)
    told += study.findings if study else ()
    samples = chosen_samples(evaluation.samples, judge=as_text((verdict or {}).get("judge", "judge"))) if evaluation else []
    return {
        "name": view.name,
        "subtitle": _subtitle(view),
        "stopped": [stopped(run) for run in view.stages if run.is_unfinished],
        "problems": view.problems,
        "notes": view.notes,
        "findings": [*told, *(Finding("warning", sentence) for sentence in (alarm_sentences(ppo) if ppo else ()))],
        "numbers": verdict_numbers(verdict) if verdict is not None else run_numbers(lone) if lone else [],
        "comparisons": comparisons(verdict) if verdict is not None else [],
        "best_of": best_of(verdict) if verdict is not None else "",
        "stages": [_stage(run) for run in view.stages if run.metrics and (run.kind != "evaluate" or verdict is None)],
        "missing": _missing(view),
        "study": study,
        "calibration": _calibration(verdict, held_out),
        "length_gaps": length_gaps(held_out),
        "card": card_view(reward.card) if reward else None,
        "samples": samples,
        "num_best": sum(sample.tag == "best" for sample in samples),  # and as many of the worst
        "num_samples": sum("before" in row for row in evaluation.samples) if evaluation else 0,
        "step_samples": step_samples(ppo) if ppo else [],
        "replay": replay_content(ppo) if ppo else None,
        "durations": durations(view),
        "settings": [_settings(run) for run in view.stages],
    }


def _stage(run: RunView) -> dict[str, Any]:
    return {"id": run.kind, "title": TITLES.get(run.kind, run.name), "charts": charts(run), "recorded": recorded_numbers(run)}


def _calibration(verdict: Mapping[str, Any] | None, held_out: Mapping[str, Any]) -> Chart | None:
    """The reliability of the reward model: that of verdict.json, else that of its own run's manifest."""
    found = (verdict or {}).get("reward_model_calibration") or held_out.get("calibration")
    if not isinstance(found, Mapping) or not isinstance(found.get("bins"), list):
        return None
    ece = found.get("ece")
    return reliability_chart(found["bins"], ece if is_number(ece) else None)


def _subtitle(view: ReportView) -> str:
    """What was run, in one line."""
    if view.verdict is None:
        return ", ".join(TITLES.get(run.kind, run.kind) for run in view.stages)
    facts = []
    for key, words in (("preset", "preset {}"), ("objective", "objective {}"), ("kl_coef", "kl_coef {}"), ("seed", "seed {}")):
        if (value := view.verdict.get(key)) is not None:
            facts.append(words.format(value))
    memory = view.verdict.get("peak_memory_bytes")
    if is_number(memory):
        facts.append(f"peak memory {memory / 2**30:.1f} GiB")
    return ", ".join(facts)


def stopped(run: RunView) -> str:
    """Why a run counts as unfinished, as the manifest has it."""
    title = TITLES.get(run.kind, run.name)
    steps = [row["step"] for row in run.metrics if is_number(row.get("step"))]
    last = f" Its last recorded step is {max(steps):g}." if steps else " It recorded no step."
    status = as_text(run.manifest.get("status"))
    if status == "started":
        return f"{title} has not ended: it is still running, or it was killed.{last}"
    reason = as_text(run.manifest.get("reason") or "").strip()
    return f"{title} stopped early ({status}).{last}{' Reason: ' + reason if reason else ''}"


def _missing(view: ReportView) -> list[str]:
    """One sentence for each part of a demo that is not there. A single run, an evaluation too, has no such parts."""
    kinds = [run.kind for run in view.stages]
    if view.verdict is None or kinds == ["evaluate"] or "rounds" in kinds:
        return []
    sentences = []
    for kind, what in (("sft", "fine-tuning"), ("reward", "reward-model"), ("ppo", "PPO")):
        stage = view.stage(kind)
        if stage is None or not stage.metrics:
            sentences.append(f"No {what} curves: {kind}/metrics.jsonl is missing or empty.")
    if not any("before" in row for run in view.stages for row in run.samples):
        sentences.append("No answers side by side: evaluate/samples.jsonl is missing or empty.")
    if not isinstance(view.verdict.get("reward_model_calibration"), Mapping):
        sentences.append("No calibration of the reward model: verdict.json holds no reward_model_calibration.")
    return sentences


def _settings(run: RunView) -> dict[str, Any]:
    return {"title": TITLES.get(run.kind, run.name), "config": run.config, "facts": list(_flat(run.manifest))}


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, text) of everything in a manifest."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", as_text(value)


def _printable(value: object) -> object:
    """Text, with what no page can hold replaced by the sign for that; the page's own scripts and all else as they are."""
    return _UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text("utf-8")


def _hash(script: str) -> str:
    """The script's hash in the form that a content security policy wants."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
