"""Who may do what: annotators and admins, one-time invitations, sessions. No passwords: a link signs in, a cookie stays.

Secrets are 256 random bits; the store keeps their sha256 alone, so a copy of a store opens no door.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from surefoot.errors import DataError
from surefoot.preferences.store import PreferenceStore

Role = Literal["annotator", "admin"]
NAME = re.compile(r"[a-z0-9._-]{1,64}")
DAY = 86_400.0
SESSION_DAYS = 30.0
INVITATION_DAYS = 7.0
CACHE_SECONDS = 5.0  # how long another process's change to accounts may go unseen


@dataclass(frozen=True, slots=True)
class Annotator:
    """Somebody with an account. Their votes are of the source human:NAME."""

    name: str
    role: Role

    @property
    def source(self) -> str:
        return f"human:{self.name}"


@dataclass(frozen=True, slots=True)
class Invitation:
    """An unused link: whom it makes or signs in (None: whoever follows it chooses a name), in which role, until when."""

    name: str | None
    role: Role
    expires: float


@dataclass(frozen=True, slots=True)
class Account:
    """A row of the admin's table."""

    annotator: Annotator
    is_open: bool
    created: float


def secret_hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def checked_name(name: str) -> str:
    """
    Raises:
        DataError: not 1 to 64 of a-z 0-9 . _ -
    """
    if NAME.fullmatch(name) is None:
        raise DataError(f"name = {name[:80]!r} is not allowed. Use 1 to 64 of a-z 0-9 . _ -, such as ann.")
    return name


class Accounts:
    """The accounts of one store."""

    def __init__(self, store: PreferenceStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._seen: dict[
            str, tuple[Annotator | None, float]
        ] = {}  # by the secret's hash: whose it was, and when that was looked up
        self._lock = threading.Lock()

    def num_accounts(self) -> int:
        """Accounts and open invitations: whether anybody could sign in."""
        with self._store.batch() as db:
            query = """SELECT (SELECT count(*) FROM annotators WHERE is_open)
                + (SELECT count(*) FROM invitations WHERE expires > ?)"""
            return int(db.execute(query, (self._clock(),)).fetchone()[0])

    def invite(self, role: Role, name: str | None = None, days: float = INVITATION_DAYS) -> str:
        """The token of a one-time link. With the name of an account it signs in to it, in the account's own role."""
        if name is not None:
            checked_name(name)
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._store.batch() as db:
            row = (secret_hash(token), name, role, now + days * DAY, now)
            db.execute("INSERT INTO invitations (token_hash, name, role, expires, created) VALUES (?, ?, ?, ?, ?)", row)
        return token

    def invitation(self, token: str) -> Invitation | None:
        """The unused invitation with this token."""
        with self._store.batch() as db:
            query = "SELECT name, role, expires FROM invitations WHERE token_hash = ? AND expires > ?"
            found = db.execute(query, (secret_hash(token), self._clock())).fetchone()
            return None if found is None else Invitation(*found)

    def join(self, token: str, name: str) -> str:
        """Uses up an invitation; returns the secret of a new session.

        Raises:
            DataError: the invitation is not there any more, or the name is not allowed, taken, or not the invited one.
        """
        checked_name(name)
        with self._store.batch() as db:
            invitation = self.invitation(token)
            if invitation is None:
                raise DataError("this invitation is used up or too old. Ask for a new link.")
            if invitation.name not in (None, name):
                raise DataError(f"this invitation is for {invitation.name}. Use that name.")
            taken = db.execute("SELECT is_open FROM annotators WHERE name = ?", (name,)).fetchone()
            voted = db.execute("SELECT 1 FROM votes WHERE source = ? LIMIT 1", (f"human:{name}",)).fetchone()
            if invitation.name is None and (taken is not None or voted is not None):
                raise DataError(f"the name {name} is taken. Choose another.")
            if taken is not None and not taken[0]:
                raise DataError(f"the account {name} is closed. Ask the person who runs this page.")
            db.execute("DELETE FROM invitations WHERE token_hash = ?", (secret_hash(token),))
            return self.sign_in(name, invitation.role)

    def sign_in(self, name: str, role: Role) -> str:
        """The secret of a new session for an account, which is made where there is none, and made an admin's for `admin`."""
        secret, now = secrets.token_urlsafe(32), self._clock()
        with self._store.batch() as db:
            query = """INSERT INTO annotators (name, role, created) VALUES (?, ?, ?)
                ON CONFLICT (name) DO UPDATE SET role = 'admin' WHERE excluded.role = 'admin'"""
            db.execute(query, (checked_name(name), role, now))
            query = """INSERT INTO sessions (secret_hash, annotator, expires, created)
                SELECT ?, id, ?, ? FROM annotators WHERE name = ?"""
            db.execute(query, (secret_hash(secret), now + SESSION_DAYS * DAY, now, name))
        return secret

    def remembered(self, secret: str) -> tuple[Annotator | None] | None:
        """What `session` said a moment ago, without a look into the store; None: it must be asked."""
        with self._lock:
            found = self._seen.get(secret_hash(secret))
        return (found[0],) if found is not None and self._clock() - found[1] < CACHE_SECONDS else None

    def session(self, secret: str) -> Annotator | None:
        """Whose session this is; None for a stranger."""
        key, now = secret_hash(secret), self._clock()
        with self._store.batch() as db:
            query = """SELECT a.name, a.role FROM sessions s JOIN annotators a ON a.id = s.annotator
                WHERE s.secret_hash = ? AND s.expires > ? AND a.is_open"""
            row = db.execute(query, (key, now)).fetchone()
        annotator = None if row is None else Annotator(*row)
        with self._lock:
            if len(self._seen) > 10_000:  # strangers who guess
                self._seen.clear()
            self._seen[key] = (annotator, now)
        return annotator

    def sign_out(self, secret: str) -> None:
        with self._store.batch() as db:
            db.execute("DELETE FROM sessions WHERE secret_hash = ?", (secret_hash(secret),))
        self._forget()

    def set_open(self, name: str, is_open: bool) -> None:
        """Closes an account, at once in all its browsers, or opens it again. Its votes stay.

        Raises:
            DataError: no such account, or the last admin's.
        """
        with self._store.batch() as db:
            db.execute("UPDATE annotators SET is_open = ? WHERE name = ?", (int(is_open), name))
            if not db.execute("SELECT changes()").fetchone()[0]:
                raise DataError(f"there is no account {name[:80]!r}.")
            if not db.execute("SELECT 1 FROM annotators WHERE role = 'admin' AND is_open").fetchone():
                raise DataError(f"{name} is the last admin. Invite another first.")
            if not is_open:
                query = "DELETE FROM sessions WHERE annotator = (SELECT id FROM annotators WHERE name = ?)"
                db.execute(query, (name,))
        self._forget()

    def accounts(self) -> list[Account]:
        with self._store.reader() as db:
            rows = db.execute("SELECT name, role, is_open, created FROM annotators ORDER BY name")
            return [Account(Annotator(name, role), bool(is_open), created) for name, role, is_open, created in rows]

    def _forget(self) -> None:
        with self._lock:
            self._seen.clear()
