"""The run folder: who holds it, what it was started with, what it has recorded, and where it can go on from.

RUN/
  config.yaml      the resolved settings            manifest.json   versions, seed, hashes of inputs, status, facts
  metrics.jsonl    a line a step, no wall times     timings.jsonl   seconds a step
  samples.jsonl    what was sampled                 events.jsonl    what happened to the run, with wall times
  replay.jsonl     a few of them, token by token    final/          what the stage made
  checkpoint-N/    see checkpoint.py               trackers.json   what trackers were told, see trackers.py
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from surefoot.config import Config
from surefoot.errors import Interrupted, RunError, SurefootError
from surefoot.faults import fault_point
from surefoot.runs import checkpoint, durable
from surefoot.runs.checkpoint import DamagedCheckpoint, State
from surefoot.runs.jsonl import Logs
from surefoot.runs.lock import RunLock
from surefoot.runs.manifest import REWOUND, Manifest, changes, continue_or_begin, has_progress, sentence_of, versions
from surefoot.runs.stop import STOP
from surefoot.runs.trackers import FILE as TRACKERS
from surefoot.runs.trackers import Status, Trackers, expect_installed

logger = logging.getLogger(__name__)

_TAKEN = ("config.yaml", "manifest.json", "run.lock", "events.jsonl", TRACKERS, "tensorboard", "wandb", *REWOUND)


class RunFolder:
    """An open run. A context manager: it holds the lock and, in the main thread, the handlers of SIGTERM and SIGINT.

    A stage calls `restore` before it records or saves, and again to go back to its last checkpoint. Every method raises RunError
    when the disk refuses.
    """

    def __init__(self, path: Path, lock: RunLock, manifest: Manifest, cfg: Config, *, keep: int) -> None:
        self.path = path
        self._lock = lock
        self._manifest = manifest
        self._keep = keep
        self._holds_signals = False
        self._logs = Logs(path, rewound=REWOUND, kept=("events.jsonl",))
        self._may_record = not has_progress(path)
        self._saved: int | None = None  # the newest checkpoint known to be whole
        self._trackers = Trackers(path, cfg, self.note)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        verb: str,
        cfg: Config,
        resume: Literal["auto", "never"] = "auto",
        extra: Mapping[str, Any] | None = None,
        keep: int = 2,
    ) -> Self:
        """Takes the folder, makes it if need be, and compares it with what is asked for. `keep` checkpoints are kept.

        `extra` are facts that must be the same on resume, such as hashes of data and models; see `declare`.

        Raises:
            RunError: another process holds it; its verb, settings or inputs are others; `resume` is "never" and a run is in it.
            ConfigError: the library of a tracker in cfg.report_to is not installed.
        """
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint is kept")
        expect_installed(cfg.report_to)
        path = durable.made_folder(path)
        lock = RunLock(path, verb)
        try:
            with durable.explained("open the run", path):
                put_back = durable.clear_leftovers(path)
            if resume == "never" and (what := has_progress(path)):
                raise RunError(f"{path} holds a run already ({what}). Choose another --out, or --resume auto to go on with it.")
            manifest, notes = continue_or_begin(path, verb, cfg)
            folder = cls(path, lock, manifest, cfg, keep=keep)
        except BaseException:
            lock.close()
            raise
        try:
            for message in (*put_back, *notes):
                folder.note(message)
            folder.declare(extra or {})
        except BaseException:
            folder.close()
            raise
        return folder

    def __enter__(self) -> Self:
        self._holds_signals = STOP.hold()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is not None and not self.is_done:
                self._record_end(error)
        finally:
            if self._holds_signals:
                STOP.release()
                self._holds_signals = False
            self.close()

    def _record_end(self, error: BaseException) -> None:
        """Says in the manifest how the run ended early. A full disk must not hide the error that ended it."""
        is_left = isinstance(error, GeneratorExit)  # a notebook broke out of the loop over the steps
        if is_left or isinstance(error, Interrupted):
            status = "interrupted"
        else:
            status = "stopped" if isinstance(error, SurefootError) else "failed"
        reason = str(error) if isinstance(error, SurefootError) else f"{type(error).__name__}: {error}"
        if is_left:
            reason = "The loop over its steps was left before the last one."
        try:
            self._manifest.update(status=status, reason=reason)
        except (RunError, OSError) as second:
            logger.warning("manifest.json does not say that the run ended (%s): %s", status, second)

    def close(self) -> None:
        """Gives the folder back. Needed only without `with`."""
        ends: dict[str, Status] = {"done": "done", "started": "interrupted", "interrupted": "interrupted"}
        self._trackers.finish(ends.get(self._manifest.content["status"], "failed"))
        self._logs.close()
        self._lock.close()

    @property
    def is_done(self) -> bool:
        """Whether `finish` was called, now or by an earlier process."""
        return self._manifest.content["status"] == "done"

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM or SIGINT has arrived since the outermost open folder was entered."""
        return STOP.requested is not None

    @property
    def newest(self) -> str | None:
        """Name of the newest checkpoint known to be whole; None where there is none."""
        return None if self._saved is None else f"checkpoint-{self._saved}"

    def has_saved(self, step: int) -> bool:
        """Whether the newest whole checkpoint is that of `step`: stopping now would then lose nothing of it."""
        return self._saved == step

    def check_stop(self) -> None:
        """Call it where the state has just been saved.

        Raises:
            Interrupted: a stop was requested.
        """
        if STOP.requested is None:
            return
        newest = next((path.name for _, path in checkpoint.checkpoints_in(self.path)), None)
        saved = "Nothing was saved yet, so it starts again" if newest is None else f"It goes on from {newest}"
        raise Interrupted(
            f"{self.path}: stopped by {STOP.requested}. {saved} with the same command (--resume auto is the default)."
        )

    def declare(self, facts: Mapping[str, Any]) -> None:
        """Records facts that the result depends on (hashes of data and models, world size); on resume they must be the same.

        Raises:
            RunError: a fact differs from the one recorded when the run had begun.
        """
        before = self._manifest.content["inputs"]
        changed = changes({name: before[name] for name in facts if name in before}, {n: facts[n] for n in facts if n in before})
        if changed and has_progress(self.path):
            raise RunError(sentence_of(self.path, "inputs", changed))
        if merged := {**before, **facts}:
            self._manifest.update(inputs=merged)

    def restore(self) -> State | None:
        """The state of the newest checkpoint whose hashes hold, or None where the run starts afresh.

        The JSONL files are cut to the lengths which that checkpoint recorded, so that what is recorded again stands there once.
        Newer checkpoints that are damaged are set aside as damaged-checkpoint-N, and a note says why.

        Raises:
            RunError: there are checkpoints and none can be trusted: starting again would throw away what can perhaps be rescued.
        """
        damaged: list[tuple[Path, str]] = []
        for _, path in checkpoint.checkpoints_in(self.path):
            try:
                found = checkpoint.read_checkpoint(path)
                if fault := self._logs.fault_of(found.logs):
                    raise DamagedCheckpoint(fault)
            except DamagedCheckpoint as reason:
                damaged.append((path, str(reason)))
                continue
            for bad, why in damaged:
                self._set_aside(bad)
                self.note(f"{bad.name} is damaged ({why}); went back to {path.name}")
            self._rewind(found.logs)
            self._saved = found.step
            self._delete_old()  # a process killed between saving and deleting left one too many
            self._note_differences(path.name, found.made_with)
            self.note(f"resumed from {path.name}")
            return found.state
        if damaged:
            reasons = "; ".join(f"{path.name} ({why})" for path, why in damaged)
            raise RunError(
                f"{self.path}: no checkpoint can be trusted: {reasons}. Put back a copy, or choose another --out to start again."
            )
        self._rewind({})
        return None

    def _rewind(self, lengths: Mapping[str, int]) -> None:
        self._logs.rewind(lengths)
        self._trackers.rewound()
        self._may_record = True

    def _set_aside(self, path: Path) -> None:
        target = path.with_name(f"damaged-{path.name}")
        number = 1
        while target.exists():
            number += 1
            target = path.with_name(f"damaged-{path.name}-{number}")
        with durable.explained(f"rename {path.name}", self.path):
            os.rename(path, target)
            durable.sync(self.path)

    def _note_differences(self, name: str, made_with: Mapping[str, Any]) -> None:
        if changed := changes(made_with, versions()):
            shown = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
            self.note(f"{name} was written with {shown}; the result may differ in the last bits from an uninterrupted run")

    def save(self, step: int, state: State) -> Path:
        """Writes checkpoint-STEP, whole or not at all, and deletes all but the newest `keep`.

        Raises:
            RunError: the disk is full (with the bytes needed), the folder is read-only, or a value cannot be kept exactly.
            Diverged: a weight or a moment of the optimiser is not finite; nothing is written.
        """
        self._expect_restored()
        lengths = self._logs.synced_lengths()
        kept = "No checkpoint was saved yet." if self.newest is None else f"{self.newest} is kept."
        path = checkpoint.write_checkpoint(self.path, step, state, logs=lengths, made_with=versions(), kept=kept)
        self._saved = step
        self._delete_old()
        return path

    def _delete_old(self) -> None:
        older = [path for number, path in checkpoint.checkpoints_in(self.path) if number != self._saved]
        with durable.explained("delete an old checkpoint", self.path):
            for old in older[self._keep - 1 :]:
                durable.remove_folder(old)

    def record(self, step: int, metrics: Mapping[str, float | int | str | bool]) -> None:
        """A line of metrics.jsonl: step, then the metrics in the given order. A number that is not finite is written as null."""
        for name, value in metrics.items():
            if not isinstance(value, str | bool | int | float):
                raise TypeError(f"metric {name} is {type(value).__name__}; give a number, text or a boolean")
        self._append("metrics.jsonl", [{"step": step, **_without_step(metrics)}])
        self._trackers.follow()

    def timing(self, step: int, seconds: Mapping[str, float]) -> None:
        """A line of timings.jsonl: wall times by name, in seconds."""
        self._append("timings.jsonl", [{"step": step, **_without_step(seconds)}])

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Lines of samples.jsonl, one a row, each with its step."""
        self._append("samples.jsonl", [{"step": step, **_without_step(row)} for row in rows])

    def replay(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Lines of replay.jsonl, an answer each, each with its step."""
        self._append("replay.jsonl", [{"step": step, **_without_step(row)} for row in rows])

    def note(self, message: str) -> None:
        """Says what happened to the run, in events.jsonl (with the time) and in the log."""
        logger.warning("%s: %s", self.path.name, message)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._logs.append("events.jsonl", [{"time": now, "pid": os.getpid(), "message": message}])

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._expect_restored()
        self._logs.append(name, rows)

    def _expect_restored(self) -> None:
        if not self._may_record:
            raise RuntimeError(
                "restore() comes first: this folder holds an earlier part of the run, which would be recorded twice"
            )

    @contextmanager
    def final(self, name: str = "final") -> Iterator[Path]:
        """A new folder to fill; at the end of the block it is synced and takes the name, replacing what stood there.

        If the block raises, what stood there stays. The folder's hash goes into the manifest.
        """
        _own_name(name, "output folder")
        target = self.path / name
        temporary = durable.beside(target, "tmp")
        with durable.explained(
            f"write {name}/", self.path, kept=f"What stood in {name}/ before is kept." if target.exists() else ""
        ):
            try:
                temporary.mkdir()
                yield temporary
                digest = durable.hash_folder(temporary)
                durable.sync_tree(temporary)
                fault_point("final-rename", 0 if self._saved is None else self._saved)
                durable.move_into_place(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self._manifest.update(outputs={**self._manifest.content["outputs"], name: {"sha256": digest}})

    def write(self, name: str, text: str) -> Path:
        """A small file of the run folder (verdict.json, report.html), replaced whole."""
        _own_name(name, "file")
        path = self.path / name
        durable.write_atomic(path, text.encode())
        return path

    def finish(self, **facts: Any) -> None:
        """Marks the run as done; `facts` stand in manifest.json under "facts"."""
        self._logs.sync()
        self._manifest.update(status="done", reason="", facts=facts)


def _own_name(name: str, what: str) -> None:
    durable.validate_name(name, what)
    if name in _TAKEN or name.startswith(("checkpoint-", "damaged-")):
        raise RunError(f"{what} {name} has a name that the run folder writes itself. Choose another name.")


def _without_step(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if "step" in row:
        raise ValueError("a recorded row may not have a field named step: it is written from the argument")
    return row
