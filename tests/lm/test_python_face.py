"""Runs from Python with a folder: what the folder says of them when they end, are left, or come again with other data."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from surefoot.api import PPORun, RewardRun, SFTRun
from surefoot.errors import RunError
from surefoot.runs import load_manifest
from tiny_language import make_backbone

PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked"]
ROWS = [{"prompt": prompt, "completion": " good ."} for prompt in PROMPTS]
PAIRS = [{"prompt": prompt, "chosen": " good .", "rejected": " bad ."} for prompt in PROMPTS]
SMALL = {"rollout.response_length": 4, "ppo.rollout_batch_size": 4, "ppo.total_episodes": 8}


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def test_a_run_that_came_to_its_end_is_done_and_names_its_inputs(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    SFTRun(make_backbone(model, tokenizer), train=ROWS, out=tmp_path / "sft").fit()
    RewardRun(make_backbone(model, tokenizer), train=PAIRS, out=tmp_path / "reward").fit()
    PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=lengths, settings=SMALL, out=tmp_path / "ppo").learn()
    manifests = {name: load_manifest(tmp_path / name) for name in ("sft", "reward", "ppo")}
    assert {name: manifest["status"] for name, manifest in manifests.items()} == dict.fromkeys(manifests, "done")
    assert set(manifests["sft"]["inputs"]) == set(manifests["reward"]["inputs"]) == {"model", "train", "validation"}
    assert set(manifests["ppo"]["inputs"]) == {"model", "prompts", "reward"}


def test_a_run_that_was_left_is_interrupted_and_goes_on_with_the_same_data_alone(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    def run(prompts: list[str]) -> PPORun:
        return PPORun(make_backbone(model, tokenizer), prompts=prompts, reward=lengths, settings=SMALL, out=tmp_path / "ppo")

    left = run(PROMPTS)
    assert next(iter(left)).update == 1
    del left
    gc.collect()
    manifest = load_manifest(tmp_path / "ppo")
    assert (manifest["status"], manifest["reason"]) == ("interrupted", "The loop over its steps was left before the last one.")
    with pytest.raises(RunError, match="was started with other inputs: prompts"):
        run(PROMPTS[:3]).learn()
    assert [step.update for step in run(PROMPTS)] == [2]
    assert load_manifest(tmp_path / "ppo")["status"] == "done"
