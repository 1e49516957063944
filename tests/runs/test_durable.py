"""Hashes, atomic files and folders, and what is made of leftovers."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from surefoot.errors import RunError
from surefoot.runs import hash_file, hash_folder, validate_name, write_atomic
from surefoot.runs.durable import clear_leftovers, move_into_place


def test_hash_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def make(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return hash_folder(folder)


def test_hash_folder_is_the_hash_of_sorted_names_and_hashes(tmp_path: Path) -> None:
    a, b = (hashlib.sha256(content).hexdigest() for content in (b"1", b"2"))
    expected = hashlib.sha256(f'{a}  "a"\n{b}  "deep/b"\n'.encode()).hexdigest()
    assert make(tmp_path / "x", {"deep/b": b"2", "a": b"1"}) == expected


def test_hash_folder_tells_names_contents_and_places_apart(tmp_path: Path) -> None:
    variants: list[dict[str, bytes]] = [
        {"a": b"1", "b": b"2"},
        {"a": b"2", "b": b"1"},
        {"a": b"1", "c": b"2"},
        {"a": b"1"},
        {"a": b"1", "d/b": b"2"},
        {"a": b"1", "b": b""},
        {'a"\n': b"1", "b": b"2"},
    ]
    hashes = [make(tmp_path / str(number), files) for number, files in enumerate(variants)]
    assert len(set(hashes)) == len(variants)


def test_a_replaced_file_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    seen = []
    whole = os.replace

    def look(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), Path(target).read_bytes()))
        whole(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_atomic(path, b"new and longer")
    assert seen == [(b"new and longer", b"old")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_every_file_and_folder_is_synced_before_the_rename_and_the_parent_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.config import Config
    from surefoot.runs import RunFolder, State

    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        events.append(f"rename to {Path(target).name}")
        rename(source, target)

    with RunFolder.open(tmp_path / "run", verb="sft", cfg=Config()) as folder:
        folder.record(1, {"loss": 1.0})
        monkeypatch.setattr(os, "fsync", noted_sync)
        monkeypatch.setattr(os, "rename", noted_rename)
        folder.save(1, State({"policy": {}, "optimizer": {}}, {}))
        saving = list(events)
        events.clear()
        with folder.final() as final:
            (final / "deep").mkdir()
            (final / "deep" / "weights").write_text("1")
            (final / "card").write_text("2")
        monkeypatch.undo()
    where = events.index("rename to final")
    assert {"deep", "weights", "card", f".final.surefoot-tmp-{os.getpid()}"} == set(events[:where])
    assert events[where + 1] == "run"
    events = saving
    where = events.index("rename to checkpoint-1")
    files = {"metrics.jsonl", "policy.safetensors", "optimizer.safetensors", "values.json", "manifest.json"}
    assert files | {f".checkpoint-1.surefoot-tmp-{os.getpid()}"} <= set(events[:where])
    assert events[:where].index("metrics.jsonl") < events[:where].index("policy.safetensors")
    assert events[where + 1 :] == ["run"]


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


def test_leftovers_of_dead_processes_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    folder_with(tmp_path / ".checkpoint-4.surefoot-tmp-123", "half")
    folder_with(tmp_path / ".checkpoint-1.surefoot-trash-123", "half deleted")
    (tmp_path / ".manifest.json.surefoot-tmp-99").write_text("half")
    folder_with(tmp_path / "final", "new")
    folder_with(tmp_path / ".final.surefoot-old-123", "old")
    others = [
        ".git",
        ".bashrc.old-20240101",
        ".notes.tmp-1",
        ".surefoot-tmp-1",
        "checkpoint-4.surefoot-tmp-1",
        ".x.surefoot-tmp-",
        ".x.surefoot-tmp-12a",
        ".notes",
    ]
    for name in others:
        folder_with(tmp_path / name, "mine")
    assert clear_leftovers(tmp_path) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*others, "final"])
    assert (tmp_path / "final" / "file").read_text() == "new"


def test_a_replacement_that_was_never_finished_gives_the_old_version_back(tmp_path: Path) -> None:
    folder_with(tmp_path / ".final.surefoot-old-123", "old")
    folder_with(tmp_path / ".final.surefoot-tmp-123", "complete, but not in place")
    assert clear_leftovers(tmp_path) == ["final: its replacement was never finished; the version before stands again"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "file").read_text() == "old"


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_wherever_a_replacement_stops_one_whole_version_stands_after_clearing(
    dies_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder_with(tmp_path / "final", "old")
    temporary = folder_with(tmp_path / f".final.surefoot-tmp-{os.getpid()}", "new")
    rename, calls = os.rename, []

    def dying(source: Path, place: Path) -> None:
        calls.append(place)
        if len(calls) == dies_at:
            raise SystemExit
        rename(source, place)

    monkeypatch.setattr(os, "rename", dying)
    try:
        move_into_place(temporary, target)
    except SystemExit:
        assert dies_at < 3
    monkeypatch.undo()
    clear_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]
    assert (target / "file").read_text() == ("new" if dies_at == 3 else "old")


@pytest.mark.parametrize("target", ["elsewhere", "nowhere", "file"])
def test_what_stands_in_the_place_of_a_folder_gives_way_and_a_link_is_not_followed(target: str, tmp_path: Path) -> None:
    elsewhere = folder_with(tmp_path / "elsewhere", "mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "final").symlink_to(tmp_path / target)
    move_into_place(folder_with(tmp_path / ".final.surefoot-tmp-1", "new"), tmp_path / "final")
    assert not (tmp_path / "final").is_symlink() and (tmp_path / "final/file").read_text() == "new"
    assert (elsewhere / "file").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "file", "final"]


@pytest.mark.parametrize(
    ("mask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o002, 0o775, 0o664), (0o077, 0o700, 0o600)]
)
def test_whoever_may_read_a_folder_may_read_the_weights_in_it(
    mask: int, folder_mode: int, file_mode: int, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        temporary = tmp_path / ".final.surefoot-tmp-1"
        (temporary / "member-1").mkdir(parents=True)
        for folder in (temporary, temporary / "member-1"):
            (folder / "model.safetensors").write_bytes(b"weights")
            (folder / "model.safetensors").chmod(0o600)  # as safetensors makes it
        move_into_place(temporary, tmp_path / "final")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "final").rglob("*")}
    assert modes == {"model.safetensors": file_mode, "member-1": folder_mode}


@pytest.mark.parametrize("name", ["a", "7", "_x", "run-1_b.c", "a" * 64])
def test_ordinary_names_pass(name: str) -> None:
    assert validate_name(name) == name


def test_a_refused_name_is_shown_and_cut() -> None:
    with pytest.raises(RunError) as caught:
        validate_name("x" * 500, "run name")
    assert str(caught.value) == (
        f"run name {'x' * 77 + '...'!r} is not allowed. "
        "Use 1 to 64 of the characters a-z 0-9 . _ -, not beginning with a dot or a dash."
    )
