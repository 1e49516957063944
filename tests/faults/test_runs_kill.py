"""R1: kill -9 at any moment; resumed, the run ends with the bytes of one that was never interrupted."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from surefoot.runs import hash_file, hash_folder

STEPS = 12
SITES = [
    "rollout:1:kill",  # before anything was recorded
    "rollout:2:kill",  # metrics, and no checkpoint yet
    "backward:7:kill",
    "optimizer:8:kill",
    "checkpoint-files:2:kill",  # in the middle of the very first checkpoint
    "checkpoint-files:8:kill",
    "checkpoint-rename:2:kill",
    "checkpoint-rename:8:kill",  # all files written and synced, not in place
    "checkpoint-after:8:kill",  # in place, the oldest one not deleted
    "checkpoint-after:12:kill",  # the last step is saved, the final folder is not written
    "final-rename:12:kill",
    "checkpoint-rename:10:raise",
]


def fingerprint(path: Path) -> dict[str, str]:
    """All that must be identical: weights, optimiser, generator, values, metrics, samples, what the run made."""
    files = [path / "metrics.jsonl", path / "samples.jsonl", *sorted((path / f"checkpoint-{STEPS}").iterdir())]
    return {file.relative_to(path).as_posix(): hash_file(file) for file in files} | {"final": hash_folder(path / "final")}


@pytest.fixture(scope="module")
def uninterrupted(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert forks.run("train", path, steps=STEPS) == (0, "")
    return fingerprint(path)


def test_two_equal_runs_write_equal_bytes_including_the_manifest(
    forks: Any, tmp_path: Path, uninterrupted: dict[str, str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        forks.run("train", path, steps=STEPS)
        assert fingerprint(path) == uninterrupted
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_another_seed_gives_another_fingerprint(forks: Any, tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    forks.run("train", tmp_path / "run", steps=STEPS, seed=1)
    changed = {name for name, digest in fingerprint(tmp_path / "run").items() if digest != uninterrupted[name]}
    assert changed == set(uninterrupted)


@pytest.mark.parametrize("site", SITES)
def test_a_run_killed_at_a_named_site_ends_as_if_it_had_not_been(
    site: str, forks: Any, tmp_path: Path, uninterrupted: dict[str, str]
) -> None:
    path = tmp_path / "run"
    status, _ = forks.run("train", path, steps=STEPS, fault=site)
    assert status == (-signal.SIGKILL if site.endswith("kill") else 1)
    assert forks.run("train", path, steps=STEPS)[0] == 0
    assert fingerprint(path) == uninterrupted
    assert sorted(entry.name for entry in path.iterdir() if entry.name.startswith(".")) == []
    assert sorted(entry.name for entry in path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]


def test_a_line_that_was_being_written_when_the_machine_died_is_cut_off(
    forks: Any, tmp_path: Path, uninterrupted: dict[str, str]
) -> None:
    path = tmp_path / "run"
    forks.run("train", path, steps=STEPS, fault="backward:7:kill")
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "los')
    assert forks.run("train", path, steps=STEPS)[0] == 0
    assert fingerprint(path) == uninterrupted


def kill_until_done(forks: Any, path: Path, chance: random.Random, kills: int) -> int:
    """Runs and kills at random moments until the run is done or `kills` are spent; returns the number of kills."""
    for number in range(kills):
        child = forks.start("train", path, steps=STEPS, pause=0.005)
        time.sleep(chance.uniform(0.0, 0.3))
        os.kill(child.pid, signal.SIGKILL)
        if child.wait() == 0:
            return number
    assert forks.run("train", path, steps=STEPS)[0] == 0
    return kills


def killed_at_random(forks: Any, folder: Path, expected: dict[str, str], kills: int) -> None:
    chance, spent, run = random.Random(0), 0, 0
    while spent < kills:
        run += 1
        spent += kill_until_done(forks, folder / f"run-{run}", chance, kills - spent)
        assert fingerprint(folder / f"run-{run}") == expected


def test_20_kills_at_random_moments_change_nothing(forks: Any, tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    killed_at_random(forks, tmp_path, uninterrupted, kills=20)


@pytest.mark.soak
def test_100_kills_at_random_moments_change_nothing(forks: Any, tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    killed_at_random(forks, tmp_path, uninterrupted, kills=100)
