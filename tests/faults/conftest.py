"""A server that forks tiny runs, so that a test can kill one without paying for another import of torch."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import surefoot
from run_bytes import fingerprint


class Child:
    """A forked run. `wait` gives its exit status, negative for a signal; `said` what it wrote."""

    def __init__(self, server: Forks, pid: int, output: Path) -> None:
        self.pid = pid
        self._server = server
        self._output = output

    def wait(self) -> int:
        return int(self._server.ask({"wait": self.pid}))

    @property
    def said(self) -> str:
        return self._output.read_text()


class Forks:
    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._count = itertools.count()

    def ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, job: str, path: Path, *, fault: str = "", **arguments: Any) -> Child:
        output = self._folder / f"output-{next(self._count)}"
        arguments["path"] = str(path)
        command = {"start": job, "arguments": arguments, "environment": {"SUREFOOT_FAULT": fault}, "output": str(output)}
        return Child(self, int(self.ask(command)), output)

    def run(self, job: str, path: Path, *, fault: str = "", **arguments: Any) -> tuple[int, str]:
        """(exit status, what it said)."""
        child = self.start(job, path, fault=fault, **arguments)
        return child.wait(), child.said


@contextmanager
def serving(script: str, folder: Path) -> Iterator[Forks]:
    source = Path(surefoot.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).with_name(script))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        yield Forks(process, folder)
        process.stdin.close()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Forks jobs of tiny_run.py."""
    with serving("tiny_run.py", tmp_path_factory.mktemp("forks")) as server:
        yield server


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Forks jobs of stage_runs.py: the stages themselves, on a model of a few thousand weights."""
    with serving("stage_runs.py", tmp_path_factory.mktemp("stages")) as server:
        yield server


@pytest.fixture(scope="session")
def whole(stages: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, str], float, Path]]:
    """`whole(stage)`: the fingerprint of an uninterrupted run, the seconds it took, and its folder; each run once."""
    known: dict[str, tuple[dict[str, str], float, Path]] = {}

    def run(stage: str) -> tuple[dict[str, str], float, Path]:
        if stage not in known:
            path = tmp_path_factory.mktemp("whole") / stage
            began = time.monotonic()
            status, said = stages.run(stage, path)
            assert status == 0, said
            known[stage] = fingerprint(path), time.monotonic() - began, path
        return known[stage]

    return run


@pytest.fixture
def appears() -> Any:
    """`appears(path)` waits until a file exists."""

    def wait(path: Path, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} never appeared"
            time.sleep(0.002)

    return wait
