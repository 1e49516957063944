"""Annotators in processes of their own, a server that is killed again and again, and the comparison of what both sides say."""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
import statistics
import time
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from label_parts.client import Client
from label_parts.server import LabelServer
from surefoot.preferences import PreferenceStore

PICKS = ("left", "right", "tie", "both_bad", "skip")


@dataclass(frozen=True)
class Load:
    """`annotators` give `votes` in all, while the server is killed `kills` times; each thinks `think` seconds a vote."""

    annotators: int
    votes: int
    kills: int
    think: float
    overlap: int = 2


def make_store(path: Path, num_pairs: int) -> Path:
    with PreferenceStore.open(path) as store, store.batch():
        for i in range(num_pairs):
            prompt = store.add_prompt(f"Say something about number {i}.")
            texts = (f"Number {i} is {how}. " + "It is what it is, as they say, and so on. " * 11 for how in ("fine", "odd"))
            store.add_pair(prompt, *(store.add_answer(prompt, text, model=f"model-{k}") for k, text in enumerate(texts)))
    return path


def annotate(address: str, link: str, name: str, votes: int, think: float, out: Path) -> None:
    """One annotator: gives `votes` votes like the page's script does, and writes down what was acknowledged and when."""
    rng, client = random.Random(name), Client(address)
    client.join(link, name)
    told: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    judged: set[int] = set()
    while len(told) < votes:
        items = [item for item in items if item["view"] not in judged]
        if not items:
            answer = client.post_until_acknowledged("/api/next", {})
            items = [item for item in answer.said["items"] if item["view"] not in judged]
            if not items:
                time.sleep(0.2)  # others hold the rest
                continue
        time.sleep(rng.uniform(0, 2 * think))
        view, pick = items[0]["view"], rng.choice(PICKS)
        body = {"key": str(uuid.UUID(int=rng.getrandbits(128))), "view": view, "pick": pick, "seconds": 1.0}
        if pick in ("left", "right"):
            body["strength"] = rng.randint(1, 4)
        start = time.perf_counter()
        answer = client.post_until_acknowledged("/api/votes", body)
        told.append({"key": body["key"], "status": answer.status, "seconds": time.perf_counter() - start, "tries": client.tries})
        judged.add(view)
        items = answer.said.get("items", [])
    out.write_text(json.dumps(told))


def run(load: Load, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Applies the load; returns the figures: votes lost, doubled, the integrity of the file, times of answers."""
    store = make_store(folder / "load.db", -(-load.votes // load.overlap) + load.annotators)
    server = LabelServer(store, "--overlap", str(load.overlap), "--repeats", "0.05").start()
    rng, context = random.Random(seed), multiprocessing.get_context("spawn")
    admin = Client(server.address).enter(server.entrance)
    each = [load.votes // load.annotators + (i < load.votes % load.annotators) for i in range(load.annotators)]
    people = []
    for i, votes in enumerate(each):
        link = admin.post("/api/admin/invite", {"role": "annotator"}).said["link"]
        arguments = (server.address, link, f"annotator-{i}", votes, load.think, folder / f"annotator-{i}.json")
        people.append(context.Process(target=annotate, args=arguments))
    for person in people:
        person.start()
    while _num_votes(store) < load.annotators:  # all have joined and begun
        time.sleep(0.05)
    start, kills, begun, cpu = time.monotonic(), 0, _num_votes(store), server.cpu_seconds()
    for kill in range(load.kills):
        due = load.votes * (kill + 1) // (load.kills + 1)  # spread over the work, each at a random moment after its turn
        while _num_votes(store) < due and any(person.is_alive() for person in people):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        if any(person.is_alive() for person in people):
            server.kill()
            kills += 1
            server.start()
    for person in people:
        person.join()
    seconds = time.monotonic() - start
    cpu = 0.0 if kills else 1000 * (server.cpu_seconds() - cpu) / (_num_votes(store) - begun)  # of one process alone
    status = server.stop()
    told = [row for i in range(load.annotators) for row in json.loads((folder / f"annotator-{i}.json").read_text())]
    figures = {"kills": kills, "seconds": seconds, "server_exit_status": status, **_compared(store, told)}
    return figures if kills else {**figures, "server_cpu_ms_a_vote": cpu}


def _num_votes(store: Path) -> int:
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=30)) as db:
        return int(db.execute("SELECT max(id) FROM votes").fetchone()[0] or 0)


def _compared(store: Path, told: list[dict[str, Any]]) -> dict[str, Any]:
    with closing(sqlite3.connect(store)) as db:
        integrity = db.execute("PRAGMA integrity_check").fetchone()[0]
        stored = Counter(key for (key,) in db.execute("SELECT idempotency_key FROM votes"))
        views = db.execute("SELECT count(*) - count(DISTINCT view) FROM votes").fetchone()[0]
        query = "SELECT count(*) FROM (SELECT 1 FROM votes WHERE kind = 'vote' GROUP BY pair, source HAVING count(*) > 1)"
        twice = db.execute(query).fetchone()[0]
    acknowledged = [row["key"] for row in told if row["status"] == 200]
    times = sorted(row["seconds"] for row in told if row["tries"] == 1)
    return {
        "acknowledged": len(acknowledged),
        "refused": len(told) - len(acknowledged),
        "stored": sum(stored.values()),
        "lost": len(set(acknowledged) - stored.keys()),
        "doubled": sum(stored.values()) - len(stored) + views,
        "never_acknowledged": len(stored.keys() - set(acknowledged)),
        "judged_twice_by_one_person": twice,
        "integrity_check": integrity,
        "sent_more_than_once": sum(row["tries"] > 1 for row in told),
        "answer_ms": {
            "median": 1000 * statistics.median(times),
            "p95": 1000 * times[int(0.95 * len(times))],
            "p99": 1000 * times[int(0.99 * len(times))],
            "count": len(times),
        },
    }
