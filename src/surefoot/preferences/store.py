"""The preference store: prompts, answers with who wrote them, pairs and votes, in one SQLite file that only grows.

A vote that was acknowledged (`vote` returned) is on the disk: WAL with synchronous=FULL syncs the log at every commit, so neither
kill -9 nor a power cut takes it back. An undo is an event of its own. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surefoot.content import Content, canonical, checked_content, content_hash, sha256_of
from surefoot.errors import DataError
from surefoot.preferences.connect import clear_errors, connect, damaged
from surefoot.preferences.votes import CHOICES, Choice, Kind, Preference, Side, Vote, checked_source, outcome

VOTE_NAMES = "id, pair, choice, source, left_side, strength, margin, share, created, kind, seconds, tags, note"
VOTE_COLUMNS = ", ".join(f"v.{name}" for name in VOTE_NAMES.split(", "))
NUM_VOTE_COLUMNS = len(VOTE_NAMES.split(", "))


def vote_of(row: Sequence[Any]) -> Vote:
    """A row of VOTE_COLUMNS as a vote."""
    columns = [*row[:-2], tuple(json.loads(row[-2])), row[-1]]
    return Vote(*columns)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt that wait for a vote. `reason` says how they were selected."""

    id: int
    prompt: Content
    a: Content
    b: Content
    reason: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a store holds. `votes` are valid ones, `undone` those taken back; the mappings count valid votes."""

    prompts: int
    answers: int
    pairs: int
    votes: int
    undone: int
    by_source: Mapping[str, int]
    by_choice: Mapping[str, int]


class PreferenceStore:
    """One store file. Safe for several threads and processes; every method commits before it returns, except in `batch`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, busy_seconds: float) -> None:
        self.path = path
        self._connection = connection
        self._busy_seconds = busy_seconds
        self._lock = threading.RLock()
        self._depth = 0

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True, busy_seconds: float = 10.0) -> Self:
        """Opens a store, or makes one where no file is (`create`). Waits `busy_seconds` for another process's write.

        Raises:
            DataError: no such file or folder, not a store, damaged, locked for too long, or written by a newer version.
        """
        path = Path(path)
        return cls(path, connect(path, create=create, busy_seconds=busy_seconds), busy_seconds)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def batch(self) -> Iterator[sqlite3.Connection]:
        """Commits once at the end in place of once a call; on an exception nothing of it stays. Yields the connection.

        Other threads of this store wait until the batch ends, other processes until they may write.
        """
        with self._lock, clear_errors(self.path):
            outermost = self._depth == 0
            if outermost:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._connection
                if outermost:
                    self._connection.execute("COMMIT")
            except BaseException:
                if outermost and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def add_prompt(self, prompt: Content) -> int:
        """The prompt's number; a prompt that is already there keeps its own."""
        content = checked_content(prompt, "prompt")
        return self._add("prompts", "hash, content, created", (content_hash(content), canonical(content), time.time()))

    def add_answer(
        self,
        prompt: int,
        answer: Content,
        *,
        model: str = "",
        model_hash: str = "",
        sampling: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> int:
        """The answer's number. The same text of the same model under the same sampling settings is one answer.

        `token_ids` are the ids as they were sampled; `sampling` is what is needed to sample so again (JSON values).
        """
        text = canonical(checked_content(answer, "answer"))
        settings = json.dumps(dict(sampling or {}), sort_keys=True, ensure_ascii=False, allow_nan=False)
        ids = None if token_ids is None else json.dumps([int(i) for i in token_ids], separators=(",", ":"))
        with self.batch():
            owner = self._connection.execute("SELECT hash FROM prompts WHERE id = ?", (prompt,)).fetchone()
            if owner is None:
                raise DataError(f"{self.path}: there is no prompt {prompt}. Add it with add_prompt first.")
            identity = sha256_of(owner[0], text, model, model_hash, settings, ids or "")
            row = (identity, prompt, text, ids, model, model_hash, settings, time.time())
            return self._add("answers", "hash, prompt, content, token_ids, model, model_hash, sampling, created", row)

    def add_pair(self, prompt: int, a: int, b: int, *, reason: str = "") -> int:
        """Queues two answers to `prompt` for a vote. The same two in the same order are one pair.

        Raises:
            DataError: the answers are one and the same, or not both answers to this prompt.
        """
        if a == b:
            raise DataError(f"{self.path}: answer {a} cannot be compared with itself. Leave out prompts with two equal answers.")
        with self.batch():
            own = "SELECT count(*) FROM answers WHERE id IN (?, ?) AND prompt = ?"
            if self._connection.execute(own, (a, b, prompt)).fetchone()[0] != 2:
                raise DataError(f"{self.path}: answers {a} and {b} are not both answers to prompt {prompt}.")
            found = self._connection.execute("SELECT id FROM pairs WHERE answer_a = ? AND answer_b = ?", (a, b)).fetchone()
            if found is not None:
                return int(found[0])
            return self._insert("pairs", "prompt, answer_a, answer_b, reason, created", (prompt, a, b, reason, time.time()))

    def vote(
        self,
        pair: int,
        choice: Choice,
        *,
        source: str,
        left: Side | None = None,
        strength: int | None = None,
        margin: float | None = None,
        share: float | None = None,
        idempotency_key: str | None = None,
        kind: Kind = "vote",
        view: int | None = None,
        seconds: float | None = None,
        tags: Sequence[str] = (),
        note: str = "",
    ) -> int:
        """Records a vote; returns its number once it is on the disk. A key that was seen before returns the first vote's number.

        Raises:
            DataError: unknown pair, choice, side or source; a strength outside 1 to 4; a key that belongs to a different vote.
        """
        _check_vote(choice, left, strength, margin, share)
        reasons = json.dumps(list(tags), ensure_ascii=False)
        content = (pair, choice, checked_source(source), left, strength, margin, share, kind, view, seconds, reasons, note)
        with self.batch() as connection:
            if connection.execute("SELECT 1 FROM pairs WHERE id = ?", (pair,)).fetchone() is None:
                raise DataError(f"{self.path}: there is no pair {pair}.")
            names = "pair, choice, source, left_side, strength, margin, share, kind, view, seconds, tags, note"
            if idempotency_key is not None:
                query = f"SELECT id, {names} FROM votes WHERE idempotency_key = ?"
                found = connection.execute(query, (idempotency_key,)).fetchone()
                if found is not None:
                    if tuple(found[1:]) != content:
                        raise DataError(
                            f"{self.path}: key {idempotency_key!r} belongs to another vote ({found[0]}). Use a new key."
                        )
                    return int(found[0])
            row = (*content, idempotency_key or uuid.uuid4().hex, time.time())
            return self._insert("votes", f"{names}, idempotency_key, created", row)

    def has_key(self, idempotency_key: str) -> bool:
        """Whether a vote with this key was ever recorded."""
        with self.batch() as connection:
            return connection.execute("SELECT 1 FROM votes WHERE idempotency_key = ?", (idempotency_key,)).fetchone() is not None

    def undo(self, vote: int, source: str) -> int:
        """Takes a vote back, as an event by `source`; returns the event's number. Taking it back again changes nothing."""
        checked_source(source)
        with self.batch():
            if self._connection.execute("SELECT 1 FROM votes WHERE id = ?", (vote,)).fetchone() is None:
                raise DataError(f"{self.path}: there is no vote {vote}.")
            found = self._connection.execute("SELECT id FROM undos WHERE vote = ?", (vote,)).fetchone()
            if found is not None:
                return int(found[0])
            return self._insert("undos", "vote, source, created", (vote, source, time.time()))

    def pairs_without_votes(self, source: str | None = None, limit: int | None = None) -> list[Pair]:
        """Pairs on which `source` has not voted (a skip is a vote), oldest first; None: that nobody judged (a skip is none)."""
        told = "v.source = ?" if source is not None else "v.choice <> 'skip'"
        query = f"""SELECT p.id, prompts.content, a.content, b.content, p.reason FROM pairs p
            JOIN prompts ON prompts.id = p.prompt JOIN answers a ON a.id = p.answer_a JOIN answers b ON b.id = p.answer_b
            WHERE NOT EXISTS (SELECT 1 FROM valid_votes v WHERE v.pair = p.id AND {told}) ORDER BY p.id LIMIT ?"""
        arguments = ([] if source is None else [source]) + [-1 if limit is None else limit]
        with self.reader() as reader:
            rows = reader.execute(query, arguments)
            return [Pair(id, json.loads(prompt), json.loads(a), json.loads(b), reason) for id, prompt, a, b, reason in rows]

    def pairs_chosen_for(self, reason: str) -> set[int]:
        """Numbers of the pairs whose `reason` begins with this one, voted on or not."""
        with self.reader() as reader:
            return {int(row[0]) for row in reader.execute("SELECT id FROM pairs WHERE instr(reason, ?) = 1", (reason,))}

    def votes(self) -> Iterator[Vote]:
        """All valid votes, oldest first, streamed from one snapshot."""
        with self.reader() as reader:
            for row in reader.execute(f"SELECT {VOTE_COLUMNS} FROM valid_votes v ORDER BY v.id"):
                yield vote_of(row)

    def preferences(self) -> Iterator[Preference]:
        """One Preference a pair whose valid votes state one, in the order of the pairs, streamed from one snapshot.

        Pairs without votes, and with none but `both_bad` and `skip`, give nothing.
        """
        for pair, key, votes in self.judged():
            result = outcome(votes)
            if result is not None:
                chosen, rejected = (pair.a, pair.b) if result.chosen == "a" else (pair.b, pair.a)
                yield Preference(pair.prompt, chosen, rejected, result.margin, result.target, result.sources, key)

    def judged(self) -> Iterator[tuple[Pair, str, list[Vote]]]:
        """Every pair with valid votes, its prompt's key, and these votes, oldest first; streamed from one snapshot."""
        query = f"""SELECT {VOTE_COLUMNS}, prompts.content, a.content, b.content, p.reason, substr(prompts.hash, 1, 16)
            FROM valid_votes v JOIN pairs p ON p.id = v.pair JOIN prompts ON prompts.id = p.prompt
            JOIN answers a ON a.id = p.answer_a JOIN answers b ON b.id = p.answer_b ORDER BY v.pair, v.id"""
        with self.reader() as reader:
            for number, group in groupby(reader.execute(query), key=lambda row: row[1]):
                rows = list(group)
                prompt, a, b, reason, key = rows[0][NUM_VOTE_COLUMNS:]
                try:
                    pair = Pair(number, json.loads(prompt), json.loads(a), json.loads(b), reason)
                    votes = [vote_of(row[:NUM_VOTE_COLUMNS]) for row in rows]
                except ValueError as error:  # text that is no JSON
                    raise DataError(damaged(self.path, error)) from error
                yield pair, key, votes

    def digest(self) -> str:
        """sha256 of the exact votes that count: what each compares and says, and by whom; not when, nor in which order they came.

        Hidden repeats count nowhere. Two stores with equal votes have equal digests on any machine; a vote or an undo changes it.
        """
        query = """SELECT prompts.hash, a.hash, b.hash, v.choice, v.source, v.left_side, v.strength, v.margin, v.share
            , v.kind FROM valid_votes v JOIN pairs p ON p.id = v.pair JOIN prompts ON prompts.id = p.prompt
            JOIN answers a ON a.id = p.answer_a JOIN answers b ON b.id = p.answer_b WHERE v.kind <> 'repeat'"""
        with self.reader() as reader:  # a plain vote is hashed without its kind: so it was before there were kinds
            votes = (row[:-1] if row[-1] == "vote" else row for row in reader.execute(query))
            hashes = sorted(hashlib.sha256(json.dumps(vote).encode()).digest() for vote in votes)
        return hashlib.sha256(b"".join(hashes)).hexdigest()

    def counts(self) -> Counts:
        with self.reader() as reader:
            tables = ("prompts", "answers", "pairs", "valid_votes", "undos")
            sizes = [reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
            grouped = "SELECT {0}, count(*) FROM valid_votes GROUP BY {0} ORDER BY {0}"
            by_source, by_choice = (dict(reader.execute(grouped.format(column))) for column in ("source", "choice"))
        prompts, answers, pairs, votes, undone = sizes
        return Counts(prompts, answers, pairs, votes, undone, by_source, by_choice)

    def _add(self, table: str, columns: str, row: tuple[object, ...]) -> int:
        """The number of the row with this hash (the first column), which is added if it is not there."""
        with self.batch():
            found = self._connection.execute(f"SELECT id FROM {table} WHERE hash = ?", row[:1]).fetchone()
            return int(found[0]) if found is not None else self._insert(table, columns, row)

    def _insert(self, table: str, columns: str, row: tuple[object, ...]) -> int:
        marks = ", ".join("?" * len(row))
        cursor = self._connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", row)
        return int(cursor.lastrowid or 0)

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own inside one read transaction: a snapshot that later votes do not disturb."""
        with clear_errors(self.path), closing(connect(self.path, create=False, busy_seconds=self._busy_seconds)) as reader:
            reader.execute("PRAGMA query_only = ON")
            reader.execute("BEGIN")
            yield reader


def _check_vote(choice: str, left: str | None, strength: int | None, margin: float | None, share: float | None) -> None:
    if choice not in CHOICES:
        raise DataError(f"choice = {choice!r} is no vote. Use one of {', '.join(CHOICES)}.")
    if left not in ("a", "b", None):
        raise DataError(f"left = {left!r} names no answer. Use a, b, or None where nobody was shown the pair.")
    if strength is not None and (type(strength) is not int or not 1 <= strength <= 4):
        raise DataError(f"strength = {strength!r} is out of range. Use 1 (slightly), 2, 3 or 4 (by far), or None.")
    if strength is not None and margin is not None:
        raise DataError(f"a vote has strength = {strength} and margin = {margin}. Give one of them.")
    if choice not in ("a", "b") and (strength is not None or margin is not None or share is not None):
        raise DataError(f"strength, margin and share have no meaning with choice = {choice!r}. Leave them out, or choose a or b.")
    if margin is not None and not math.isfinite(margin):
        raise DataError(f"margin = {margin} is not finite. Use a number.")
    if share is not None and not 0 <= share <= 1:
        raise DataError(f"share = {share} is not a share. Use a number from 0 to 1.")
