"""R2 for the stages themselves: a signal ends any of them within seconds with status 75, and nothing is lost by it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import surefoot
from run_bytes import fingerprint
from surefoot.cli import run
from surefoot.runs import load_manifest, read_jsonl

SECONDS = 10.0  # the promise: from the signal to the end of the process
FIRST = {  # where a stage of the first half is when the signal comes
    "sft": "optimizer:4",
    "reward": "optimizer:1",
    "pairs": "checkpoint-rename:3",
    "clip": "rollout:2",
    "penalty": "backward:1",
    "control": "backward:3",
}


@pytest.mark.parametrize("stage", FIRST)
def test_a_stop_in_the_middle_saves_and_exits_75_and_the_end_is_the_same(
    stage: str, stages: Any, whole: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    status, said = stages.run(stage, path, fault=f"{FIRST[stage]}:term")
    assert status == 75, said
    assert "stopped by SIGTERM" in said or "Stopped on request" in said
    assert load_manifest(path)["status"] == "interrupted"
    status, said = stages.run(stage, path)
    assert status == 0, said
    assert fingerprint(path) == whole(stage)[0]


@pytest.mark.parametrize("stage", FIRST)
def test_stops_at_random_moments_end_in_time_and_change_no_byte(stage: str, stages: Any, whole: Any, tmp_path: Path) -> None:
    expected, seconds, _ = whole(stage)
    chance, path = random.Random(f"stop {stage}"), tmp_path / "run-0"
    for number in range(1, 7):
        child = stages.start(stage, path)
        time.sleep(chance.uniform(0.1, 0.7) * seconds)
        os.kill(child.pid, signal.SIGINT)
        began = time.monotonic()
        status = child.wait()
        assert time.monotonic() - began < SECONDS
        assert status in (0, 75, -signal.SIGINT), child.said  # -SIGINT: before the folder was open, or after it was closed
        if status == 0:
            assert fingerprint(path) == expected
            path = tmp_path / f"run-{number}"
    assert stages.run(stage, path)[0] == 0
    assert fingerprint(path) == expected


@pytest.mark.parametrize(
    "stage, stop_at, calls",
    [
        ("clip", 2, 2),  # in the reward function of the second update: the update is not begun
        ("evaluate", 1, 1),  # while a judge reads the first model's answers: the second model writes none
        ("pairs", 2, 9),  # while an annotator votes: the batch is finished, since it is stored as a whole
    ],
)
def test_a_stop_is_heeded_before_the_next_long_piece_of_work(
    stage: str, stop_at: int, calls: int, stages: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    status, said = stages.run(stage, path, stop_at=stop_at)
    assert status == 75, said
    assert said.count("called") == calls
    steps = [row["step"] for row in read_jsonl(path / "metrics.jsonl")]
    assert steps == {"clip": [1], "evaluate": [], "pairs": [3]}[stage]
    assert stages.run(stage, path)[0] == 0


@pytest.mark.parametrize("job", ["look", "features"])
def test_a_stop_is_heeded_inside_a_pass_over_all_data(job: str, stages: Any, tmp_path: Path) -> None:
    """Held-out items before the first step, and the states that a reward head is trained on: minutes with a real model."""
    status, said = stages.run(job, tmp_path / "run")
    assert status == 75, said
    assert said.count("called") == 1
    assert "Nothing was saved yet, so it starts again" in said


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "surefoot", *words]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    source = str(Path(surefoot.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(*words), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_command_line_stops_within_seconds_and_goes_on_with_the_same_command(
    tmp_path: Path, appears: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"prompt": "the film {n}", "completion": " was good ."}}\n' for n in range(40))
    Path("train.jsonl").write_text(rows)
    words = [
        "sft",
        "--model.name=tiny",
        "--data.train=train.jsonl",
        "--sft.num_epochs=6",
        "--sft.batch_size=4",
        "--sft.save_every=3",
    ]
    process = start([*words, "--out", "run"], tmp_path)
    appears(tmp_path / "run" / "checkpoint-3", 60.0)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < SECONDS
    assert process.returncode == 75
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("Interrupted: ")
    assert run([*words, "--out", "run"]) == 0
    assert run([*words, "--out", "whole"]) == 0
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def test_a_second_signal_ends_the_command_line_at_once(tmp_path: Path, appears: Any) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef score(prompts, completions):\n    pathlib.Path('scoring').touch()\n    time.sleep(100)\n"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the film"}\n{"prompt": "the plot"}\n')
    words = ["ppo", "--model.name=tiny", "--data.prompts=prompts.jsonl", "--reward_source.source=slow:score"]
    process = start([*words, "--rollout.response_length=4", "--ppo.rollout_batch_size=2"], tmp_path)
    appears(tmp_path / "scoring", 60.0)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)  # the first asks; the reward function is not broken off
    process.terminate()
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 2.0
    assert process.returncode == 75
    assert said.count("SIGTERM: stopping at the next safe point; once more stops at once.") == 1
