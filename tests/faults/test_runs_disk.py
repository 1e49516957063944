"""R3: a full disk, a file-size limit, a folder without permission: a clear line, and the checkpoint before is kept."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from surefoot.config import Config
from surefoot.errors import RunError
from surefoot.runs import RunFolder, State, hash_folder, load_manifest, read_jsonl
from surefoot.runs.jsonl import Log

BIG = State({"policy": {"weight": torch.zeros(1000)}}, {"step": 1})


def open_run(path: Path) -> RunFolder:
    return RunFolder.open(path, verb="sft", cfg=Config())


def test_beyond_the_file_size_limit_the_checkpoint_before_is_kept(forks: Any, tmp_path: Path) -> None:
    # metrics.jsonl grows by about 80 bytes a step: it passes 6,000 bytes long after the first checkpoints stand
    path = tmp_path / "run"
    status, said = forks.run("limited", path, steps=200, limit=6000)
    assert status == 2
    match = re.fullmatch(
        rf"RunError: {re.escape(str(path))}: cannot write (\w+)\.jsonl \(\d+ bytes needed\): "
        r"it passes the file-size limit of this process\. Raise the limit \(ulimit -f\), or choose another --out\.\n",
        said,
    )
    assert match, said
    assert (path / f"{match[1]}.jsonl").read_bytes().endswith(b"}\n")  # the line that did not fit left nothing behind
    with open_run(path) as folder:
        state = folder.restore()
        assert state is not None and state.values["step"] >= 10


def test_a_checkpoint_beyond_the_limit_names_the_bytes_and_the_checkpoint_that_is_kept(forks: Any, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert forks.run("train", path, fault="rollout:9:raise")[0] == 1
    kept = hash_folder(path / "checkpoint-8")
    status, said = forks.run("limited", path, steps=12, limit=1200)  # config and manifest fit, a checkpoint's files do not
    assert status == 2
    assert re.search(
        r": cannot write (checkpoint-10 \(\d,\d{3} bytes needed\)|\w+\.jsonl .*): it passes the file-size limit", said
    ), said
    assert hash_folder(path / "checkpoint-8") == kept
    assert [entry for entry in os.listdir(path) if ".tmp" in entry] == []
    assert forks.run("train", path)[0] == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    with open_run(tmp_path) as folder:
        folder.record(1, {"loss": 1.0})
        folder.save(1, BIG)
        before = hash_folder(tmp_path / "checkpoint-1")
        monkeypatch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(RunError) as caught:
            folder.save(2, BIG)
    words = {
        errno.ENOSPC: (r"\(4,015 bytes needed, [\d,]+ free\): no room left\. Free some room", "ENOSPC"),
        errno.EDQUOT: (r"\(4,015 bytes needed, [\d,]+ free\): the quota is used up\. Free some room", "EDQUOT"),
        errno.EROFS: (r"\(4,015 bytes needed\): read-only file system\. Make the folder writable", "EROFS"),
    }[number]
    sentence = (
        rf"{re.escape(str(tmp_path))}: cannot write checkpoint-2 {words[0]}, or choose another --out\. checkpoint-1 is kept\."
    )
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)
    assert hash_folder(tmp_path / "checkpoint-1") == before
    assert sorted(entry for entry in os.listdir(tmp_path) if "checkpoint" in entry) == ["checkpoint-1"]


def test_another_error_while_saving_is_not_dressed_up_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SafetensorError("something else")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with open_run(tmp_path) as folder, pytest.raises(SafetensorError, match="something else"):
        folder.save(1, BIG)


def test_a_line_that_fits_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.append(b'{"step": 1}\n')
    whole = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) <= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(descriptor, bytes(content[:6]))

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(RunError, match=r"cannot write metrics\.jsonl \(12 bytes needed, [\d,]+ free\): no room left"):
        log.append(b'{"step": 2}\n')
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_a_write_that_the_kernel_cuts_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: whole(descriptor, bytes(content[:5])))
    log = Log(tmp_path / "metrics.jsonl")
    log.append(b'{"step": 1}\n')
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_final_that_does_not_fit_leaves_the_final_before(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        with folder.final() as final:
            (final / "weights").write_text("good")
        with (
            pytest.raises(RunError, match=r"cannot write final/: no room left.* What stood in final/ before is kept\."),
            folder.final() as final,
        ):
            (final / "weights").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        assert (tmp_path / "final" / "weights").read_text() == "good"
        assert [entry for entry in os.listdir(tmp_path) if entry.startswith(".")] == []


def test_a_disk_that_is_full_when_a_tokenizer_is_saved_is_told_like_any_other(tmp_path: Path) -> None:
    with (
        open_run(tmp_path) as folder,
        pytest.raises(RunError, match=r"cannot write final/: no room left\. Free some room"),
        folder.final(),
    ):
        raise Exception("No space left on device (os error 28)")  # what the library tokenizers raises


def test_an_error_of_another_file_inside_final_keeps_its_own_words(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder, pytest.raises(PermissionError, match="elsewhere"), folder.final():
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model")


def test_a_full_disk_does_not_hide_the_error_that_ended_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ZeroDivisionError), open_run(tmp_path):
        monkeypatch.setattr(os, "write", full)
        raise ZeroDivisionError
    monkeypatch.undo()
    assert load_manifest(tmp_path)["status"] == "started"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder below which anyone may go; pytest's own folders are the user's alone."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    for folder in [path, *(entry for entry in path.rglob("*") if entry.is_dir())]:
        folder.chmod(0o755)
    shutil.rmtree(path)


def test_a_folder_that_may_not_be_made_is_one_line(forks: Any, public: Path) -> None:
    public.chmod(0o555)
    status, said = forks.run("train", public / "run", nobody=True)
    assert (status, said) == (2, f"RunError: {public / 'run'} cannot be made (permission denied). Choose another --out.\n")


def test_a_run_folder_that_turned_read_only_is_one_line_and_stays_whole(forks: Any, public: Path) -> None:
    path = public / "run"
    forks.run("train", path, fault="rollout:5:raise")
    metrics = (path / "metrics.jsonl").read_bytes()
    path.chmod(0o555)
    (path / "run.lock").chmod(0o444)
    status, said = forks.run("train", path, nobody=True)
    assert status == 2
    assert (
        said == f"RunError: {path}: cannot take run.lock: permission denied. Make the folder writable, or choose another --out.\n"
    )
    assert (path / "metrics.jsonl").read_bytes() == metrics


def test_out_that_is_a_file_or_lies_below_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="is, or lies below, a file"):
            open_run(path)


def test_metrics_written_before_a_failed_save_are_recorded_once_after_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError), open_run(tmp_path) as folder:
        folder.record(1, {"loss": 1.0})
        folder.save(1, BIG)
        folder.record(2, {"loss": 0.5})
        folder.save(2, State({}, {"loss": float("nan")}))
    with open_run(tmp_path) as folder:
        folder.restore()
        folder.record(2, {"loss": 0.5})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
