"""A side's end of the line to its parent. Needs the standard library alone: other systems' environments run it too.

A side prints one JSON line when it is ready and one after every piece of work, and begins when a line arrives on its standard
input: so the sides take turns, and the one that waits costs nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def say(**facts: Any) -> None:
    """A line to the parent; peak memory of this process since `forget_peak` comes along, in GiB."""
    print(json.dumps({**facts, "peak_gib": round(_peak_bytes() / 2**30, 4)}), file=sys.__stdout__, flush=True)


def wait_for_turn() -> dict[str, Any]:
    """The parent's next line; ends the process when there is none."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    asked: dict[str, Any] = json.loads(line)
    return asked


def held_gib() -> float:
    """What this process holds now: on CUDA of the device's memory, else of the machine's."""
    if (cuda := _cuda()) is not None:
        return float(cuda.memory_allocated()) / 2**30
    return _status_kib("VmRSS") / 2**20


def forget_peak() -> None:
    """Peaks count from here on, where the system can be told so (Linux, CUDA)."""
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_bytes() -> float:
    if (cuda := _cuda()) is not None:
        return float(cuda.max_memory_allocated())
    if STATUS.exists():
        return _status_kib("VmHWM") * 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def _status_kib(field: str) -> float:
    if not STATUS.exists():
        return 0.0
    lines = (line.split() for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines())
    return next((float(words[1]) for words in lines if words and words[0] == f"{field}:"), 0.0)


def _cuda() -> Any:
    """torch.cuda where this process computes on it."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None
