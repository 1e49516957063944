"""`surefoot label` as a process of its own, which can be killed and started again on the same port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import surefoot

SECONDS_TO_START = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Resources:
    """What a process holds: resident memory, open files and sockets, threads."""

    rss_mib: float
    files: int
    threads: int


class LabelServer:
    """The server of one store. `options` are those of the command line; `entrance` signs in one browser, once a start."""

    def __init__(self, store: Path, *options: str, port: int | None = None, name: str = "ann") -> None:
        self.store = store
        self.port = free_port() if port is None else port
        self._options = ("--name", name, *options)
        self._process: subprocess.Popen[str] | None = None
        self.entrance = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, fault: str = "") -> Self:
        """Starts it; returns when it says that it listens. `fault` is SUREFOOT_FAULT for this process."""
        environment = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1]), "SUREFOOT_FAULT": fault}
        words = ["label", "--store", str(self.store), "--port", str(self.port), *self._options]
        command = [sys.executable, "-u", "-m", "surefoot", *words]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if found := re.search(r"open (http\S+)", line):
                self.entrance = found.group(1)
            if "stop with Ctrl-C" in line:
                return self
        raise RuntimeError("the server did not start: " + "".join(said))

    def cpu_seconds(self) -> float:
        """Processor time that the running process has taken so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resources(self) -> Resources:
        """What the running process holds now."""
        assert self._process is not None
        process = Path(f"/proc/{self._process.pid}")
        told = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return Resources(int(told["VmRSS"].split()[0]) / 1024, len(list((process / "fd").iterdir())), int(told["Threads"]))

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As by Ctrl-C; returns the exit status."""
        return self._end(signal.SIGINT)

    def wait_until_dead(self) -> None:
        """Until it has ended by itself, as an injected fault makes it."""
        assert self._process is not None
        self._process.communicate(timeout=SECONDS_TO_START)
        self._process = None

    def _end(self, how: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(how)
        self._process.communicate(timeout=SECONDS_TO_START)
        status, self._process = self._process.returncode, None
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *problem: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
