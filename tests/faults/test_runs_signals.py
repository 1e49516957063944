"""R2: SIGTERM and SIGINT finish the step, save and exit 75; a second one exits at once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from surefoot.config import Config
from surefoot.errors import DataError, Interrupted
from surefoot.runs import RunFolder, State, hash_file, hash_folder, load_manifest, read_jsonl

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def open_run(path: Path, verb: str = "sft") -> RunFolder:
    return RunFolder.open(path, verb=verb, cfg=Config())


@pytest.mark.parametrize("kind", ["term", "int"])
def test_a_stop_saves_the_step_it_is_in_and_the_run_goes_on_identically(kind: str, forks: Any, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "run"
    forks.run("train", whole)
    status, said = forks.run("train", path, fault=f"backward:7:{kind}")
    assert status == 75
    name = f"SIG{kind.upper()}"
    assert f"{name}: stopping at the next safe point; once more stops at once.\n" in said
    line = f"Interrupted: {path}: stopped by {name}. It goes on from checkpoint-7 with the same command"
    assert said.endswith(f"{line} (--resume auto is the default).\n")
    assert load_manifest(path)["status"] == "interrupted"
    assert [row["step"] for row in read_jsonl(path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]
    assert forks.run("train", path)[0] == 0
    assert load_manifest(path)["status"] == "done"
    assert hash_file(path / "metrics.jsonl") == hash_file(whole / "metrics.jsonl")
    assert hash_folder(path / "final") == hash_folder(whole / "final")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_exits_75_although_no_safe_point_comes(number: int, forks: Any, tmp_path: Path, appears: Any) -> None:
    child = forks.start("stuck", tmp_path)
    appears(tmp_path / "held")
    os.kill(child.pid, number)
    time.sleep(0.1)
    os.kill(child.pid, 0)  # still there after the first
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 75
    assert child.said.endswith("not flushed")  # what was written to stdout is not lost


def test_signals_at_random_moments_exit_75_or_find_the_run_done(forks: Any, tmp_path: Path, appears: Any) -> None:
    chance = random.Random(1)
    forks.run("train", tmp_path / "whole")
    statuses = []
    for number in range(20):
        path = tmp_path / f"run-{number % 4}"
        child = forks.start("train", path, pause=0.005)
        appears(path / "manifest.json")
        time.sleep(chance.uniform(0.01, 0.05))
        os.kill(child.pid, chance.choice(SIGNALS))
        statuses.append(child.wait())
    # negative: the signal came before the folder was open, or after it was closed
    assert set(statuses) <= {0, 75, -signal.SIGTERM, -signal.SIGINT}, statuses
    assert 75 in statuses
    for number in range(4):
        path = tmp_path / f"run-{number}"
        assert forks.run("train", path)[0] == 0
        assert hash_file(path / "metrics.jsonl") == hash_file(tmp_path / "whole" / "metrics.jsonl")


def test_the_request_is_seen_and_names_how_to_go_on(tmp_path: Path) -> None:
    with (
        pytest.raises(Interrupted, match=r"stopped by SIGTERM\. Nothing was saved yet, so it starts again with the same command"),
        open_run(tmp_path) as folder,
    ):
        folder.check_stop()
        assert not folder.stop_requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert folder.stop_requested
        folder.check_stop()


def test_handlers_are_put_back_when_the_folder_closes(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with open_run(tmp_path):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_stop_inside_a_stage_stops_the_demo_around_it(tmp_path: Path) -> None:
    with open_run(tmp_path, "demo") as demo:
        with open_run(tmp_path / "sft") as stage:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stage.stop_requested
        assert demo.stop_requested
        with pytest.raises(Interrupted):
            demo.check_stop()
    with open_run(tmp_path, "demo") as demo:  # the next run in this process starts with a clean slate
        assert not demo.stop_requested


def test_a_folder_opened_in_a_thread_leaves_the_handlers_alone(tmp_path: Path) -> None:
    before, seen = [signal.getsignal(number) for number in SIGNALS], []

    def work() -> None:
        with open_run(tmp_path) as folder:
            seen.extend(signal.getsignal(number) for number in SIGNALS)
            folder.check_stop()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


def test_a_worker_forked_inside_a_run_dies_of_the_first_sigterm(tmp_path: Path) -> None:
    with open_run(tmp_path):
        worker = os.fork()
        if worker == 0:
            time.sleep(20)
            os._exit(3)
        time.sleep(0.05)
        os.kill(worker, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (DataError("prompts.jsonl is empty."), "stopped", "prompts.jsonl is empty."),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
        (Interrupted("stopped by SIGINT."), "interrupted", "stopped by SIGINT."),
    ],
)
def test_the_manifest_says_how_a_run_ended_early(error: Exception, status: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), open_run(tmp_path):
        raise error
    assert (load_manifest(tmp_path)["status"], load_manifest(tmp_path)["reason"]) == (status, reason)
    with open_run(tmp_path):
        assert (load_manifest(tmp_path)["status"], load_manifest(tmp_path)["reason"]) == ("started", "")


def test_has_saved_knows_the_newest_checkpoint(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        assert not folder.has_saved(0)
        folder.save(3, State({}, {}))
        assert folder.has_saved(3) and not folder.has_saved(2) and not folder.has_saved(4)
    with open_run(tmp_path) as folder:
        assert not folder.has_saved(3)
        folder.restore()
        assert folder.has_saved(3)
