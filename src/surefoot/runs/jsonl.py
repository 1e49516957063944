"""JSONL files that grow a line at a time, a run's set of them, and their reader."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surefoot.errors import RunError
from surefoot.runs.durable import explained, sync, write_all


def as_line(row: Mapping[str, Any]) -> bytes:
    """One JSON object and a newline, keys in the given order. A number that is not finite becomes null: JSON has none.

    Text stays readable UTF-8; half of a surrogate pair, which UTF-8 cannot hold, becomes its JSON escape.
    """
    text = json.dumps(_without_non_finite(row), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item) for item in value]
    return value


class Log:
    """An append-only JSONL file. A line is in the kernel when `append` returns; `sync` puts it on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(f"write {path.name}", path.parent):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    @property
    def length(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._descriptor).st_size

    def append(self, content: bytes) -> None:
        """Raises RunError when there is no room; the file then ends with the last whole line."""
        before = self.length
        with explained(f"write {self.path.name}", self.path.parent, len(content)):
            try:
                write_all(self._descriptor, content)
            except OSError:
                os.ftruncate(self._descriptor, before)
                raise

    def truncate(self, length: int) -> None:
        os.ftruncate(self._descriptor, length)
        os.fsync(self._descriptor)

    def sync(self) -> None:
        os.fsync(self._descriptor)
        sync(self.path.parent)  # the name of a new file is an entry of the folder

    def close(self) -> None:
        os.close(self._descriptor)


class Logs:
    """The logs of a run folder. Those named in `rewound` are cut back to a checkpoint's lengths; the others keep all."""

    def __init__(self, folder: Path, rewound: Iterable[str], kept: Iterable[str]) -> None:
        self._rewound = tuple(rewound)
        self._logs = {name: Log(folder / name) for name in (*self._rewound, *kept)}

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows as lines, all of them or none. Raises RunError where there is no room."""
        self._logs[name].append(b"".join(as_line(row) for row in rows))

    def synced_lengths(self) -> dict[str, int]:
        """Bytes of each log that is cut back, on the disk when this returns."""
        self.sync(self._rewound)
        return {name: self._logs[name].length for name in self._rewound}

    def fault_of(self, lengths: Mapping[str, int]) -> str:
        """Why the logs cannot be cut back to `lengths`, in words; "" when they can."""
        for name, length in lengths.items():
            if name not in self._rewound:
                return f"it records the length of {name!r}, which is no log of a run"
            if self._logs[name].length < length:
                return f"{name} has {self._logs[name].length:,} bytes, and had {length:,} when it was saved"
        return ""

    def rewind(self, lengths: Mapping[str, int]) -> None:
        """Cuts the logs back; one without a length becomes empty."""
        for name in self._rewound:
            self._logs[name].truncate(lengths.get(name, 0))

    def sync(self, names: Iterable[str] | None = None) -> None:
        for name in self._logs if names is None else names:
            self._logs[name].sync()

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs = {}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file. A last line without its newline is left out: it was being written when the process ended.

    Raises:
        RunError: no such file, or a line that is not a JSON object, with its number.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {os.strerror(error.errno or 0)}. Give a run folder that holds {path.name}.") from error
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{path} line {number} is not JSON ({error}). Resume the run to repair it, or mend the line."
            ) from error
        if not isinstance(row, dict):
            raise RunError(
                f"{path} line {number} is {type(row).__name__}, not an object. Resume the run to repair it, or mend the line."
            )
        rows.append(row)
    return rows
