"""SIGTERM and SIGINT: the first asks for a stop, the second exits at once.

The state is the process's, not a folder's: a demo that holds a folder a stage must stop as a whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from surefoot.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Stop:
    """Handlers stand while at least one folder is open in the main thread; Python allows handlers nowhere else."""

    def __init__(self) -> None:
        self.requested: str | None = None  # the name of the signal
        self._holders = 0
        self._before: dict[int, Any] = {}

    def hold(self) -> bool:
        """Installs the handlers with the first holder. Returns whether `release` is due."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if self._holders == 0:
            self.requested = None
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._holders += 1
        return True

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            for number, handler in self._before.items():
                # None stands for a handler that was not set from Python, and cannot be put back from it
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self.requested = None

    def forget(self) -> None:
        """In a forked child: a worker that inherits the handlers would not die of the SIGTERM that is meant to end it."""
        while self._holders:
            self.release()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            for stream in (sys.stdout, sys.stderr):
                # a stream may be closed, or be in the middle of a write that this signal interrupted
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(Interrupted.exit_status)
        self.requested = signal.Signals(number).name
        with contextlib.suppress(OSError):
            os.write(2, f"{self.requested}: stopping at the next safe point; once more stops at once.\n".encode())


STOP = _Stop()
os.register_at_fork(after_in_child=STOP.forget)
