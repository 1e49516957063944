""" "The reward model, if it were trained now": a child process on demand, so that the page itself needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GRACE_SECONDS = 10


class ChildTrainer:
    """Runs `surefoot reward WORDS --reward.store STORE` into a folder that is thrown away, one at a time."""

    def __init__(self, store: Path, words: Sequence[str]) -> None:
        self._store = store
        self._words = list(words)
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._folder = Path()
        self._said = ""

    def start(self) -> dict[str, Any]:
        """Starts a training unless one is under way; returns `state`."""
        with self._lock:
            if self._child is None:
                self._folder = Path(tempfile.mkdtemp(prefix="surefoot-reward-"))
                self._said = ""
                words = ["reward", *self._words, "--reward.store", str(self._store), "--out", str(self._folder / "run")]
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "surefoot", *words],
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                threading.Thread(target=self._follow, args=(self._child, self._folder), daemon=True).start()
        return self.state()

    def state(self) -> dict[str, Any]:
        """{is_running, said: the last line of the training, or its result in one line}."""
        with self._lock:
            return {"is_running": self._child is not None, "said": self._said}

    def stop(self) -> None:
        """Ends a training that is under way."""
        with self._lock:
            child = self._child
        if child is not None:
            child.terminate()
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()

    def _follow(self, child: subprocess.Popen[str], folder: Path) -> None:
        assert child.stdout is not None
        with child.stdout as said:
            for line in said:
                if line.strip():
                    with self._lock:
                        self._said = line.strip()[:400]
        status = child.wait()
        result = _result(folder / "run") if status == 0 else ""
        shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self._said = result or self._said
            self._child = None


def _result(run: Path) -> str:
    """What a finished run says of the pairs that it held out, as one line; "" where it says nothing."""
    try:
        facts = json.loads((run / "manifest.json").read_text("utf-8"))["facts"]
    except (OSError, ValueError, KeyError):
        return ""
    held_out, votes = facts.get("held_out") or {}, facts.get("votes") or {}
    if "accuracy" not in held_out:
        return ""
    low, high = held_out.get("accuracy_interval", (None, None))
    interval = "" if low is None else f" (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    seen = f", {votes['votes']:,} votes on {votes['pairs']:,} pairs" if "votes" in votes else ""
    return f"held-out accuracy {100 * held_out['accuracy']:.1f} %{interval}{seen}"
