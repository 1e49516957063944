"""Preferences between files and stores: any preference format in, those of `interchange_formats` out.

Above `preferences` and `lm` alike, since the one keeps votes and the other reads formats, and neither knows the other.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Literal

from surefoot.content import canonical, sha256_of
from surefoot.errors import DataError
from surefoot.interchange_formats import WRITERS
from surefoot.lm.data import PreferenceRow, read_rows
from surefoot.preferences.store import PreferenceStore
from surefoot.preferences.votes import checked_source


def import_file(store: Path, file: Path, source: str | None = None) -> str:
    """`import_preferences` into the store at `store`, made when missing, after the file was read without fault."""
    rows = _read(file)
    with PreferenceStore.open(store) as opened:
        return _add(opened, rows, file, source)


def import_preferences(store: PreferenceStore, path: Path, source: str | None = None) -> str:
    """Adds the preferences of a file, in any format of `lm.data`, as votes of `source`; returns a line that says what came in.

    All rows or none. A row that was imported before from the same source is not counted again, so a file that grew can be
    imported again. `source` is by default import:NAME after the file's name; a plain NAME means import:NAME.

    Raises:
        DataError: the file cannot be read or holds no preferences, or `source` names nobody.
    """
    return _add(store, _read(path), path, source)


def _read(path: Path) -> tuple[tuple[PreferenceRow, ...], str]:
    data = read_rows(path, "preferences")
    for number, row in enumerate(data.rows, start=1):
        if canonical(row.chosen) == canonical(row.rejected):
            told = canonical(row.prompt)[:80]
            raise DataError(
                f"{path}: chosen and rejected are equal in preference {number}, after the prompt {told}. Leave the row out."
            )
    return data.rows, data.description


def _add(store: PreferenceStore, read: tuple[tuple[PreferenceRow, ...], str], path: Path, source: str | None) -> str:
    rows, description = read
    voter = _voter(path, source)
    before = store.counts()
    seen: Counter[str] = Counter()  # the same row twice in one file is two votes
    with store.batch():
        for row in rows:
            texts = [canonical(content) for content in (row.prompt, row.chosen, row.rejected)]
            key = sha256_of(voter, *texts, str(row.margin), str(row.target))
            seen[key] += 1
            prompt = store.add_prompt(row.prompt)
            chosen, rejected = (store.add_answer(prompt, content) for content in (row.chosen, row.rejected))
            pair = store.add_pair(prompt, min(chosen, rejected), max(chosen, rejected), reason=f"imported from {path.name}")
            idempotency_key = f"{key}-{seen[key]}"
            if row.target == 0.5:
                store.vote(pair, "tie", source=voter, idempotency_key=idempotency_key)
            else:
                choice: Literal["a", "b"] = "a" if chosen < rejected else "b"
                store.vote(pair, choice, source=voter, margin=row.margin, share=row.target, idempotency_key=idempotency_key)
    after = store.counts()
    new = after.votes + after.undone - before.votes - before.undone
    return f"{description}. Into {store.path}: {new:,} new votes of {voter} ({len(rows) - new:,} there already)."


def _voter(path: Path, source: str | None) -> str:
    """Who the votes are from: the source as given, import:NAME for a plain name, or import: and the file's name made plain."""
    if source is None:
        return f"import:{re.sub(r'[^a-z0-9._-]+', '-', path.stem.lower()).strip('-')[:64] or 'file'}"
    return checked_source(source if ":" in source or source == "ratings" else f"import:{source}")


def export_file(store: Path, out: Path, format: str = "trl") -> str:
    """`export_preferences` from the store at `store`, which must be there."""
    with PreferenceStore.open(store, create=False) as opened:
        return export_preferences(opened, out, format)


def export_preferences(store: PreferenceStore, path: Path, format: str = "trl") -> str:
    """Writes the preferences in one of `interchange_formats.WRITERS`; returns a line with the count.

    The file appears whole or not at all.

    Raises:
        DataError: an unknown format, a store without preferences, or a file that cannot be written.
    """
    if format not in WRITERS:
        raise DataError(f"cannot export as {format!r}. Use one of {', '.join(WRITERS)}.")
    path = path.resolve()
    if path in [Path(f"{store.path.resolve()}{suffix}") for suffix in ("", "-wal", "-shm", "-journal")]:
        raise DataError(f"{path} is the preference store itself, or holds its newest votes. Export to another file.")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is there and is no plain file. Export to another.")
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            count = WRITERS[format](store, file)
            file.flush()
            os.fsync(file.fileno())
        if not count:
            counts = store.counts()
            raise DataError(
                f"{store.path} holds no preferences ({counts.pairs:,} pairs, {counts.votes:,} votes). Collect votes first."
            )
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. Check the folder and the space on the disk."
        ) from error
    finally:
        with suppress(OSError):  # what failed before is what is told
            part.unlink(missing_ok=True)
    what = "votes" if format == "votes" else "preferences"
    return f"{path}: {count:,} {what} from {store.path}, format {format}"
