"""What the admin's page shows: the queue, the pace, how far people agree, who needs a look, which pairs are disputed."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass

from surefoot.content import Content, plain_text
from surefoot.intervals import Interval
from surefoot.preferences.accounts import Account, Accounts
from surefoot.preferences.agreement import (
    Agreement,
    Bias,
    Standing,
    agreement,
    length_bias,
    position_bias,
    self_agreement,
    standings,
)
from surefoot.preferences.queue import BLIND, NUM_VOTES, Queue
from surefoot.preferences.store import VOTE_COLUMNS, Counts, PreferenceStore, vote_of
from surefoot.preferences.votes import Vote

HOURS = 24
MOST_DISPUTED = 8


@dataclass(frozen=True, slots=True)
class Worker:
    """A row of the table of voters. `account` is None for imports and functions; a figure is None where no vote gives it."""

    source: str
    account: Account | None
    is_taken_out: bool
    num_votes: int
    median_seconds: float | None
    position: Bias | None
    with_self: Interval | None
    standing: Standing | None

    @property
    def needs_a_look(self) -> bool:
        return self.standing is not None and self.standing.finding in ("inverted", "random")


@dataclass(frozen=True, slots=True)
class Disputed:
    """A pair on which people differ, or that was settled: who said what. `models` is None for a pair of a blind comparison."""

    pair: int
    prompt: Content
    a: Content
    b: Content
    models: tuple[str, str] | None
    said: dict[str, list[str]]  # choice -> names
    reasons: list[tuple[str, str]]  # who gave tags or a note, and these
    settled: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    counts: Counts
    num_complete: int
    num_held: int
    num_asked: int  # votes that are still asked for
    by_hour: list[int]  # votes of the last hours, the newest last
    agreement: Agreement
    position: Bias | None
    length: Bias | None
    workers: list[Worker]
    disputed: list[Disputed]
    num_disputed: int


def overview(queue: Queue, accounts: Accounts, now: float | None = None) -> Overview:
    """All figures from one pass over the valid votes."""
    store, moment = queue.store, time.time() if now is None else now
    votes = list(store.votes())
    given = [vote for vote in votes if vote.kind != "adjudication"]
    lengths = pair_lengths(store)
    complete, held, asked = _queue_figures(queue, moment)
    disputed, num_disputed = _disputed(store, votes)
    hours = Counter(int((moment - vote.created) // 3600) for vote in given)
    return Overview(
        counts=store.counts(),
        num_complete=complete,
        num_held=held,
        num_asked=asked,
        by_hour=[hours[hour] for hour in reversed(range(HOURS))],
        agreement=agreement(given),
        position=position_bias(given),
        length=length_bias(given, lengths),
        workers=_workers(store, accounts, given),
        disputed=disputed,
        num_disputed=num_disputed,
    )


def pair_lengths(store: PreferenceStore) -> dict[int, tuple[int, int]]:
    """Characters of both answers, by pair."""
    query = """SELECT p.id, a.content, b.content FROM pairs p
        JOIN answers a ON a.id = p.answer_a JOIN answers b ON b.id = p.answer_b"""
    with store.reader() as db:
        return {pair: (_length(a), _length(b)) for pair, a, b in db.execute(query)}


def _length(content: str) -> int:
    parsed: Content = json.loads(content)
    return len(parsed) if isinstance(parsed, str) else sum(len(message["content"]) for message in parsed)


def _queue_figures(queue: Queue, now: float) -> tuple[int, int, int]:
    with queue.store.reader() as db:
        query = f"SELECT count(*), coalesce(sum(:k - n), 0) FROM (SELECT {NUM_VOTES} AS n FROM pairs p) WHERE n < :k"
        unfinished, asked = db.execute(query, {"k": queue.overlap}).fetchone()
        pairs = db.execute("SELECT count(*) FROM pairs").fetchone()[0]
        held = db.execute("SELECT count(*) FROM leases WHERE expires > ?", (now,)).fetchone()[0]
    return pairs - unfinished, held, asked


def _workers(store: PreferenceStore, accounts: Accounts, votes: list[Vote]) -> list[Worker]:
    by_account = {account.annotator.source: account for account in accounts.accounts()}
    with store.reader() as db:
        query = """SELECT source, count(*) FROM votes WHERE kind <> 'adjudication'
            AND NOT EXISTS (SELECT 1 FROM undos WHERE undos.vote = votes.id) GROUP BY source"""
        given: dict[str, int] = dict(db.execute(query).fetchall())
        out = {source for source, is_out in db.execute(WITHDRAWN) if is_out}
    own: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        own[vote.source].append(vote)
    repeated, found = self_agreement(votes), {standing.source: standing for standing in standings(votes)}
    return [
        Worker(
            source=source,
            account=by_account.get(source),
            is_taken_out=source in out,
            num_votes=given.get(source, 0),
            median_seconds=_median([vote.seconds for vote in own[source] if vote.seconds is not None]),
            position=position_bias(own[source]),
            with_self=repeated.get(source),
            standing=found.get(source),
        )
        for source in sorted(given.keys() | by_account.keys())
    ]


def _median(seconds: list[float]) -> float | None:
    return statistics.median(seconds) if seconds else None


def _disputed(store: PreferenceStore, votes: list[Vote]) -> tuple[list[Disputed], int]:
    """Unsettled pairs first, those with the most votes first; and how many there are in all."""
    by_pair: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.kind != "repeat" and vote.choice != "skip":
            by_pair[vote.pair].append(vote)
    settled = {v.pair: v.choice for v in votes if v.kind == "adjudication"}
    differing = [
        pair for pair, cast in by_pair.items() if pair in settled or len({v.choice for v in cast if v.kind == "vote"}) > 1
    ]
    differing.sort(key=lambda pair: (pair in settled, -len(by_pair[pair]), pair))
    shown = []
    with store.reader() as db:
        for pair in differing[:MOST_DISPUTED]:
            prompt, a, b, model_a, model_b, reason = db.execute(PAIR, (pair,)).fetchone()
            said: dict[str, list[str]] = defaultdict(list)
            reasons: list[tuple[str, str]] = []
            for vote in by_pair[pair]:
                if vote.kind == "vote":
                    said[vote.choice].append(name := vote.source.removeprefix("human:"))
                    if why := ". ".join(filter(None, (", ".join(vote.tags), vote.note))):
                        reasons.append((name, why))
            texts = (json.loads(prompt), json.loads(a), json.loads(b))
            models = None if reason.startswith(BLIND) else (model_a, model_b)  # who settles is as blind as who voted
            shown.append(Disputed(pair, *texts, models, dict(said), reasons, settled.get(pair)))
    return shown, len([pair for pair in differing if pair not in settled])


def settle(store: PreferenceStore, pair: int, choice: str | None, by: str, key: str) -> None:
    """Settles a pair by `choice` in place of what people said; None takes the decision back. Earlier decisions are undone."""
    with store.batch() as db:
        query = f"SELECT {VOTE_COLUMNS} FROM valid_votes v WHERE v.pair = ? AND v.kind = 'adjudication'"
        for row in db.execute(query, (pair,)).fetchall():
            store.undo(vote_of(row).id, by)
        if choice is not None:
            store.vote(pair, choice, source=by, kind="adjudication", idempotency_key=key)  # type: ignore[arg-type]


def has_votes(store: PreferenceStore, source: str) -> bool:
    with store.batch() as db:
        return db.execute("SELECT 1 FROM votes WHERE source = ? LIMIT 1", (source,)).fetchone() is not None


def take_out(store: PreferenceStore, source: str, by: str, *, out: bool) -> None:
    """Takes all votes of a source out of every count and every training, or puts them back: an event, like an undo."""
    with store.batch() as db:
        row = (source, int(out), by, time.time())
        db.execute("INSERT INTO withdrawals (source, taken_out, by_source, created) VALUES (?, ?, ?, ?)", row)


def excerpt(content: Content, most: int = 600) -> str:
    text = plain_text(content)
    return text if len(text) <= most else text[: most - 1] + "…"


WITHDRAWN = "SELECT source, taken_out FROM withdrawals WHERE id IN (SELECT max(id) FROM withdrawals GROUP BY source)"
PAIR = """SELECT prompts.content, a.content, b.content, a.model, b.model, p.reason FROM pairs p
    JOIN prompts ON prompts.id = p.prompt JOIN answers a ON a.id = p.answer_a JOIN answers b ON b.id = p.answer_b
    WHERE p.id = ?"""
