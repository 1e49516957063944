"""The parent's end: a side as a child process that works when told to, and how busy the machine was meanwhile."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

BENCHMARKS = Path(__file__).resolve().parents[1]
PAGE = BENCHMARKS.parent / "docs" / "performance.md"
PACKAGES = ("surefoot", "torch", "transformers", "peft")


class Side:
    """A child process that does a piece of work when told to. `command` gets `facts` as its last word, as JSON."""

    def __init__(self, name: str, command: Sequence[str], facts: Mapping[str, Any]) -> None:
        self.name = name
        path = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [*command, json.dumps(facts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            cwd=BENCHMARKS,
        )
        self.ready = self._line()

    def turn(self, **asked: Any) -> dict[str, Any]:
        """What the side says after its piece of work, with the cores that other processes kept busy meanwhile."""
        assert self.process.stdin is not None
        before = busy_seconds()
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self._line()
        foreign = busy_seconds() - before - line["cpu"]
        return line | {"foreign_cores": round(max(foreign / line["seconds"], 0.0), 3)}

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise SystemExit(f"{self.name}: its process ended with status {self.process.wait()}. What it said stands above.")
        line: dict[str, Any] = json.loads(text)
        return line


def busy_seconds() -> float:
    """CPU seconds that all processes of this machine have used since it started; 0 where that is not told."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def run_facts(device: str) -> dict[str, Any]:
    """What a result was made with: the command, versions, machine, device."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "versions": {name: version(name) for name in PACKAGES},
    }
