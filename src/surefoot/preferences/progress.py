"""What an annotator sees of their own work: votes done, pairs left, agreement with oneself and with others."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from surefoot.preferences.queue import Queue

FRESH_SECONDS = 10.0  # counting goes through all votes, so in between votes are added to the last count


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` valid votes (skips too, hidden repeats not), `left` open pairs; agreements as (equal choices, comparisons)."""

    done: int
    left: int
    with_self: tuple[int, int]
    with_others: tuple[int, int]


class ProgressBoard:
    """Progress by source, counted at most every ten seconds."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._known: dict[str, tuple[Progress, float]] = {}
        self._lock = threading.Lock()

    def of(self, source: str) -> Progress:
        with self._lock:
            known = self._known.get(source)
        if known is not None and time.monotonic() - known[1] < FRESH_SECONDS:
            return known[0]
        counted = self._count(source)
        with self._lock:
            self._known[source] = (counted, time.monotonic())
        return counted

    def moved(self, source: str, votes: int) -> None:
        """A vote came (+1) or was taken back (-1)."""
        with self._lock:
            if (known := self._known.get(source)) is not None:
                now = replace(known[0], done=max(0, known[0].done + votes), left=max(0, known[0].left - votes))
                self._known[source] = (now, known[1])

    def _count(self, source: str) -> Progress:
        left = self._queue.left(source)
        with self._queue.store.reader() as db:
            done = db.execute("SELECT count(*) FROM valid_votes WHERE source = ? AND kind = 'vote'", (source,)).fetchone()[0]
            own = f"{AGREED} = m.source AND o.kind = 'repeat' {STATED}"
            other = f"{AGREED} <> m.source AND o.kind = 'vote' {PEOPLE} {STATED}"
            with_self, with_others = (db.execute(query, (source,)).fetchone() for query in (own, other))
        return Progress(done, left, with_self, with_others)


AGREED = """SELECT coalesce(sum(m.choice = o.choice), 0), count(*) FROM valid_votes m
    JOIN valid_votes o ON o.pair = m.pair AND o.source"""
PEOPLE = "AND (o.source LIKE 'human:%' OR o.source LIKE 'function:%')"  # as agreement.is_person
STATED = "WHERE m.source = ? AND m.kind = 'vote' AND m.choice <> 'skip' AND o.choice <> 'skip'"
