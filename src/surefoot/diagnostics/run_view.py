"""What a report reads: a run folder, or a demo folder of several, as frozen views. Missing and damaged parts become sentences."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from surefoot.errors import RunError

Row = Mapping[str, Any]

STAGES = ("sft", "pairs", "reward", "ppo", "evaluate")
_ROUND = re.compile(r"-[0-9]{1,6}$")
_FILES = ("metrics.jsonl", "manifest.json", "samples.jsonl", "config.yaml", "timings.jsonl", "replay.jsonl")
_VERBS = {"ppo_lm": "ppo", "ppo_control": "control"}


@dataclass(frozen=True, slots=True)
class RunView:
    """One run folder as it lies on disk. `kind` is its verb: sft, pairs, reward, ppo, evaluate, control, or run when unknown."""

    name: str
    kind: str
    metrics: tuple[Row, ...]
    timings: tuple[Row, ...]
    samples: tuple[Row, ...]
    manifest: Row
    config: str | None
    card: Row = field(default_factory=dict)  # of a reward model
    replay: tuple[Row, ...] = ()
    study: Row = field(default_factory=dict)  # of over-optimisation

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of the lines that hold a finite number under `key`; the line's number where `step` is missing."""
        steps, values = [], []
        for number, row in enumerate(self.metrics, start=1):
            value = row.get(key)
            if is_number(value):
                step = row.get("step")
                steps.append(float(step) if is_number(step) else float(number))
                values.append(float(value))
        return steps, values

    @property
    def recorded(self) -> list[str]:
        """Keys of the metrics that hold numbers, in the order in which they first occur."""
        return list(
            dict.fromkeys(key for row in self.metrics for key, value in row.items() if key != "step" and is_number(value))
        )

    @property
    def is_unfinished(self) -> bool:
        """Whether the manifest says that the run stopped before its planned end, or has not ended."""
        return bool(self.manifest) and self.manifest.get("status") not in ("done", None)

    @property
    def held_out(self) -> Row:
        """The reward model's figures on held-out pairs, from the manifest; empty where there are none."""
        facts = self.manifest.get("facts")
        figures = facts.get("held_out") if isinstance(facts, Mapping) else None
        return figures if isinstance(figures, Mapping) else {}


@dataclass(frozen=True, slots=True)
class ReportView:
    """All that one page shows. `problems` are sentences about what could not be read, `notes` about what else is known."""

    name: str
    verdict: Row | None
    stages: tuple[RunView, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def stage(self, kind: str) -> RunView | None:
        """The stage of that kind, if there is one."""
        return next((run for run in self.stages if run.kind == kind), None)


def read_report_view(path: Path) -> ReportView:
    """The view of a demo folder (stages inside) or of a single run folder.

    Raises: RunError when `path` is neither.
    """
    if not path.is_dir():
        raise RunError(f"{path} is not a run folder: there is no such folder. Give the folder that a verb wrote with --out.")
    problems: list[str] = []
    verdict: Row | None = _mapping(path / "verdict.json", problems)
    if verdict is None and (figures := _mapping(path / "evaluation.json", problems)) is not None:
        verdict = as_verdict(figures)
    inner = [path / stage for stage in STAGES if _is_run(path / stage)]
    runs = [_read_run(folder, folder.name, folder.name, problems) for folder in inner]
    runs += [run for stage in STAGES if (run := _read_rounds(path, stage, problems)) is not None]
    own = _read_run(path, path.resolve().name, None, problems) if _is_run(path) else None
    if own is not None and (not inner or own.metrics or own.samples):
        runs.append(own)
    seeds = sorted(folder for folder in path.glob("seed-*") if _is_run(folder))
    if not runs and verdict is None and seeds:
        raise RunError(
            f"{path} holds the runs of {len(seeds)} seeds, and a report is of one: `surefoot report {seeds[0]}`, and so on. What "
            f"they come to together stands in {path / 'seeds.json'}."
        )
    if not runs and verdict is None:
        raise RunError(f"{path} is not a run folder: it holds none of {', '.join(('verdict.json', *_FILES))}.")
    return ReportView(path.resolve().name, verdict, tuple(runs), tuple(problems))


def as_verdict(figures: Row) -> Row:
    """The figures of `evaluate` (evaluation.json) under the names of verdict.json; the last judge named decides."""
    verdict = dict(figures)
    rates = figures.get("win_rates")
    if isinstance(rates, Mapping) and rates:
        judge, rate = list(rates.items())[-1]
        verdict |= {"judge": judge, "judge_before": figures.get(f"{judge}_before"), "judge_after": figures.get(f"{judge}_after")}
        if isinstance(rate, Mapping):
            verdict |= {"judge_win_rate": rate.get("win_rate"), "judge_win_rate_interval": rate.get("interval")}
    verdict |= {"eos_rate": figures.get("eos_rate_after"), "duplicates": figures.get("duplicates_after")}
    return verdict


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number (True and False are not numbers)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def _read_run(folder: Path, name: str, kind: str | None, problems: list[str]) -> RunView:
    metrics = _rows(folder / "metrics.jsonl", problems)
    manifest = _mapping(folder / "manifest.json", problems) or {}
    verb = str(manifest.get("verb", ""))
    samples = _rows(folder / "samples.jsonl", problems)
    config = folder / "config.yaml"
    return RunView(
        name=name,
        kind=kind or _VERBS.get(verb, verb) or _guess(metrics, samples),
        metrics=metrics,
        timings=_rows(folder / "timings.jsonl", problems),
        samples=samples,
        manifest=manifest,
        config=config.read_text("utf-8", errors="replace") if config.is_file() else None,
        card=_mapping(folder / "card.json", problems) or {},
        replay=_rows(folder / "replay.jsonl", problems),
        study=_mapping(folder / "overoptimize.json", problems) or {},
    )


def _read_rounds(path: Path, stage: str, problems: list[str]) -> RunView | None:
    """The runs STAGE-1, STAGE-2, ... of rounds as one on one axis: a round's steps follow those of the round before.

    Manifest, settings and, of an evaluation, samples are the last round's. None where there are no rounds.
    """
    numbered = [(int(folder.name.partition("-")[2]), folder) for folder in path.glob(f"{stage}-*") if _ROUND.search(folder.name)]
    parts = [_read_run(folder, stage, stage, problems) for _, folder in sorted(numbered) if _is_run(folder)]
    if not parts:
        return None
    metrics: list[Row] = []
    samples: list[Row] = []
    offset = 0.0
    for part in parts:
        steps = [row["step"] for row in part.metrics if is_number(row.get("step"))]
        for rows, moved in ((part.metrics, metrics), (part.samples, samples)):
            moved += [{**row, "step": row["step"] + offset} if is_number(row.get("step")) else row for row in rows]
        offset += max(steps, default=0)
    last, timings = parts[-1], tuple(row for part in parts for row in part.timings)
    kept = last.samples if stage == "evaluate" else tuple(samples)
    return RunView(stage, stage, tuple(metrics), timings, kept, last.manifest, last.config)


def _guess(metrics: tuple[Row, ...], samples: tuple[Row, ...]) -> str:
    """The verb of a run without a manifest, by the keys of its metrics and samples."""
    keys = {key for row in metrics for key in row}
    for kind, sign in (("ppo", "objective/"), ("control", "rollout/"), ("reward", "accuracy"), ("sft", "loss")):
        if any(key.startswith(sign) for key in keys):
            return kind
    return "evaluate" if samples and "before" in samples[0] else "run"


def _rows(path: Path, problems: list[str]) -> tuple[Row, ...]:
    """The objects of a JSONL file; lines that cannot be read are counted in a sentence. A file that is missing has no rows."""
    if not path.is_file():
        return ()
    rows: list[Row] = []
    bad: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = _parse(line)
            if isinstance(row, dict):
                rows.append(row)
            else:
                bad.append(number)
    if bad:
        where = f"{path.parent.name}/{path.name}"
        which = f"line {bad[0]} is" if len(bad) == 1 else f"{len(bad)} lines (the first is line {bad[0]}) are"
        problems.append(
            f"{where}: {which} not a JSON object and left out. A run that was killed may leave half a line at the end."
        )
    return tuple(rows)


def _mapping(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The object of a JSON file, or None with a sentence when it holds something else."""
    if not path.is_file():
        return None
    value = _parse(path.read_text("utf-8", errors="replace"))
    if isinstance(value, dict):
        return value
    problems.append(f"{path.parent.name}/{path.name} is not a JSON object and left out.")
    return None


def _parse(text: str) -> Any:
    """The JSON value, or None where there is none: the reader turns it into a sentence."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
