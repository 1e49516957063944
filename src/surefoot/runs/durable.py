"""Files and folders that are whole or absent: written beside their place, synced, renamed, the parent synced.

Names of things that are not in place yet: `.NAME.surefoot-tmp-PID` (being written), `.NAME.surefoot-old-PID` (the version before,
until the new one stands), `.NAME.surefoot-trash-PID` (being deleted). `clear_leftovers` settles what a killed process left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from surefoot.errors import RunError

NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,63}")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.surefoot-(?P<kind>tmp|old|trash)-[0-9]+")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR)


def validate_name(name: str, what: str = "name") -> str:
    """`name`, if it can be a file name everywhere and stays inside its folder.

    Raises:
        RunError: empty, beyond 64 characters, a character other than a-z 0-9 . _ -, or a first dot or dash (`..`, an option).
    """
    if not NAME.fullmatch(name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise RunError(
            f"{what} {shown!r} is not allowed. Use 1 to 64 of the characters a-z 0-9 . _ -, not beginning with a dot or a dash."
        )
    return name


def made_folder(path: Path) -> Path:
    """The folder of a run, made if need be, by its absolute path: a later chdir must not move the run.

    Raises:
        RunError: it is the working directory itself, its name is no UTF-8, a file is in its way, or it cannot be made.
    """
    if str(path) in ("", "."):
        raise RunError("the run folder would be the working directory itself. Give it one of its own: --out runs/first.")
    path = Path(os.path.abspath(path))
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # its name would be in files that are UTF-8
        raise RunError(f"{str(path)!a} is no name in UTF-8. Choose another --out.") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"{path} is, or lies below, a file. A run needs a folder; choose another --out.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be made ({os.strerror(error.errno or 0).lower()}). Choose another --out.") from error
    return path


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path) -> str:
    """sha256, in hex, over the sorted relative paths and hashes of all files below `path`. Times do not count."""
    lines = sorted((json.dumps(file.relative_to(path).as_posix()), hash_file(file)) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in lines).encode()).hexdigest()


def sync(path: Path) -> None:
    """fsync of a file's bytes, or of a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """fsync of every file and folder below `path`, and of `path`."""
    for child in path.rglob("*"):
        if not child.is_symlink():
            sync(child)
    sync(path)


def size_of_tree(path: Path) -> int:
    """Bytes in all files below `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def write_all(descriptor: int, content: bytes) -> None:
    """All of `content`; a plain os.write may stop in the middle."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def write_synced(path: Path, content: bytes) -> None:
    """A new file, synced. Not atomic: for files inside a folder that is renamed as a whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces the file at `path`: a reader, or a machine that loses power, sees the old bytes or the new ones.

    Raises:
        RunError: no room, or no permission to write there.
    """
    temporary = beside(path, "tmp")
    with explained(f"write {path.name}", path.parent, len(content)):
        try:
            temporary.unlink(missing_ok=True)
            write_synced(temporary, content)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def beside(path: Path, kind: str) -> Path:
    """`.NAME.surefoot-KIND-PID` in the same folder, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}.surefoot-{kind}-{os.getpid()}")


def open_like_folder(folder: Path) -> None:
    """Whoever may read or write `folder` may read or write the files below it: safetensors makes its files private (0600)."""
    readers_and_writers = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and readers_and_writers & ~mode:
            with suppress(PermissionError):  # a file system without modes of its own
                path.chmod(stat.S_IMODE(mode) | readers_and_writers)


def move_into_place(temporary: Path, target: Path) -> None:
    """Renames a synced folder to `target`, replacing a folder that stands there. Whoever may read the folder may read its files.

    A folder cannot be replaced in one step: the old one steps aside, and `clear_leftovers` puts it back if no new one came.
    """
    open_like_folder(temporary)
    old = beside(target, "old")
    replaced = os.path.lexists(target)
    if replaced:
        os.rename(target, old)
    os.rename(temporary, target)
    sync(target.parent)
    if replaced:
        remove_folder(old)


def remove_folder(path: Path) -> None:
    """Deletes a folder so that it is never seen half deleted under its own name."""
    trash = path if _LEFTOVER.fullmatch(path.name) else beside(path, "trash")
    if trash != path:
        os.rename(path, trash)
    if trash.is_dir() and not trash.is_symlink():
        shutil.rmtree(trash)
    else:  # a link of the user's to another place, which stays
        trash.unlink()


def clear_leftovers(folder: Path) -> list[str]:
    """Settles what killed processes left behind in `folder`; the caller holds the run's lock. Returns a line a thing put back."""
    put_back = []
    for path in sorted(folder.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        home = folder / match["name"]
        if match["kind"] == "old" and not home.exists():
            os.rename(path, home)
            put_back.append(f"{home.name}: its replacement was never finished; the version before stands again")
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    sync(folder)
    return put_back


def number_of_error(error: Exception) -> int | None:
    """The errno. safetensors and tokenizers (its plain Exception) say it in the text alone: "No space left (os error 28)"."""
    if isinstance(error, OSError):
        return error.errno
    if not isinstance(error, SafetensorError) and type(error) is not Exception:
        return None
    match = re.search(r"os error ([0-9]+)", str(error))
    return int(match[1]) if match else None


def _lies_in(filename: Any, folder: Path) -> bool:
    return isinstance(filename, str | os.PathLike) and Path(os.path.abspath(filename)).is_relative_to(os.path.abspath(folder))


@contextmanager
def explained(action: str, folder: Path, needed: int | None = None, kept: str = "") -> Iterator[None]:
    """Turns "no room" and "no permission" inside the block into a RunError that names folder, bytes and remedy; all else passes.

    `action` goes on the sentence "cannot ..."; `needed` is in bytes; `kept` is a sentence on what is safe.
    """
    try:
        yield
    except Exception as error:
        number = number_of_error(error)
        elsewhere = isinstance(error, OSError) and error.filename is not None and not _lies_in(error.filename, folder)
        if number not in (*_NO_ROOM, *_NO_ACCESS) or elsewhere:
            raise
        size = "" if needed is None else f" ({needed:,} bytes needed"
        if number == errno.EFBIG:
            cause, remedy = "it passes the file-size limit of this process", "Raise the limit (ulimit -f)"
            size += ")" if size else ""
        elif number in _NO_ROOM:
            cause, remedy = "no room left" if number == errno.ENOSPC else "the quota is used up", "Free some room"
            size += f", {shutil.disk_usage(folder).free:,} free)" if size else ""
        elif number == errno.EISDIR:
            cause, remedy = "a folder stands in its place", "Move that away"
        else:
            cause, remedy = os.strerror(number).lower() if number else "", "Make the folder writable"
            size += ")" if size else ""
        sentence = f"{folder}: cannot {action}{size}: {cause}. {remedy}, or choose another --out."
        raise RunError(f"{sentence} {kept}".rstrip()) from error
