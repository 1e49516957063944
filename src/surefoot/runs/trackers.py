"""Trackers follow metrics.jsonl, which stays the record: they are told its lines, the same keys at the same steps.

RUN/trackers.json holds, for each tracker, the run's id there and how many lines it was told. A resumed run goes on in the same
run of the tracker with the lines after them, and tells no line twice: a line counts as told when it is about to be sent, so that
`kill -9` in between costs a tracker one line and the record none. After a roll-back with other seeds a tracker keeps what it was
told of the steps that are repeated.

Whatever a tracker raises ends that tracker with one warning, never the run; resuming the run tries it again.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.config import Config
from surefoot.errors import ConfigError
from surefoot.runs.durable import write_atomic
from surefoot.runs.tracker_runs import Identity, MlflowRun, Status, TensorBoardRun, TrackerRun, TrackioRun, WandbRun

__all__ = ["FILE", "Status", "Trackers", "expect_installed"]

FILE = "trackers.json"
TITLES = {"tensorboard": "TensorBoard", "wandb": "W&B", "trackio": "Trackio", "mlflow": "MLflow"}


def expect_installed(names: Sequence[str]) -> None:
    """Each tracker's library and extra have its name. Raises ConfigError where one is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"report_to = {name} needs the package {name}, which is not installed. `pip install 'surefoot[{name}]'` adds it."
            )


def begun(name: str, identity: Identity) -> TrackerRun:
    """The run in the tracker `name`, new or gone on with."""
    match name:
        case "tensorboard":
            return TensorBoardRun(identity)
        case "wandb":
            return WandbRun(identity)
        case "trackio":
            return TrackioRun(identity)
        case _:
            return MlflowRun(identity)


class Trackers:
    """The trackers of one run folder, none in any process but the first. A tracker is begun with the first line that it lacks."""

    def __init__(self, folder: Path, cfg: Config, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._settings = cfg.model_dump(mode="json")
        self._working = list(cfg.report_to) if os.environ.get("RANK", "0") == "0" else []
        self._runs: dict[str, TrackerRun] = {}
        self._told: dict[str, dict[str, Any]] = _read(folder / FILE) if self._working else {}
        self._lines = self._bytes = 0  # of metrics.jsonl, read so far

    def rewound(self) -> None:
        """metrics.jsonl was cut: it is read from its beginning again, and what was told is passed over."""
        self._lines = self._bytes = 0

    def follow(self) -> None:
        """Tells every tracker the lines that it was not told."""
        if not self._working:
            return
        rows = self._unread()
        for name in tuple(self._working):
            try:
                self._tell(name, rows)
            except Exception as problem:  # a library's affair; none of it is worth a run
                self._give_up(name, problem)

    def finish(self, status: Status) -> None:
        """Closes the trackers' runs. What was not sent yet is sent now."""
        for name, run in self._runs.items():
            try:
                run.finish(status)
            except Exception as problem:
                self._warn(f"{TITLES[name]} did not take the end of the run ({_first_line(problem)})")
        self._runs, self._working = {}, []

    def _unread(self) -> list[tuple[int, dict[str, Any]]]:
        """The lines of metrics.jsonl since the last look, with their numbers from 1."""
        with (self._folder / "metrics.jsonl").open("rb") as stream:
            stream.seek(self._bytes)
            lines = stream.read().split(b"\n")[:-1]
        rows = [(number, json.loads(line)) for number, line in enumerate(lines, start=self._lines + 1)]
        self._lines, self._bytes = self._lines + len(lines), self._bytes + sum(len(line) + 1 for line in lines)
        return rows

    def _tell(self, name: str, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        told = int(self._told.get(name, {}).get("lines", 0))
        left = [(number, row) for number, row in rows if number > told]
        if not left:
            return
        if name not in self._runs:
            known = self._told.get(name, {}).get("run")
            self._runs[name] = begun(name, Identity(self._folder, known, self._settings))
        self._note(name, left[-1][0])
        for number, row in left:
            try:
                self._runs[name].log(int(row["step"]), _numbers(row))
            except Exception:
                self._note(name, number - 1)
                raise

    def _note(self, name: str, lines: int) -> None:
        self._told[name] = {"run": self._runs[name].run_id, "lines": lines}
        write_atomic(self._folder / FILE, (json.dumps(self._told, indent=2) + "\n").encode())

    def _give_up(self, name: str, problem: Exception) -> None:
        self._working = [one for one in self._working if one != name]
        self._warn(
            f"{TITLES[name]} failed ({_first_line(problem)}) and is told no more. The run goes on, metrics.jsonl has every step, "
            "and resuming the run tells what is missing"
        )
        if (run := self._runs.pop(name, None)) is not None:
            try:
                run.finish("failed")
            except Exception:  # it was said that it failed
                return


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line. One that was not finite stands there as null and is left out."""
    return {key: float(value) for key, value in row.items() if key != "step" and isinstance(value, (int, float))}


def _first_line(problem: Exception) -> str:
    text = (str(problem).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What was told so far. A file that is damaged knows nothing: trackers then begin a new run."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: entry for name, entry in content.items() if isinstance(entry, dict) and isinstance(entry.get("lines"), int)}
