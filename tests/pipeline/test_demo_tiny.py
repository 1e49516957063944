"""The whole loop through the command line, on the tiny preset: it ends, it learns, and all that it records is documented."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import surefoot
from surefoot.cli import run
from surefoot.config_file import load_config
from surefoot.diagnostics.metrics import is_known, verdict_keys
from surefoot.runs import load_manifest, read_jsonl
from surefoot.stages import demo as stages_demo
from surefoot.stages.chain import sft_config

STAGES = ("sft", "reward", "ppo", "evaluate")
PROMISED = (
    *(
        "judge_win_rate",
        "judge_win_rate_interval",
        "duplicates",
        "sft_loss_before",
        "sft_loss_after",
        "vader_before",
        "vader_after",
    ),
    *("judge_before", "judge_after", "kl_policy_sft", "distinct2_before", "distinct2_after", "length_before", "length_after"),
    *(
        "eos_rate",
        "reward_model_accuracy",
        "reward_model_accuracy_interval",
        "num_prompts",
        "seed",
        "seconds",
        "peak_memory_bytes",
    ),
)
SHORT = ("--sft.max_steps=4", "--reward.max_steps=4", "--ppo.total_episodes=256", "--evaluate.num_prompts=8")


def test_sft_of_the_demo_adapts_every_block_and_ppo_the_upper_half() -> None:
    cfg = load_config(None, [], verb="demo", preset="default")
    sft, ppo = sft_config(cfg), stages_demo._ppo_config(cfg, Path("x"))
    assert (sft.model.lora_layers, ppo.model.lora_layers) == (None, 15)
    tiny = load_config(None, ["--model.tuning=lora"], verb="demo", preset="tiny")
    assert sft_config(tiny).model.tuning == "full"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """`surefoot demo --preset tiny` in a process of its own."""
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, command(out)


def command(out: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "surefoot", "demo", "--preset", "tiny", "--out", str(out)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def verdict_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "verdict.json").read_text())


def test_the_demo_ends_with_a_verdict_and_a_report(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, ended = demo
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    verdict = verdict_of(out)
    assert set(PROMISED) <= set(verdict)
    assert set(verdict) <= verdict_keys()
    assert set(verdict["seconds"]) == set(STAGES)
    assert verdict["peak_memory_bytes"] > 100e6
    assert "</html>" in (out / "report.html").read_text()
    for line in verdict["verdict"]:
        assert line in ended.stderr


def test_the_policy_is_better_by_the_true_rating_and_not_by_saying_less(demo: tuple[Path, Any]) -> None:
    verdict = verdict_of(demo[0])
    assert verdict["judge_win_rate"] >= 0.75
    assert verdict["judge_after"] > verdict["judge_before"]
    assert verdict["length_after"] >= 0.75 * verdict["length_before"]
    assert verdict["sft_loss_after"] < 0.5 * verdict["sft_loss_before"]
    assert verdict["reward_model_accuracy"] > 0.85
    assert 0 < verdict["kl_policy_sft"] < 12


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_that_the_demo_records_is_documented(stage: str, demo: tuple[Path, Any]) -> None:
    rows = read_jsonl(demo[0] / stage / "metrics.jsonl")
    assert rows
    assert [key for row in rows for key in row if not is_known(key)] == []


def test_a_second_call_says_that_it_is_done_and_changes_nothing(demo: tuple[Path, Any]) -> None:
    out, _ = demo
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name not in ("run.lock", "events.jsonl")}
    again = command(out)
    assert again.returncode == 0
    assert f"{out} is done; nothing is left to do." in again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("words", [["--ppo.objective=penalty"], ["--ppo.objective=policy_gradient"], ["--ppo.kl_coef=0"]])
def test_other_objectives_and_no_tether_run_the_same_path(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(["demo", "--preset", "tiny", *SHORT, *words, "--out", str(out)]) == 0
    name, _, value = words[0].removeprefix("--ppo.").partition("=")
    assert str(verdict_of(out)[name]) in (value, f"{float(value)}" if value == "0" else value)
    rows = read_jsonl(out / "ppo/metrics.jsonl")
    assert all(math.isfinite(number) for row in rows for number in row.values())
    assert ("kl/beta" in rows[0]) == ("penalty" in words[0])
    assert {row["kl/coef"] for row in rows} == ({0.0} if name == "kl_coef" else {rows[0]["kl/coef"]})


def test_a_demo_that_is_stopped_goes_on_with_the_stage_it_was_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["demo", "--preset", "tiny", *SHORT, "--out", str(tmp_path / "run")]
    monkeypatch.setenv("SUREFOOT_FAULT", "rollout:2:term")
    assert run(words) == 75
    done = [load_manifest(tmp_path / "run" / stage)["status"] for stage in ("sft", "reward", "ppo")]
    assert done == ["done", "done", "interrupted"]
    monkeypatch.delenv("SUREFOOT_FAULT")
    assert run(words) == 0
    assert [row["stage"] for row in read_jsonl(tmp_path / "run/stages.jsonl")] == ["sft", "reward", "ppo", "ppo", "evaluate"]


def test_a_demo_paid_by_an_ensemble_as_the_default_one_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ensemble = ("--reward.method=head", "--reward.ensemble=2", "--reward_source.ensemble=mean_minus_std")
    words = ["demo", "--preset", "tiny", "--out", str(tmp_path), *SHORT, *ensemble, "--ppo.old_logprobs=sampled"]
    assert run(words) == 0, capsys.readouterr().err
    rows = [row for row in read_jsonl(tmp_path / "ppo/metrics.jsonl") if "objective/scores" in row]
    for row in rows:
        assert row["rewards/disagreement/mean"] > 0
        paid = row["rewards/ensemble_mean/mean"] - row["rewards/disagreement/mean"]
        assert row["objective/scores"] == pytest.approx(paid, abs=1e-4)
    assert len(rows) == 2
    assert verdict_of(tmp_path)["verdict"] and (tmp_path / "report.html").is_file()
