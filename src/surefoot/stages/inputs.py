"""What a run was made from, as hashes in its manifest: a run that goes on with other data or another model would be neither's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from surefoot.runs import hash_folder


def digest(rows: Iterable[object]) -> str:
    """sha256 over rows in their order, each as Python writes it: for token rows, which are tuples of numbers and text."""
    total = hashlib.sha256()
    for row in rows:
        total.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()


def source_digest(source: str | None) -> str:
    """What a reward source is: the hash of its folder, or its name where it is a function."""
    if source is None:
        return "an object"
    return hash_folder(Path(source)) if Path(source).is_dir() else source
