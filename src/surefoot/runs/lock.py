"""One process a run folder: an flock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path

from surefoot.errors import RunError
from surefoot.runs.durable import explained, write_all

PATIENCE = 0.5  # seconds in which a holder that just took the lock writes its name


class RunLock:
    """Held from construction to `close`. The file stays; what is in it says who holds the lock, or who held it last.

    Raises:
        RunError: another process, or this one, has the folder open. The owner is named.
    """

    def __init__(self, folder: Path, verb: str) -> None:
        path = folder / "run.lock"
        with explained("take run.lock", folder):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            raise RunError(f"{folder} is in use by {owner}. Wait for it, stop it, or choose another --out.") from error
        os.ftruncate(self._descriptor, 0)
        write_all(self._descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "verb": verb}).encode())
        _held.add(self)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _owner(descriptor: int) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            owner = json.loads(os.pread(descriptor, 4096, 0))
            return f"process {owner['pid']} on {owner['host']} (surefoot {owner['verb']})"
        except (ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return "a process that did not write its name"


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _drop_in_child() -> None:
    # a forked worker that outlives its parent would hold the lock of a run that is dead
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_drop_in_child)
