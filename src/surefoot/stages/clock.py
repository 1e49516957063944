"""Seconds of each part of a step, for timings.jsonl."""

from __future__ import annotations

import time


class Clock:
    """`lap(name)` takes the time since the last lap, or since the clock was made."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now
