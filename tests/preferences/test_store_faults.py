"""The store under faults: killed, crowded, damaged, somebody else's file. (FAULTS: L1, L2, L3.)"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

import surefoot
from surefoot.errors import DataError
from surefoot.preferences import PreferenceStore
from surefoot.preferences.connect import version_of
from surefoot.preferences.schema import SCHEMA_VERSION

VOTER = """
import sys
from surefoot.preferences import PreferenceStore
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with PreferenceStore.open(path) as store:
    for i in range(count):
        store.vote(1, "a", source="human:" + name, idempotency_key=f"{name}-{i}")
        print(f"{name}-{i}", flush=True)
"""


CHILD = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1])}  # children see this very package


def voter(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", VOTER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True, env=CHILD
    )


def keys(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as by_hand:
        assert by_hand.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [key for (key,) in by_hand.execute("SELECT idempotency_key FROM votes ORDER BY id")]


def test_no_acknowledged_vote_is_lost_in_twenty_kills(store, pair):
    rng, acknowledged = random.Random(0), []
    for kill in range(20):
        child = voter(store.path, f"k{kill}", 100_000)
        assert child.stdout is not None
        acknowledged += [child.stdout.readline().strip() for _ in range(rng.randint(1, 25))]
        os.kill(child.pid, signal.SIGKILL)
        acknowledged += child.stdout.read().split("\n")[:-1]  # acknowledged between the last line read and the kill
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
    stored = keys(store.path)
    assert len(set(stored)) == len(stored)
    assert set(acknowledged) <= set(stored)
    assert len(stored) <= len(acknowledged) + 20  # at most one a kill was on the disk and not yet acknowledged


def test_a_killed_batch_leaves_nothing_of_it(store, pair):
    code = VOTER.replace("    for i", "    batch = store.batch(); batch.__enter__()\n    for i")
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path), "x", "100000"], stdout=subprocess.PIPE, text=True, env=CHILD
    )
    assert child.stdout is not None
    for _ in range(5):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert keys(store.path) == []


def test_two_processes_and_two_threads_lose_and_double_no_vote(store, pair):
    children = [voter(store.path, name, 40) for name in ("p", "q")]

    def click(name: str) -> None:
        for i in range(40):
            for _ in range(2):  # each click arrives twice
                store.vote(pair, "b", source=f"human:{name}", idempotency_key=f"{name}-{i}")

    threads = [threading.Thread(target=click, args=(name,)) for name in ("t", "u")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(keys(store.path)) == sorted(f"{name}-{i}" for name in "pqtu" for i in range(40))
    assert store.counts().by_source == {f"human:{name}": 40 for name in "pqtu"}


def test_a_vote_of_another_thread_waits_for_a_batch_and_is_not_part_of_it(store, pair):
    with pytest.raises(RuntimeError), store.batch():
        click = threading.Thread(target=store.vote, args=(pair, "a"), kwargs={"source": "human:ann"})
        click.start()
        click.join(0.2)
        assert click.is_alive()  # not acknowledged while it could still be rolled back
        raise RuntimeError("the import failed")
    click.join()
    assert store.counts().votes == 1


def test_making_a_store_waits_for_a_writer_that_is_at_the_new_file(tmp_path):
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # whoever switches to WAL now is told at once that the file is busy
    release = threading.Timer(0.3, other.execute, ("COMMIT",))
    release.start()
    with PreferenceStore.open(path) as store:
        store.add_prompt("Hi")
        assert store.counts().prompts == 1
    release.join()
    other.close()


def test_two_processes_that_make_the_same_store_both_succeed(tmp_path):
    code = "import sys; from surefoot.preferences import PreferenceStore; PreferenceStore.open(sys.argv[1]).add_prompt('Hi')"
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "new.db")], env=CHILD) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    with PreferenceStore.open(tmp_path / "new.db") as store:
        assert store.counts().prompts == 1


def test_a_store_that_appears_between_two_questions_is_a_store(tmp_path):
    path = tmp_path / "new.db"

    class Overtaken(sqlite3.Connection):
        """Another process makes the store after the first thing that is asked of it."""

        asked = 0

        def execute(self, *given):
            answer = super().execute(*given).fetchone()
            if not Overtaken.asked:
                Overtaken.asked = 1
                PreferenceStore.open(path).close()
            return SimpleNamespace(fetchone=lambda: answer)

    with closing(sqlite3.connect(path, isolation_level=None, factory=Overtaken)) as connection:
        assert version_of(connection, path) == SCHEMA_VERSION
    assert Overtaken.asked


def test_a_store_that_another_process_holds_is_said_to_be_locked(store, pair):
    with closing(sqlite3.connect(store.path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with PreferenceStore.open(store.path, busy_seconds=0.05) as waiting, pytest.raises(DataError) as caught:
            waiting.vote(pair, "a", source="ratings")
    assert str(caught.value) == f"{store.path} is locked: another process is writing to it. Wait until it is done, or end it."


def refusal(path: Path, **how: bool) -> str:
    with pytest.raises(DataError) as caught:
        PreferenceStore.open(path, **how)
    return str(caught.value)


def test_a_file_that_is_no_store_is_refused_and_left_as_it_was(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes, and they are long enough to hold a header. " * 20)
    before = path.read_bytes()
    assert refusal(path) == f"{path} is not a preference store (it is no SQLite file). Name a store, or a new file."
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_as_it_was(tmp_path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE things (id INTEGER)")
    before = path.read_bytes()
    assert refusal(path) == f"{path} is an SQLite file of another program, not a preference store. Name another file."
    assert path.read_bytes() == before


def test_a_store_of_a_newer_version_says_what_to_do(store):
    store._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert refusal(store.path) == (
        f"{store.path} was written by a newer Surefoot (store version {SCHEMA_VERSION + 1}; "
        f"this one reads up to {SCHEMA_VERSION}). Upgrade with `pip install -U surefoot`."
    )


def test_a_missing_store_is_made_only_where_that_is_wanted(tmp_path):
    path = tmp_path / "p.db"
    assert refusal(path, create=False) == (
        f"no preference store at {path}. Make one with `surefoot pairs` or `surefoot import`, or mend the path."
    )
    assert not path.exists()
    nowhere = tmp_path / "no" / "p.db"
    assert refusal(nowhere) == f"cannot make {nowhere}: there is no folder {nowhere.parent}. Make it first, or mend the path."
    assert (
        refusal(tmp_path)
        == f"{tmp_path} is a folder, not a preference store. Name a file, such as {tmp_path / 'preferences.db'}."
    )


@pytest.mark.parametrize("content", ["not JSON", b"\xff\xfe"])
def test_content_that_is_no_text_or_no_json_is_damage(store, pair, content):
    store.vote(pair, "a", source="human:ann")
    with closing(sqlite3.connect(store.path)) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute("UPDATE answers SET content = CAST(? AS TEXT)", (content,))
        db.commit()
    with pytest.raises(DataError, match=r"is damaged \(.*\)\. Restore a copy"):
        list(store.preferences())


def test_a_damaged_store_is_said_to_be_damaged(store, pair):
    for i in range(200):
        store.add_prompt(f"prompt {i} " + "x" * 200)
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    raw = bytearray(store.path.read_bytes())
    raw[4096:] = b"\xa5" * (len(raw) - 4096)  # every page but the first
    store.path.write_bytes(bytes(raw))
    with pytest.raises(DataError) as caught, PreferenceStore.open(store.path) as damaged:
        damaged.add_prompt("Hi")
    assert str(caught.value).startswith(f"{store.path} is damaged (")
