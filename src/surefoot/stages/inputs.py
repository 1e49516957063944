"""What a run was made from, as hashes in its manifest: a run that goes on with other data or another model would be neither's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from surefoot.runs import hash_folder


def digest(rows: Iterable[object]) -> str:
    """sha256 over rows in their order, each as Python writes it: for token rows, which are tuples of numbers and text."""
    total = hashlib.sha256()
    for row in rows:
        total.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()


def source_digest(sources: Sequence[str]) -> str:
    """What the reward sources are: the hashes of their folders, or their names where they are functions or servers."""
    if not sources:
        return "an object"
    return ", ".join(hash_folder(Path(source)) if os.path.isdir(source) else source for source in sources)
