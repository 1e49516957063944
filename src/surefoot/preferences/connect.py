"""Opening a store's SQLite file: durable settings, the schema, and SQLite's errors as one clear line each."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surefoot.errors import DataError
from surefoot.preferences.schema import APPLICATION_ID, SCHEMA_VERSION, UPGRADES


def connect(path: Path, *, create: bool, busy_seconds: float) -> sqlite3.Connection:
    """A connection that syncs every commit and enforces foreign keys, to a file that is known to be a store.

    Transactions are begun by hand (`isolation_level` None), and threads share the connection under the store's lock.
    """
    if not path.exists() and not create:
        raise DataError(f"no preference store at {path}. Make one with `surefoot pairs` or `surefoot import`, or mend the path.")
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a preference store. Name a file, such as {path / 'preferences.db'}.")
    if not path.parent.is_dir():
        raise DataError(f"cannot make {path}: there is no folder {path.parent}. Make it first, or mend the path.")
    with clear_errors(path):
        connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            _check_or_create(connection, path, busy_seconds)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except UnicodeDecodeError as error:  # a name in the schema
            connection.close()
            raise DataError(damaged(path, error)) from error
        except BaseException:
            connection.close()
            raise
    return connection


def _check_or_create(connection: sqlite3.Connection, path: Path, busy_seconds: float) -> None:
    """Makes the tables of a new store, and brings those of an older version up to date, whole or not at all."""
    version = version_of(connection, path)
    if version == SCHEMA_VERSION:
        return
    if version == 0:
        _journal_ahead(connection, busy_seconds)
    connection.execute("BEGIN IMMEDIATE")
    for following in range(version_of(connection, path) + 1, SCHEMA_VERSION + 1):  # another process may have been first
        for statement in _statements(UPGRADES[following]):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _journal_ahead(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Switches the file to WAL, which its header keeps. SQLite does not wait here for another process that does the same."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a store, 0 for an empty file.

    Raises:
        DataError: another program's SQLite file, or a store of a newer version.
    """
    # tables and id appear at once: asked in this order, a store that is made meanwhile is not taken for another program's
    has_tables = bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{path} was written by a newer Surefoot (store version {version}; this one reads up to {SCHEMA_VERSION}). "
                "Upgrade with `pip install -U surefoot`."
            )
        return int(version)
    if has_tables:
        raise DataError(f"{path} is an SQLite file of another program, not a preference store. Name another file.")
    return 0


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit, and the schema must appear whole or not at all."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into a DataError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(_explain(path, error)) from error


def damaged(path: Path, error: Exception) -> str:
    """What to say of a store whose bytes are not what was written."""
    return f"{path} is damaged ({error}). Restore a copy, or save what is readable with `sqlite3 {path} .recover`."


def _explain(path: Path, error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the low byte is the primary code
        case sqlite3.SQLITE_NOTADB:
            return f"{path} is not a preference store (it is no SQLite file). Name a store, or a new file."
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} is locked: another process is writing to it. Wait until it is done, or end it."
        case sqlite3.SQLITE_CORRUPT:
            return damaged(path, error)
        case sqlite3.SQLITE_FULL:
            return f"{path} cannot grow: the disk is full. Free some space; all votes acknowledged so far are kept."
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return f"{path} cannot be opened for writing ({error}). Check the permissions of the file and its folder."
    if "Could not decode to UTF-8" in str(error):  # sqlite3's words for a column, which has no code
        return damaged(path, error)
    return f"{path}: {error}."
