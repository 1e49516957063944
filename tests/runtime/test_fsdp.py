"""Two gloo processes under torchrun do what one process does. One launch; the tests read what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from runtime import two_ranks
from surefoot.errors import EngineError
from surefoot.runtime.fsdp import FSDPRuntime

UPDATES = ("clip", "sequence_mean", "llama", "tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    paths = os.pathsep.join(str(Path(path).resolve()) for path in ("src", "tests"))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, two_ranks.__file__, str(folder)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[dict[str, Tensor], dict]]:
    return {name: (weights, stats) for name, weights, stats in two_ranks.single_process()}


def facts(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"facts-{rank}.json").read_text())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", UPDATES)
def test_two_sharded_processes_end_with_the_single_process_weights(folder: Path, alone: dict, name: str, rank: int) -> None:
    """Rows have 0 to 6 valid steps, so that ranks and micro-batches hold unequal counts; the clipped norm is global as well."""
    weights, expected = load_file(folder / f"{name}-{rank}.safetensors"), alone[name][0]
    assert weights.keys() == expected.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", UPDATES)
def test_statistics_are_global_and_equal_on_all_ranks(folder: Path, alone: dict, name: str) -> None:
    first, second = facts(folder, 0)[name], facts(folder, 1)[name]
    assert first == second
    expected = dict(alone[name][1])
    assert first.pop("skip_reason") == expected.pop("skip_reason")
    assert first == pytest.approx(expected, abs=2e-5, rel=1e-4)


def test_the_update_moves_weights_by_more_than_the_tolerance_of_this_file(alone: dict) -> None:
    policy, _ = two_ranks.tabular()
    moved = max(float((alone["clip"][0][name] - tensor).abs().max()) for name, tensor in policy.state_dict().items())
    assert moved > 1e-2


def test_sums_maxima_and_shards_span_the_ranks(folder: Path) -> None:
    assert [facts(folder, rank)["shard"] for rank in (0, 1)] == [[0, 1, 2], [3, 4, 5]]
    assert [facts(folder, rank)["sum"] for rank in (0, 1)] == [[2.0, 10.0]] * 2
    assert [facts(folder, rank)["max"] for rank in (0, 1)] == [1.0, 1.0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_nan_on_one_rank_keeps_both_from_stepping(folder: Path, rank: int) -> None:
    seen = facts(folder, rank)
    assert (seen["skipped"], seen["moved"]) == (1, 0.0)
    assert seen["skip_reason"] == "loss_value, loss_total not finite"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_on_one_rank_interrupts_both(folder: Path, rank: int) -> None:
    assert "Stopped on request" in facts(folder, rank)["interrupted"]


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_that_do_not_divide_among_processes_are_refused(folder: Path, rank: int) -> None:
    assert facts(folder, rank)["refused"].startswith("ConfigError: A minibatch of 5 rows does not divide among 2 processes.")


def test_starting_outside_of_torchrun_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EngineError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set: start the program with torchrun"):
        FSDPRuntime.start()
