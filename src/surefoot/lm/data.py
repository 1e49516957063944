"""Data sets: rows from files, folders, the hub and Python lists, all through the same code. Needs no torch itself.

The format is detected from the first row, said in `description`, and held to: a row of another format is refused with its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, overload

from surefoot.content import Content, plain_text
from surefoot.errors import DataError
from surefoot.lm.formats import convert, detect
from surefoot.lm.records import read_records
from surefoot.lm.rows import CompletionRow, Kind, PreferenceRow, PromptRow, Row

__all__ = [
    "AnyRow",
    "CompletionRow",
    "Dataset",
    "Kind",
    "PreferenceRow",
    "PromptRow",
    "Row",
    "never_trained_on",
    "read_rows",
    "rows_from",
    "split_by_prompt",
]

AnyRow = TypeVar("AnyRow", PromptRow, CompletionRow, PreferenceRow)
OneRow = TypeVar("OneRow", bound=Row)
PREVIEW_LENGTH = 300  # characters of a field that a preview shows


@dataclass(frozen=True)
class Dataset(Generic[OneRow]):
    """Rows of one kind. `format` names what was detected; `notes` say what was derived or left out, with counts."""

    rows: tuple[OneRow, ...]
    kind: Kind
    source: str
    format: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[OneRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> OneRow:
        return self.rows[index]

    @property
    def description(self) -> str:
        """One line: where from, how many rows, which format, and what happened to them."""
        return "; ".join([f"{self.source}: {_count(len(self.rows), self.kind[:-1])}, format {self.format}", *self.notes])

    @property
    def column_names(self) -> tuple[str, ...]:
        """The further columns that any row has, sorted. A row that lacks one counts as None."""
        return tuple(sorted({name for row in self.rows for name in row.columns}))

    def preview(self, count: int = 2) -> str:
        """The first rows as a person reads them: control characters as escapes, long fields cut, with their length."""
        return "\n".join(_rendered(number, row) for number, row in enumerate(self.rows[:count], start=1))

    def digest(self) -> str:
        """sha256 over all rows in their order, the same on every machine: what a run's manifest records of its data."""
        digest = hashlib.sha256()
        for row in self.rows:
            fields = {name: getattr(row, name) for name in row.__dataclass_fields__}
            digest.update(json.dumps(fields, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()


@overload
def read_rows(path_or_name: str | Path, kind: Literal["prompts"]) -> Dataset[PromptRow]: ...
@overload
def read_rows(path_or_name: str | Path, kind: Literal["completions"]) -> Dataset[CompletionRow]: ...
@overload
def read_rows(path_or_name: str | Path, kind: Literal["preferences"]) -> Dataset[PreferenceRow]: ...
@overload
def read_rows(path_or_name: str | Path, kind: Kind) -> Dataset[Any]: ...
def read_rows(path_or_name: str | Path, kind: Kind) -> Dataset[Any]:
    """The rows of a file (JSONL, JSON, CSV, TSV, Parquet), a folder of them, or a hub data set (OWNER/NAME, OWNER/NAME:SPLIT).

    `kind` is what is wanted; where prompts are wanted, completions and preferences give their distinct prompts.

    Raises:
        DataError: nothing there, unreadable, empty, of an unknown format, of several formats, or not of the kind that is wanted.
    """
    return _collect(read_records(path_or_name), kind, str(path_or_name))


@overload
def rows_from(rows: Iterable[Mapping[str, Any] | str], kind: Literal["prompts"]) -> Dataset[PromptRow]: ...
@overload
def rows_from(rows: Iterable[Mapping[str, Any] | str], kind: Literal["completions"]) -> Dataset[CompletionRow]: ...
@overload
def rows_from(rows: Iterable[Mapping[str, Any] | str], kind: Literal["preferences"]) -> Dataset[PreferenceRow]: ...
@overload
def rows_from(rows: Iterable[Mapping[str, Any] | str], kind: Kind) -> Dataset[Any]: ...
def rows_from(rows: Iterable[Mapping[str, Any] | str], kind: Kind) -> Dataset[Any]:
    """The same from Python: an iterable of mappings (a list, a `datasets.Dataset`), or of plain prompts as strings.

    Raises:
        DataError: as `read_rows`; the place is "row 1", "row 2", ...
    """
    if isinstance(rows, (str, Mapping)):
        raise DataError(f"the data is one {'string' if isinstance(rows, str) else 'mapping'}, not rows. Put it into a list.")
    return _collect(_numbered(rows), kind, "the given rows")


def _numbered(rows: Iterable[Mapping[str, Any] | str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            yield f"row {number}", {"prompt": row}
        elif isinstance(row, Mapping):
            yield f"row {number}", dict(row)
        else:
            raise DataError(
                f"row {number} is a {type(row).__name__}. A row is a mapping such as {{'prompt': 'Hi'}}, or a prompt."
            )


def _collect(records: Iterable[tuple[str, dict[str, Any]]], kind: Kind, source: str) -> Dataset[Any]:
    rows: list[Row] = []
    notes: dict[str, int] = {}
    first_where, first_format = "", ""
    for where, record in records:
        found = detect(record, where)
        row = convert(found, record, where)
        if isinstance(row, str):  # a row that states no preference; the words say why
            notes[row] = notes.get(row, 0) + 1
            continue
        name = f"{found.label} ({_flavour(row)})"
        if not first_format:
            first_where, first_format = where, name
        elif name != first_format:
            raise DataError(
                f"{where} is {name}, but {first_where} is {first_format}. A data set has one format: split it in two."
            )
        rows.append(_as_kind(row, kind, where, name))
    said = [f"{_count(count, 'row')} left out: {why}" for why, count in notes.items()]
    if not rows:
        raise DataError(
            f"{source} holds no rows{' that can be used' if said else ''}. "
            + ("; ".join(said) + "." if said else "Give it some.")
        )
    if kind == "prompts" and not first_format.startswith("{prompt} "):
        total = len(rows)
        first: dict[str, Row] = {}
        for row in rows:
            first.setdefault(row.key, row)
        rows = list(first.values())
        said.append(f"its {_count(len(rows), 'distinct prompt')} of {_count(total, 'row')} are used, the answers are not")
    return Dataset(tuple(rows), kind, source, first_format, tuple(said))


def _flavour(row: Row) -> str:
    content = row.completion if isinstance(row, CompletionRow) else row.prompt
    return "text" if isinstance(content, str) else "messages"


def _as_kind(row: Row, kind: Kind, where: str, name: str) -> Row:
    match kind, row:
        case ("prompts", PromptRow()) | ("completions", CompletionRow()) | ("preferences", PreferenceRow()):
            return row
        case "prompts", CompletionRow() | PreferenceRow() if row.prompt:
            return PromptRow(row.prompt, row.key, row.columns)
    needed = {
        "prompts": "Prompts are needed: {prompt}, or a format that holds prompts.",
        "completions": "Answers to learn from are needed: {prompt, completion}, {messages} or {text}.",
        "preferences": "Pairs are needed: {prompt, chosen, rejected} or {chosen, rejected}.",
    }[kind]
    raise DataError(f"{where} is {name}. {needed}")


def split_by_prompt(rows: Sequence[AnyRow], share: float, seed: int) -> tuple[list[AnyRow], list[AnyRow]]:
    """(train, validation): `share` of the distinct prompts, at least one, go to validation with all their rows.

    No prompt is in both. The choice depends on the prompts and the seed, not on the order of the rows, which both parts keep.
    A share of 0 gives no validation.

    Raises:
        DataError: a share outside [0, 1), or fewer than two distinct prompts.
    """
    if not 0 <= share < 1:
        raise DataError(f"the validation share is {share}. Use a number from 0 to below 1.")
    if share == 0:
        return list(rows), []
    keys = sorted({row.key for row in rows}, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    if len(keys) < 2:
        raise DataError(
            f"{_count(len(rows), 'row')} with {_count(len(keys), 'distinct prompt')} cannot be split. Give a validation set."
        )
    held_out = set(keys[: min(max(1, round(share * len(keys))), len(keys) - 1)])
    return [row for row in rows if row.key not in held_out], [row for row in rows if row.key in held_out]


def never_trained_on(held_out: Sequence[AnyRow], train: Sequence[AnyRow]) -> tuple[list[AnyRow], str]:
    """Rows of a given validation set whose prompt (a bare text: the text) is in no row of `train`, and a line about the others.

    Raises:
        DataError: no row is left.
    """
    known = {row.key for row in train}
    kept = [row for row in held_out if row.key not in known]
    if not kept:
        raise DataError(
            f"all {_count(len(held_out), 'row')} of data.validation have a prompt that is trained on, so nothing is held out. "
            "Name other rows, or none: data.validation_share then holds out a share of the prompts."
        )
    left_out = len(held_out) - len(kept)
    return kept, f"validation: {_count(left_out, 'row')} left out, whose prompts are trained on" if left_out else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _rendered(number: int, row: Row) -> str:
    lines = [f"row {number} (key {row.key})"]
    for name in ("prompt", "completion", "chosen", "rejected"):
        content = cast("Content | None", getattr(row, name, None))
        if content:
            lines.append(f"  {name:<10} | " + _printable(plain_text(content)).replace("\n", f"\n  {'':<10} | "))
    extra = {name: getattr(row, name, None) for name in ("margin", "target")} | {
        name: row.columns[name] for name in sorted(row.columns)
    }
    lines += [f"  {name:<10} | {_printable(str(value))}" for name, value in extra.items() if value is not None]
    return "\n".join(lines)


def _printable(text: str) -> str:
    cut = text if len(text) <= PREVIEW_LENGTH else f"{text[:PREVIEW_LENGTH]} ... ({len(text):,} characters)"
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
