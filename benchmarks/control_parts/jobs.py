"""Jobs of minutes or hours, several at a time, each a process with one thread; and the files that their results are."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from surefoot.errors import SurefootError
from surefoot.runs import write_atomic

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "control.md"
PACKAGES = ("surefoot", "torch", "numpy", "gymnasium", "mujoco")


def run_all(script: Path, jobs: Mapping[str, Sequence[str]], logs: Path, workers: int) -> list[str]:
    """Runs `python SCRIPT WORDS...` for each named job, `workers` at a time, in order; returns the names of those that failed.

    What a job prints goes to `logs`/NAME.log. A job ends with this process: killed, it takes its jobs along.
    """
    logs.mkdir(parents=True, exist_ok=True)
    count = len(jobs)

    def run(number: int, name: str, words: Sequence[str]) -> str | None:
        log = logs / f"{name}.log"
        tell(f"{number}/{count} {name}")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, str(script), *words],
                stdin=subprocess.PIPE,  # open as long as we live: see `end_with_starter`
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            status = process.wait()
        if status == 0:
            return None
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        tell(f"{number}/{count} {name} failed with status {status}: {lines[-1] if lines else 'it printed nothing'} ({log})")
        return name

    with ThreadPoolExecutor(max_workers=workers) as pool:
        ended = [pool.submit(run, i + 1, name, words) for i, (name, words) in enumerate(jobs.items())]
        return [name for each in ended if (name := each.result()) is not None]


def end_with_starter() -> None:
    """Called by a job: ends this process when the one that started it is gone, by whatever signal."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()


def job(work: Callable[[], None]) -> int:
    """A job's exit status; what a user can mend is one line."""
    end_with_starter()
    try:
        work()
    except SurefootError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_status
    return 0


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def facts(words: Sequence[str], *packages: str) -> dict[str, Any]:
    """What a result was made with: the command with `words`, versions, machine."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*PACKAGES, *packages)},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def read(path: Path) -> dict[str, Any]:
    """An empty result where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write(path: Path, content: Mapping[str, Any]) -> None:
    """A whole file or none, keys a line each and lists of numbers on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (_laid_out(content) + "\n").encode())


def into_page(page: Path, name: str, text: str) -> bool:
    """Puts `text` between the comments `<!-- NAME -->` and `<!-- end of NAME -->` of a page, and tells whether it has them."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, opened, rest = page.read_text(encoding="utf-8").partition(opening)
    _, closed, after = rest.partition(closing)
    if opened and closed:
        write_atomic(page, f"{before}{opening}\n{text}\n\n{closing}{after}".encode())
    return bool(opened and closed)


def _laid_out(value: Any, indent: str = "") -> str:
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value)
    inner = indent + " "
    lines = [f"{inner}{json.dumps(str(key))}: {_laid_out(each, inner)}" for key, each in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
