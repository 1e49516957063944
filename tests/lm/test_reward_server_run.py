"""PPO against a reward server on loopback: runs whose server failed in 30 % of its answers, or died, end like a calm one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reward_server import reward_server
from surefoot.api import PPORun
from surefoot.errors import Paused
from surefoot.runs import load_manifest, read_jsonl
from tiny_language import make_backbone

PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked"]
SMALL = {
    "rollout.response_length": 4,
    "ppo.rollout_batch_size": 8,
    "ppo.total_episodes": 48,
    "ppo.learning_rate": 0.02,
    "ppo.save_every": 4,
    "reward_source.batch_size": 1,  # a request an answer: 48 of them
    "reward_source.timeout": 1.0,
    "reward_source.max_retries": 30,
    "reward_source.retry_wait": 0.001,
}


def vowels(prompt: str, answer: str) -> float:
    return sum(letter in "aeiou" for letter in answer) / 4


def run(model: Any, tokenizer: Any, url: str, out: Path, **settings: Any) -> PPORun:
    chosen = {**SMALL, **{f"reward_source.{name}": value for name, value in settings.items()}}
    return PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=url, settings=chosen, out=out)


def weights(run: PPORun) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in run.parts.policy.named_parameters()}


def same(run: PPORun, other: PPORun) -> bool:
    mine, theirs = weights(run), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def calm(model: Any, tokenizer: Any, tmp_path: Path) -> PPORun:
    with reward_server(vowels) as server:
        made = run(model, tokenizer, server.url, tmp_path / "calm").learn()
        assert len(server.asked) >= 48
    return made


@pytest.mark.parametrize("protocol", ["openrlhf", "surefoot"])
def test_a_run_whose_server_fails_in_30_of_100_answers_ends_with_the_same_weights(
    protocol: str, calm: PPORun, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    kinds = ("500", "timeout", "wrong length", "nan", "string", "html")
    with reward_server(vowels, faults=0.3, kinds=kinds, pause=2.0) as server:
        tried = run(model, tokenizer, server.url, tmp_path / "tried", protocol=protocol).learn()
        assert 10 <= len(server.failed) <= len(server.asked) - 48  # a busy machine may add a timeout
        assert set(server.failed) == set(kinds)
    assert same(tried, calm)
    assert (tmp_path / "tried/metrics.jsonl").read_bytes() == (tmp_path / "calm/metrics.jsonl").read_bytes()


def test_a_server_that_dies_pauses_the_run_with_a_checkpoint_and_the_same_command_goes_on(
    calm: PPORun, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    out = tmp_path / "paused"
    with reward_server(vowels) as server:
        server.dead_after = 19  # in the third rollout; the settings save every fourth update
        with pytest.raises(Paused, match="no scores in 3 attempts; the last: it answered 503") as error:
            run(model, tokenizer, server.url, out, max_retries=2).learn()
        assert error.value.exit_status == 75
        assert (load_manifest(out)["status"], len(read_jsonl(out / "metrics.jsonl"))) == ("interrupted", 2)
        assert (out / "checkpoint-2").is_dir()
        server.dead_after = None
        resumed = run(model, tokenizer, server.url, out, max_retries=2).learn()
    assert same(resumed, calm)
    assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "calm/metrics.jsonl").read_bytes()


def test_a_server_that_never_answered_leaves_nothing_behind_that_binds_the_next_run(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(Paused):
        run(model, tokenizer, "http://127.0.0.1:1/", tmp_path / "out", max_retries=0).learn()
    assert not list((tmp_path / "out").glob("checkpoint-*"))
