"""R1 for the stages themselves: killed at any moment and resumed, a stage ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from run_bytes import assert_equal_up_to_rounding, fingerprint
from surefoot.runs import read_jsonl

STAGES = ("sft", "reward", "pairs", "chosen_pairs", "clip", "penalty", "control")
SITES = {  # in the order in which a run meets them, so that each fires once in a chain of resumed runs
    "sft": "optimizer:2 checkpoint-files:3 checkpoint-rename:6 checkpoint-after:6 checkpoint-after:12 final-rename:12",
    "reward": "optimizer:1 checkpoint-rename:3 optimizer:5 checkpoint-after:6 checkpoint-files:8 final-rename:8",
    "pairs": "checkpoint-rename:3 checkpoint-after:6 checkpoint-rename:12 checkpoint-after:15",
    "chosen_pairs": "checkpoint-rename:3 checkpoint-after:9 checkpoint-rename:18 checkpoint-after:21",
    "clip": "rollout:1 backward:1 checkpoint-files:1 rollout:2 checkpoint-rename:2 backward:3 checkpoint-after:4 final-rename:4",
    "penalty": "backward:2 checkpoint-files:2 checkpoint-after:2 rollout:3 backward:4 checkpoint-rename:4 final-rename:4",
    "control": "rollout:1 backward:2 checkpoint-rename:2 checkpoint-after:2 rollout:4 checkpoint-files:4 final-rename:6",
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_seed_gives_the_same_bytes_and_what_was_made_is_among_them(
    stage: str, stages: Any, whole: Any, tmp_path: Path
) -> None:
    expected, _, _ = whole(stage)
    assert stages.run(stage, tmp_path / "again")[0] == 0
    assert fingerprint(tmp_path / "again") == expected
    made = {
        "pairs": {"votes"},
        "chosen_pairs": {"votes", "samples.jsonl"},
        "control": {"final", "checkpoint-6/environments.safetensors"},
    }.get(stage, {"final", "samples.jsonl"})
    assert made <= set(expected)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_named_site_in_turn_a_stage_ends_with_the_bytes_of_a_whole_run(
    stage: str, stages: Any, whole: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    for site in SITES[stage].split():
        status, said = stages.run(stage, path, fault=f"{site}:kill")
        assert status == -signal.SIGKILL, f"{site} was not met: {said}"
    status, said = stages.run(stage, path)
    assert status == 0, said
    assert fingerprint(path) == whole(stage)[0]
    assert [entry.name for entry in path.iterdir() if entry.name.startswith(".")] == []


def test_a_checkpoint_at_the_very_end_of_an_epoch_resumes_with_the_first_batch_of_the_next(
    stages: Any, whole: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    assert stages.run("sft", path, fault="checkpoint-after:6:kill")[0] == -signal.SIGKILL
    assert len(read_jsonl(path / "metrics.jsonl")) == 7  # the look before training, and 6 steps of 4 of the 24 rows: one epoch
    assert stages.run("sft", path)[0] == 0
    assert fingerprint(path) == whole("sft")[0]


def test_seeds_side_by_side_that_were_killed_end_as_whole_runs(stages: Any, tmp_path: Path) -> None:
    """A kill between the checkpoints of two seeds leaves one ahead: the others catch up, and then all go on together."""
    whole, path = tmp_path / "whole", tmp_path / "run"
    assert stages.run("control_seeds", whole)[0] == 0
    for site in ["backward:2", "checkpoint-rename:2", "checkpoint-after:2", "rollout:4", "checkpoint-after:4", "final-rename:6"]:
        status, said = stages.run("control_seeds", path, fault=f"{site}:kill")
        assert status == -signal.SIGKILL, f"{site} was not met: {said}"
        if site == "checkpoint-after:2":
            assert [len(list(path.glob(f"seed-{seed}/checkpoint-2"))) for seed in (3, 4, 5)] == [1, 0, 0]
    status, said = stages.run("control_seeds", path)
    assert status == 0, said
    for seed in (3, 4, 5):
        assert_equal_up_to_rounding(path / f"seed-{seed}", whole / f"seed-{seed}")
    assert (path / "seeds.json").exists()


def kill_at_random(stages: Any, stage: str, folder: Path, expected: dict[str, str], seconds: float, kills: int) -> None:
    """Starts the stage, kills it, and again, until `kills` are spent; whenever a run comes to its end it is compared."""
    chance, spent, number = random.Random(stage), 0, 0
    while spent < kills:
        path = folder / f"run-{number}"
        child = stages.start(stage, path)
        time.sleep(chance.uniform(0.0, seconds))
        os.kill(child.pid, signal.SIGKILL)
        status = child.wait()
        assert status in (0, -signal.SIGKILL), child.said
        if status == 0:
            assert fingerprint(path) == expected
            number += 1
        spent += status != 0
    assert stages.run(stage, folder / f"run-{number}")[0] == 0
    assert fingerprint(folder / f"run-{number}") == expected


@pytest.mark.parametrize("stage", STAGES)
def test_20_kills_at_random_moments_change_no_byte(stage: str, stages: Any, whole: Any, tmp_path: Path) -> None:
    expected, seconds, _ = whole(stage)
    kill_at_random(stages, stage, tmp_path, expected, 0.8 * seconds, kills=20)


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_100_kills_at_random_moments_change_no_byte(stage: str, stages: Any, whole: Any, tmp_path: Path) -> None:
    expected, seconds, _ = whole(stage)
    kill_at_random(stages, stage, tmp_path, expected, 0.8 * seconds, kills=100)
