"""Who judges which pair next: leases of ten minutes with slots, hidden repeats, undo. Every step is one transaction.

A pair has `overlap` slots, one a vote that is asked for. To show a pair is a view: its sides are drawn at random and stored, and
its slot is leased to the browser that shows it. No two browsers hold the same slot of a pair. A vote that comes after its lease
ran out is kept all the same: a person gave it.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from surefoot.content import Content
from surefoot.errors import DataError
from surefoot.faults import fault_point
from surefoot.preferences.store import PreferenceStore
from surefoot.preferences.votes import Choice, Side

Pick = Literal["left", "right", "tie", "both_bad", "skip"]
LEASE_SECONDS = 600.0
UNDO_DEPTH = 50
BLIND = "compare "  # how the reason of pairs of `surefoot compare --people` begins
REPEAT_DISTANCE = 10  # votes that lie between a pair and its hidden repeat, so that memory does not answer


class Refused(DataError):
    """A ballot or an undo that can never be taken, however often it is sent."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who asks: an annotator's source (human:NAME) in one browser (`session`)."""

    source: str
    session: str


@dataclass(frozen=True, slots=True)
class Item:
    """A pair as one person sees it. Which model wrote what is not in it."""

    view: int
    prompt: Content
    left: Content
    right: Content
    expires: float


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a browser sends for one view. `key` was made in the browser: sent twice, it is one vote."""

    key: str
    view: int
    pick: Pick
    strength: int | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    seconds: float | None = None


@dataclass(slots=True)
class Queue:
    """The queue of one store. `overlap` votes are asked for a pair; a share `repeats` of views are hidden repeats."""

    store: PreferenceStore
    overlap: int = 1
    repeats: float = 0.0
    lease_seconds: float = LEASE_SECONDS
    rng: random.Random = field(default_factory=random.SystemRandom)
    clock: Callable[[], float] = time.time
    _start: dict[str, int] = field(default_factory=dict)  # by source: no pair below this one is open to it, as last seen
    _num_ballots: int = 0

    def held(self, holder: Holder, wanted: int) -> list[Item]:
        """The items that this browser holds, oldest first, with new ones up to `wanted`; all leases are renewed."""
        with self.store.batch() as db:
            now = self.clock()
            db.execute("DELETE FROM leases WHERE expires <= ?", (now,))
            held = [view for (view,) in db.execute("SELECT view FROM leases WHERE session = ? ORDER BY view", (holder.session,))]
            while len(held) < wanted and (view := self._next_view(db, holder, now)) is not None:
                held.append(view)
            expires = now + self.lease_seconds
            db.execute("UPDATE leases SET expires = ? WHERE session = ?", (expires, holder.session))
            return [_item(db, view, expires) for view in held]

    def cast(self, holder: Holder, ballot: Ballot, wanted: int) -> tuple[list[Item], bool, bool]:
        """`vote`, and `held` for what comes next, in one transaction: one wait for the disk.

        Returns the items, whether the vote is new (False: sent before), and whether it was a hidden repeat.
        """
        self._num_ballots += 1
        fault_point("vote-arrived", self._num_ballots)
        with self.store.batch() as db:
            is_new = db.execute("SELECT 1 FROM votes WHERE idempotency_key = ?", (ballot.key,)).fetchone() is None
            self.vote(holder, ballot)
            items = self.held(holder, wanted)
            is_repeat = db.execute("SELECT slot IS NULL FROM views WHERE id = ?", (ballot.view,)).fetchone()[0]
        fault_point("vote-stored", self._num_ballots)
        return items, is_new, bool(is_repeat)

    def vote(self, holder: Holder, ballot: Ballot) -> int:
        """The vote's number, once it is on the disk.

        Raises:
            Refused: no such view of this person, or the view has its vote already (from another tab).
        """
        with self.store.batch() as db:
            view = db.execute("SELECT pair, slot, left_side FROM views WHERE id = ? AND source = ?", (ballot.view, holder.source))
            shown = view.fetchone()
            if shown is None:
                raise Refused(f"view {ballot.view} was not shown to {holder.source}. Reload the page.")
            pair, slot, left = shown
            other = db.execute("SELECT idempotency_key FROM votes WHERE view = ?", (ballot.view,)).fetchone()
            if other is not None and other[0] != ballot.key:
                raise Refused(f"view {ballot.view} has its vote already, from another tab or window. This one is not counted.")
            try:
                number = self.store.vote(
                    pair,
                    choice_of(ballot.pick, left),
                    source=holder.source,
                    left=left,
                    strength=ballot.strength,
                    idempotency_key=ballot.key,
                    kind="repeat" if slot is None else "vote",
                    view=ballot.view,
                    seconds=ballot.seconds,
                    tags=ballot.tags,
                    note=ballot.note,
                )
            except DataError as error:
                if isinstance(error.__cause__, sqlite3.Error):
                    raise  # the disk, not the ballot: the browser keeps it and sends it again
                raise Refused(str(error)) from None
            db.execute("DELETE FROM leases WHERE view = ?", (ballot.view,))
        return number

    def undo(self, holder: Holder, key: str) -> Item | None:
        """Takes back the vote with this key, one of the person's last 50, and shows its pair anew, with sides drawn again.

        None where the vote was taken back before and its pair is no longer this browser's.

        Raises:
            Refused: no vote of this person has that key, or it lies too far back.
        """
        with self.store.batch() as db:
            query = "SELECT id, pair, kind FROM votes WHERE idempotency_key = ? AND source = ? AND kind <> 'adjudication'"
            found = db.execute(query, (key, holder.source)).fetchone()
            if found is None:
                raise Refused(f"there is no vote {key} of {holder.source}.")
            vote, pair, kind = found
            now = self.clock()
            if db.execute("SELECT 1 FROM undos WHERE vote = ?", (vote,)).fetchone() is not None:
                query = "SELECT view FROM leases WHERE session = ? AND pair = ? AND expires > ?"
                lease = db.execute(query, (holder.session, pair, now)).fetchone()
                return None if lease is None else _item(db, lease[0], now + self.lease_seconds)
            if key not in self.undoable(holder.source):
                raise Refused(f"only the last {UNDO_DEPTH} votes can be taken back.")
            self.store.undo(vote, holder.source)
            self.forget_places()
            query = """SELECT w.slot FROM votes v JOIN views w ON w.id = v.view WHERE v.id = ?
                AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.pair = v.pair AND l.slot = w.slot)"""
            same = db.execute(query, (vote,)).fetchone()
            free = self._free_slot(db, pair) if same is None else same[0]
            slot = None if kind == "repeat" else free
            view = self._show(db, holder, pair, slot, self.rng.choice(("a", "b")), now)
            return _item(db, view, now + self.lease_seconds)

    def undoable(self, source: str) -> list[str]:
        """Keys of the votes that `source` may take back, the newest last."""
        query = """SELECT v.idempotency_key FROM votes v WHERE v.source = ? AND v.view IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM undos WHERE undos.vote = v.id) ORDER BY v.id DESC LIMIT ?"""
        with self.store.batch() as db:
            return [key for (key,) in db.execute(query, (source, UNDO_DEPTH))][::-1]

    def models(self, view: int) -> tuple[str, str] | tuple[None, None]:
        """Who wrote the left and the right answer of a view: to be told after the vote, and of a blind comparison never."""
        query = """SELECT w.left_side, a.model, b.model, p.reason FROM views w JOIN pairs p ON p.id = w.pair
            JOIN answers a ON a.id = p.answer_a JOIN answers b ON b.id = p.answer_b WHERE w.id = ?"""
        with self.store.batch() as db:
            left, a, b, reason = db.execute(query, (view,)).fetchone()
        if reason.startswith(BLIND):
            return None, None
        return (a, b) if left == "a" else (b, a)

    def release(self, session: str) -> None:
        """Gives back what a browser holds."""
        with self.store.batch() as db:
            db.execute("DELETE FROM leases WHERE session = ?", (session,))
        self.forget_places()

    def forget_places(self) -> None:
        """Searches from the first pair again: some are open that were not."""
        self._start.clear()

    def left(self, source: str) -> int:
        """How many pairs are still open to `source`, those that it holds included."""
        with self.store.reader() as db:
            query = f"SELECT count(*) FROM pairs p WHERE {OPEN_TO_SOURCE} AND {NUM_VOTES} < :overlap"
            return int(db.execute(query, {"source": source, "overlap": self.overlap}).fetchone()[0])

    def _next_view(self, db: sqlite3.Connection, holder: Holder, now: float) -> int | None:
        repeat = self._repeat(db, holder.source) if self.rng.random() < self.repeats else None
        if repeat is not None:
            pair, left = repeat
            return self._show(db, holder, pair, None, "b" if left == "a" else "a", now)
        following = self._open_pair(db, holder.source)
        if following is None:
            return None
        return self._show(db, holder, following, self._free_slot(db, following), self.rng.choice(("a", "b")), now)

    def _open_pair(self, db: sqlite3.Connection, source: str) -> int | None:
        """The oldest pair with a free slot that `source` has neither judged nor before its eyes.

        The search starts where the last one ended; where nothing is left there, once more from the first pair, since leases run
        out and other processes take votes back.
        """
        start = self._start.get(source, 0)
        query = f"""SELECT p.id FROM pairs p WHERE p.id >= :start AND {OPEN_TO_SOURCE} AND {UNHELD_BY_SOURCE}
            AND {NUM_VOTES} + (SELECT count(*) FROM leases l WHERE l.pair = p.id AND l.slot IS NOT NULL) < :overlap
            ORDER BY p.id LIMIT 1"""
        for first in dict.fromkeys((start, 0)):
            found = db.execute(query, {"start": first, "source": source, "overlap": self.overlap}).fetchone()
            if found is not None:
                self._start[source] = found[0]
                return int(found[0])
        return None

    def _repeat(self, db: sqlite3.Connection, source: str) -> tuple[int, Side] | None:
        """A pair for a second look, and the side on which answer a or b stood at the first."""
        query = """SELECT v.pair, v.left_side FROM votes v WHERE v.source = :source AND v.kind = 'vote' AND v.view IS NOT NULL
            AND v.choice IN ('a', 'b', 'tie') AND NOT EXISTS (SELECT 1 FROM undos WHERE undos.vote = v.id)
            AND NOT EXISTS (SELECT 1 FROM views w WHERE w.pair = v.pair AND w.source = v.source AND w.slot IS NULL)
            ORDER BY v.id DESC LIMIT 40 OFFSET :distance"""
        seen = db.execute(query, {"source": source, "distance": REPEAT_DISTANCE}).fetchall()
        return self.rng.choice(seen) if seen else None

    def _free_slot(self, db: sqlite3.Connection, pair: int) -> int:
        taken = """SELECT slot FROM leases WHERE pair = :pair UNION SELECT w.slot FROM valid_votes v
            JOIN views w ON w.id = v.view WHERE v.pair = :pair AND v.choice <> 'skip'"""
        used = {slot for (slot,) in db.execute(taken, {"pair": pair})}
        return next(slot for slot in range(len(used) + 1) if slot not in used)

    def _show(self, db: sqlite3.Connection, holder: Holder, pair: int, slot: int | None, left: Side, now: float) -> int:
        columns = "INSERT INTO views (pair, slot, source, left_side, created) VALUES (?, ?, ?, ?, ?)"
        view = int(db.execute(columns, (pair, slot, holder.source, left, now)).lastrowid or 0)
        lease = (view, pair, slot, holder.source, holder.session, now + self.lease_seconds)
        db.execute("INSERT INTO leases (view, pair, slot, source, session, expires) VALUES (?, ?, ?, ?, ?, ?)", lease)
        return view


# what its own withdrawn votes judged stays judged: nobody is asked the same twice
OPEN_TO_SOURCE = """NOT EXISTS (SELECT 1 FROM votes v WHERE v.pair = p.id AND v.source = :source
    AND NOT EXISTS (SELECT 1 FROM undos WHERE undos.vote = v.id))"""
UNHELD_BY_SOURCE = "NOT EXISTS (SELECT 1 FROM leases l WHERE l.pair = p.id AND l.source = :source)"
NUM_VOTES = "(SELECT count(*) FROM valid_votes v WHERE v.pair = p.id AND v.choice <> 'skip' AND v.kind <> 'repeat')"


def choice_of(pick: Pick, left: Side) -> Choice:
    """The answer that a side means in this view."""
    if pick == "left":
        return left
    if pick == "right":
        return "b" if left == "a" else "a"
    return pick


def _item(db: sqlite3.Connection, view: int, expires: float) -> Item:
    query = """SELECT w.left_side, prompts.content, a.content, b.content FROM views w JOIN pairs p ON p.id = w.pair
        JOIN prompts ON prompts.id = p.prompt JOIN answers a ON a.id = p.answer_a JOIN answers b ON b.id = p.answer_b
        WHERE w.id = ?"""
    left, prompt, a, b = db.execute(query, (view,)).fetchone()
    sides = (a, b) if left == "a" else (b, a)
    return Item(view, json.loads(prompt), json.loads(sides[0]), json.loads(sides[1]), expires)
