"""A long run of every kind of request against one server process: whether its memory, files and threads stay where they are."""

from __future__ import annotations

import random
import sqlite3
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from label_parts.client import Answer, Client
from label_parts.load import make_store
from label_parts.server import LabelServer, Resources

SAMPLES = 50
MAX_GROWTH = 0.05  # of the resident memory, from the second fifth of the run to its last
VOTE_KIB = 0.75  # and for each vote that came between: the admin's page reads all votes, and holds this much of one meanwhile


@dataclass
class Visits:
    """What all visitors together have asked for: requests by kind, votes acknowledged, answers that nobody expected."""

    made: Counter[str] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)
    unexpected: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, answer: Answer, expected: int, key: str = "") -> None:
        with self.lock:
            self.made[kind] += 1
            if answer.status != expected:
                self.unexpected.append(f"{kind}: {answer.status} {answer.body[:200]!r}")
            elif key:
                self.acknowledged.add(key)


@dataclass
class Visitor:
    """One annotator: mostly votes, and at times all else that a browser, an impatient person or a stranger sends."""

    client: Client
    rng: random.Random
    visits: Visits
    items: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None  # the newest vote, which can be replayed or taken back

    def ask(self) -> None:
        """One request."""
        chance = self.rng.random()
        if chance < 0.02:
            self.visits.note("page", self.client.get("/"), 200)
        elif chance < 0.03:
            self.visits.note("forged post", self.client.post("/api/next", {}, Origin="http://evil.example"), 403)
        elif chance < 0.04:
            self.visits.note("stranger", Client(self.client.address).get("/"), 401)
        elif chance < 0.06 and self.last:
            self.visits.note("replay", self.client.post("/api/votes", self.last), 200)
        elif chance < 0.08 and self.last:
            answer, self.last = self.client.post("/api/undo", {"key": self.last["key"]}), None
            self.visits.note("undo", answer, 200)
            self.items = answer.said["items"]
        elif not self.items:
            answer = self.client.post("/api/next", {})
            self.visits.note("next", answer, 200)
            self.items = answer.said["items"]
        else:
            key = str(uuid.UUID(int=self.rng.getrandbits(128)))
            self.last = {"key": key, "view": self.items[0]["view"], "pick": self.rng.choice(("left", "right", "tie"))}
            answer = self.client.post("/api/votes", self.last)
            self.visits.note("vote", answer, 200, key)
            self.items = answer.said.get("items", [])


def soak(folder: Path, requests: int, visitors: int = 4) -> dict[str, Any]:
    """`requests` in all, by `visitors` at once, and the admin's page now and then; the figures, with SAMPLES of the resources."""
    store = make_store(folder / "soak.db", requests + 2 * visitors)
    visits, seen = Visits(), []
    with LabelServer(store, "--repeats", "0.05") as server:
        admin = Client(server.address).enter(server.entrance)
        people = []
        for i in range(visitors):
            link = admin.post("/api/admin/invite", {"role": "annotator"}).said["link"]
            people.append(Visitor(Client(server.address).join(link, f"visitor-{i}"), random.Random(i), visits))
        start = time.monotonic()
        for part in range(SAMPLES):
            due = requests * (part + 1) // SAMPLES - requests * part // SAMPLES - 1
            shares = [due // visitors + (i < due % visitors) for i in range(visitors)]
            threads = [threading.Thread(target=_ask, args=pair) for pair in zip(people, shares, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            visits.note("admin's page", admin.get("/admin"), 200)
            seen.append(server.resources())
        seconds, cpu = time.monotonic() - start, server.cpu_seconds()
        status = server.stop()
    figures = {"requests": sum(visits.made.values()), "by_kind": dict(visits.made), "unexpected": visits.unexpected[:20]}
    figures |= {"seconds": seconds, "server_cpu_ms_a_request": 1000 * cpu / requests, "server_exit_status": status}
    stored = _stored(store, visits)
    return figures | stored | growth(seen, stored["votes"]) | {"samples": [vars(one) for one in seen]}


def _ask(visitor: Visitor, count: int) -> None:
    for _ in range(count):
        visitor.ask()


def _stored(store: Path, visits: Visits) -> dict[str, Any]:
    with closing(sqlite3.connect(store)) as db:
        keys = [key for (key,) in db.execute("SELECT idempotency_key FROM votes")]
        integrity = db.execute("PRAGMA integrity_check").fetchone()[0]
    lost = len(visits.acknowledged - set(keys))
    return {"votes": len(keys), "lost": lost, "doubled": len(keys) - len(set(keys)), "integrity_check": integrity}


def growth(seen: Sequence[Resources], votes: int = 0) -> dict[str, Any]:
    """How resources changed from the second fifth of a run to its last fifth; the first one is the warming up.

    `votes` came in over the whole run, three fifths of them between the middles of the two.
    """
    fifth = max(1, len(seen) // 5)
    early, late = seen[fifth : 2 * fifth], seen[-fifth:]
    memory = [statistics.median(one.rss_mib for one in part) for part in (early, late)]
    files, threads = ([max(getattr(one, name) for one in part) for part in (early, late)] for name in ("files", "threads"))
    allowed = (1 + MAX_GROWTH) * memory[0] + VOTE_KIB / 1024 * 0.6 * votes
    flat = memory[1] <= allowed and files[1] <= files[0] + 2 and threads[1] <= threads[0] + 2
    return {"rss_mib": memory, "rss_mib_allowed": allowed, "open_files": files, "threads": threads, "is_flat": flat}
