"""`benchmarks/table1.py`: its arithmetic, that a finished run is kept, and that a killed command leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mujoco")

import table1
from control_parts import jobs
from control_parts.table import as_markdown, summarized

SCRIPT = Path(table1.__file__)
TINY = ("--tasks", "InvertedPendulum", "--settings", "none", "clip-0.2", "--steps", "2048", "--seeds", "0", "1")


def run_of(task: str, setting: str, *scores: float) -> dict[str, Any]:
    return {"task": task, "setting": setting, "seeds": {str(i): {"score": score} for i, score in enumerate(scores)}}


def test_scores_are_0_for_random_actions_and_1_for_the_best_run_of_a_task() -> None:
    """Task a: random 10, best 30. Task b: random -20, best 0. none: a (0.5, 0), b (0, -1); clip-0.2: a (1, 0.5), b (1, 0.5)."""
    files: list[dict[str, Any]] = [{"task": "a", "mean": 10.0}, {"task": "b", "mean": -20.0}]
    files += [run_of("a", "none", 20, 10), run_of("b", "none", -20, -40), run_of("a", "clip-0.2", 30, 20)]
    files += [run_of("b", "clip-0.2", 0, -10), run_of("a", "fixed-1", 20, 20)]
    summary = summarized(files, ["none", "clip-0.2", "fixed-1", "clip-0.1"])
    assert summary["tasks"] == {"a": {"random": 10, "best": 30}, "b": {"random": -20, "best": 0}}
    none, clip, fixed = summary["rows"].values()
    assert none["scaled"] == {"a": 0.25, "b": -0.5} and none["score"] == -0.125
    assert clip["score"] == 0.75
    half = 12.706 * 0.5 / 2  # seeds have 1 and 0.5: t(1) s / sqrt(2), s = 0.5 / sqrt(2)
    assert clip["interval"] == pytest.approx([0.75 - half, 0.75 + half], rel=1e-4)
    assert "score" not in fixed  # it lacks task b
    assert "| no clipping or penalty | -0.39 | -0.12 ± 4.76 | 15 | -30 |" in as_markdown(summary)


def test_every_setting_is_one_that_the_configuration_allows() -> None:
    for setting in table1.SETTINGS:
        made = table1.made_with("Hopper", setting, 2048)["ppo"]
        assert made["gamma"] == 0.99 and made["num_ppo_epochs"] == 10  # control's defaults, not the language model's
    assert table1.made_with("Hopper", "none", 2048)["ppo"]["beta"] == 0


def test_a_finished_run_is_kept_and_its_curve_is_that_of_the_run_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *TINY, "--workers", "2", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o")]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "| clipping, epsilon = 0.2 | 0.82 |" in first.stdout and "3/3" in first.stderr
    path = tmp_path / "o" / "table1-2048" / "InvertedPendulum-none.json"
    written, kept = path.read_bytes(), json.loads(path.read_bytes())
    metrics = tmp_path / "w" / "2048" / "InvertedPendulum-none" / "seed-1" / "metrics.jsonl"
    last = json.loads(metrics.read_text("utf-8").splitlines()[-1])
    assert kept["seeds"]["1"]["score"] == last["rollout/ep_rew_mean"] and kept["seeds"]["1"]["beta"] == [0.0]
    assert (tmp_path / "o" / "table1-2048.png").read_bytes().startswith(b"\x89PNG")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "") and path.read_bytes() == written


def test_a_killed_command_takes_its_runs_along_and_they_go_on(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--tasks", "InvertedPendulum", "--settings", "clip-0.2", "--steps", "10000000"]
    command += ["--seeds", "0", "--workers", "1", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o")]
    folder = tmp_path / "w" / "10000000" / "InvertedPendulum-clip-0.2" / "seed-0"

    def killed_after_a_checkpoint(beyond: int) -> int:
        """Kills the command once it has a checkpoint later than that, and tells which is the newest once its run is gone."""
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            until(lambda: newest(folder) > beyond)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        until(lambda: not (folder / "run.lock").exists() or is_free(folder / "run.lock"))
        return newest(folder)

    first = killed_after_a_checkpoint(0)
    assert killed_after_a_checkpoint(first) > first
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def newest(folder: Path) -> int:
    return max((int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-[0-9]*")), default=0)


def is_free(lock: Path) -> bool:
    import fcntl

    with lock.open("r+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_a_table_takes_the_place_of_the_one_before_and_leaves_the_rest_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- x -->\nold\n<!-- end of x -->\nbelow\n", encoding="utf-8")
    for text in ("first", "second"):
        assert jobs.into_page(page, "x", text)
        assert page.read_text("utf-8") == f"above\n<!-- x -->\n\n{text}\n\n<!-- end of x -->\nbelow\n"
    assert not jobs.into_page(page, "y", "third") and "third" not in page.read_text("utf-8")
