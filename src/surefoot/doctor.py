"""`surefoot doctor`: is everything in place, and does it work on this machine? One line a check, then a ladder of rungs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from surefoot.doctor_rungs import RUNGS, told
from surefoot.launch import usable_cores

NEEDED_DISK = 5 * 2**30  # the cached model, a run folder with two checkpoints and five reward models, and room
NEEDED_MEMORY = 4 * 2**30  # the demo's measured peak is below this

EXTRAS = {
    "demo": ("vaderSentiment",),
    "control": ("gymnasium", "mujoco"),
    "label": ("fastapi", "uvicorn"),
    "datasets": ("datasets", "pyarrow"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it. "NOTE" is a fact that is no fault."""

    status: Literal["PASS", "FAIL", "NOTE"]
    what: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.status}  {self.what}: {self.found}" + (f". {self.advice}" if self.advice else "")


def examine(say: Callable[[str], object], up_to: str = "echo") -> int:
    """Says every finding as soon as it is known, and climbs the ladder up to the rung `up_to`; 0 when nothing failed, else 1."""
    failed = 0
    for check in CHECKS:
        for finding in check():
            say(str(finding))
            failed += finding.status == "FAIL"
    failed += not climb(say, up_to)
    say("all is well" if failed == 0 else f"{failed} {'thing needs' if failed == 1 else 'things need'} attention")
    return 1 if failed else 0


def climb(say: Callable[[str], object], up_to: str) -> bool:
    """Climbs the rungs in their order, to `up_to` or to the first that does not hold; whether all of them held."""
    names = [rung.name for rung in RUNGS]
    for number, rung in enumerate(RUNGS[: names.index(up_to) + 1], start=1):
        began = time.perf_counter()
        try:
            holds, found = rung.climb()
        except Exception as problem:  # whatever breaks here is this rung's finding
            holds, found = False, told(problem)
        where = f"rung {number}, {rung.name}"
        if not holds:
            say(str(Finding("FAIL", where, found, f"{rung.means} {rung.advice}")))
            if later := names[number : names.index(up_to) + 1]:
                say(f"stopped at {where}: {', '.join(later)} would stand on it")
            return False
        say(str(Finding("PASS", where, f"{found} ({time.perf_counter() - began:.1f} s)")))
    return True


def check_python() -> list[Finding]:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return [Finding("PASS", "Python", found)]


def check_torch() -> list[Finding]:
    try:
        import torch
    except ImportError as problem:
        return [Finding("FAIL", "torch", f"cannot be imported ({problem})", "Install with `pip install -c constraints.txt -e .`")]
    except OSError as problem:  # a wheel for another machine
        return [Finding("FAIL", "torch", f"cannot be loaded ({problem})", "Reinstall torch for this machine")]
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    return [Finding("PASS", "torch", f"{torch.__version__}, {device}"), Finding("PASS", "transformers", _version("transformers"))]


def check_threads() -> list[Finding]:
    cores = usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS")
    findings = [Finding("PASS", "cores", f"{cores} usable")]
    if asked is not None:
        known = asked.isdigit() and int(asked) > 0
        status: Literal["FAIL", "NOTE"] = "NOTE" if known and int(asked) <= cores else "FAIL"
        advice = "" if status == "NOTE" else f"Set it to a number from 1 to {cores}, or unset it"
        findings.append(Finding(status, "OMP_NUM_THREADS", asked, advice))
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    busy = os.getloadavg()[0] > cores * 0.5
    if policy.lower() != "passive" and busy:
        advice = "Waiting threads spin against the other processes; OMP_WAIT_POLICY=passive is faster on a busy machine"
        findings.append(Finding("NOTE", "OMP_WAIT_POLICY", f"{policy}, and the load is {os.getloadavg()[0]:.1f}", advice))
    else:
        findings.append(Finding("PASS", "OMP_WAIT_POLICY", policy))
    return findings


def check_disk() -> list[Finding]:
    findings = []
    for what, path in (("disk, here", Path.cwd()), ("disk, cache", _cache_root())):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        found = f"{free / 2**30:.1f} GiB free at {there}"
        if free < NEEDED_DISK:
            advice = f"The demo needs {NEEDED_DISK / 2**30:.0f} GiB; free some, or set SUREFOOT_CACHE"
            findings.append(Finding("FAIL", what, found, advice))
        elif not os.access(there, os.W_OK):
            findings.append(Finding("FAIL", what, f"{there} cannot be written", "Change its permissions, or set SUREFOOT_CACHE"))
        else:
            findings.append(Finding("PASS", what, found))
    return findings


def check_memory() -> list[Finding]:
    try:
        size = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        size = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), size)
    except (OSError, ValueError):
        return [Finding("NOTE", "memory", "unknown on this system", f"The demo needs {NEEDED_MEMORY / 2**30:.0f} GiB")]
    found = f"{size / 2**30:.1f} GiB available"
    if size < NEEDED_MEMORY:
        advice = f"The demo needs {NEEDED_MEMORY / 2**30:.0f} GiB; smaller micro_batch_size and batch_size need less"
        return [Finding("FAIL", "memory", found, advice)]
    return [Finding("PASS", "memory", found)]


def check_embedded_model() -> list[Finding]:
    from surefoot.embedded.fetch import damaged_files, is_complete

    root = _cache_root()
    locks = sorted(root.glob("*.lock")) if root.is_dir() else []  # one beside each folder that was ever begun
    cached = [lock.with_suffix("") for lock in locks]
    if not cached:
        advice = "The first demo fetches the model and the ratings from the package registry"
        return [Finding("NOTE", "cache", f"empty at {root}", advice)]
    findings = []
    for folder in cached:
        bad = damaged_files(folder) if is_complete(folder) else ["incomplete"]
        if bad:
            advice = f"Remove {folder}; it is fetched again"
            findings.append(Finding("FAIL", f"cache, {folder.name}", f"damaged ({', '.join(bad[:3])})", advice))
        else:
            findings.append(Finding("PASS", f"cache, {folder.name}", "complete"))
    return findings


def check_extras() -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            advice = f"`pip install 'surefoot[{extra}]'` adds it"
            findings.append(Finding("NOTE", f"extra {extra}", f"without {', '.join(missing)}", advice))
        else:
            findings.append(Finding("PASS", f"extra {extra}", "installed"))
    return findings


def _cache_root() -> Path:
    from surefoot.embedded.fetch import cache_root

    return cache_root()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


CHECKS = (
    check_python,
    check_torch,
    check_threads,
    check_disk,
    check_memory,
    check_embedded_model,
    check_extras,
)
