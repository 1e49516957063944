"""Records, one mapping at a time, from JSONL, JSON, CSV, TSV and Parquet files, folders of them, and the hub.

Every record comes with the words that say where it stands ("data.jsonl line 3"), so that an error can point at it. Files are
streamed; a JSON array is decoded element by element.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from surefoot.errors import DataError

Record = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:\w+)?")
MAX_CELL = 2**24  # characters: Python's csv refuses cells beyond 131,072 otherwise, and a conversation may be longer


class RepeatedKey(ValueError):
    """An object that says two things under one name: Python's json would keep the last in silence."""


def read_records(name: str | Path) -> Iterator[tuple[str, Record]]:
    """(where, record) of a file, of all data files in a folder in the order of their paths, or of a hub data set.

    Raises:
        DataError: nothing there, an unknown kind of file, or a file that cannot be read; as soon as the iteration reaches it.
    """
    path = Path(name)
    if path.is_dir():
        for file in data_files(path):
            yield from _read_file(file)
    elif path.exists():
        yield from _read_file(path)
    elif HUB_NAME.fullmatch(str(name)) and path.suffix not in SUFFIXES and not path.parent.is_dir():
        yield from _read_hub(str(name))
    else:
        raise DataError(_missing(path))


def data_files(folder: Path) -> list[Path]:
    """The data files in a folder and below, sorted by path; hidden ones and other kinds of file are not data.

    Raises:
        DataError: there is none.
    """
    inside = sorted(
        p for p in folder.rglob("*") if p.is_file() and not any(x.startswith(".") for x in p.relative_to(folder).parts)
    )
    files = [path for path in inside if path.suffix in SUFFIXES]
    if not files:
        others = ", ".join(path.name for path in inside[:5]) or "nothing"
        raise DataError(f"the folder {folder} holds no data file (it holds {others}). Put {', '.join(SUFFIXES)} files there.")
    return files


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no data at {path}: there is no folder {path.parent}. Name a file, a folder, or a hub data set as OWNER/NAME."
    names = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.7) or [n for n in names if n.endswith(SUFFIXES)][:3]
    hint = f" Did you mean {' or '.join(near)}?" if near else " The folder holds no data file."
    return f"no data at {path}: the folder {path.parent} has no {path.name}.{hint}"


def _read_file(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        match path.suffix:
            case ".jsonl" | ".ndjson" | ".json":
                yield from _read_json(path)
            case ".csv" | ".tsv":
                yield from _read_table(path, delimiter="," if path.suffix == ".csv" else "\t")
            case ".parquet":
                yield from _read_parquet(path)
            case _:
                raise DataError(f"{path} has the ending {path.suffix or '(none)'}. Readable are {', '.join(SUFFIXES)}.")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check the file and its permissions.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines as text, without a byte order mark; ends of line are kept, for a CSV cell may hold one."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise DataError(f"{path} is UTF-16. Save it as UTF-8.")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"0x{raw[error.start]:02X} at byte {error.start + 1}"
                raise DataError(f"{path} line {number} is not UTF-8 ({byte}). Save the file as UTF-8.") from None


def _read_json(path: Path) -> Iterator[tuple[str, Record]]:
    """JSONL, a JSON array of objects, or one object; told apart by the content, since both endings are used for both."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] == b"[":
        yield from _read_array(path)
        return
    lines = _lines(path)
    for number, line in lines:
        if not line.strip():
            continue
        if path.suffix == ".json" and line.strip() == "{":  # an object written over several lines
            text = line + "".join(rest for _, rest in lines)
            yield str(path), _object(_decode(text, f"{path}"), f"{path}")
            return
        where = f"{path} line {number}"
        yield where, _object(_decode(line, where), where)


def _read_array(path: Path) -> Iterator[tuple[str, Record]]:
    text = "".join(line for _, line in _lines(path))
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    position, number, separator = text.index("[") + 1, 0, re.compile(r"[\s]*(,|\])?[\s]*")
    while True:
        found = separator.match(text, position)
        mark = found.group(1) if found else None
        position = found.end() if found else position
        if mark == "]":
            if text[position:].strip():
                raise DataError(f"{path} goes on after the end of its list (line {text.count(chr(10), 0, position) + 1}).")
            return
        if (mark == ",") != (number > 0):
            raise DataError(
                f"{path} line {text.count(chr(10), 0, position) + 1}: the list is not closed, or a comma is missing or too many."
            )
        number += 1
        where = f"{path} element {number}"
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} line {error.lineno} is not JSON ({error.msg}, column {error.colno}), in element {number}."
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON that can be read ({_reason(error)}).") from None
        yield where, _object(value, where)


def _decode(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg}, column {error.colno}). A JSONL file has one object a line.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON that can be read ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    """Beside syntax, three things go wrong: the nesting, a key that occurs twice, and an integer beyond Python's limit."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error) if isinstance(error, RepeatedKey) else "a number has thousands of digits"


def _unique_keys(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKey(f"the key {twice!r} occurs twice in one object")
    return found


def _object(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else f"the value {str(value)[:40]!r}"
        raise DataError(f'{where} is {kind}, not an object. A row is an object such as {{"prompt": "..."}}.')
    return value


def _read_table(path: Path, delimiter: str) -> Iterator[tuple[str, Record]]:
    before = csv.field_size_limit(MAX_CELL)
    try:
        rows = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
        try:
            header = next(rows, None)
            if header is None:
                return
            if len(set(header)) != len(header) or not all(name.strip() for name in header):
                raise DataError(
                    f"{path} line 1: the column names {', '.join(map(repr, header))} are not all different and non-empty."
                )
            for row in rows:
                if not row:
                    continue
                where = f"{path} line {rows.line_num}"
                if len(row) != len(header):
                    raise DataError(f"{where} has {len(row)} cells where the header names {len(header)} columns.")
                yield where, {name: _cell(cell) for name, cell in zip(header, row, strict=True)}
        except csv.Error as error:
            raise DataError(f"{path} line {rows.line_num} is not a readable table row: {error}.") from None
    finally:
        csv.field_size_limit(before)


def _cell(cell: str) -> object:
    """A cell's text; a cell that is a JSON list of objects (messages, turns) is that list."""
    if cell.startswith("[{") and cell.endswith("}]"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _read_parquet(path: Path) -> Iterator[tuple[str, Record]]:
    parquet = _extra("pyarrow.parquet", f"reading {path}", "pyarrow")
    arrow = importlib.import_module("pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", record
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}.") from None


def _read_hub(name: str) -> Iterator[tuple[str, Record]]:
    hub = _extra("datasets", f"{name} is no file or folder here, and reading it from the hub", "datasets")
    repository, _, split = name.partition(":")
    try:
        rows: Iterable[Record] = hub.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the hub data set {name} cannot be loaded: {first}. Name a split as OWNER/NAME:SPLIT, or a local file."
        ) from error
    for number, record in enumerate(rows, start=1):
        yield f"{name} row {number}", dict(record)


def _extra(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(f'{what} needs {package}. Install it with `pip install "surefoot[datasets]"`.') from None
