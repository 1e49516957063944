"""The loop of PPO on tokens: when coefficients move, and what is no reason to stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.api import PPORun
from surefoot.config import PPOConfig
from surefoot.errors import TrainingError
from surefoot.runs import read_jsonl
from surefoot.stages import ppo_lm
from surefoot.stages.ppo_state import Carried
from tiny_language import make_backbone

PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked"]
SMALL = {"rollout.response_length": 4, "ppo.rollout_batch_size": 4, "ppo.learning_rate": 0.02}


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def test_the_tether_stands_still_while_the_critic_warms_up(model: Any, tokenizer: Any) -> None:
    """The KL is 0 until the policy moves; halving at each of those rollouts would leave no tether when it does."""
    settings = {**SMALL, "ppo.kl_controller": "doubling", "ppo.critic_warmup_steps": 3, "ppo.total_episodes": 20}
    run = PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=lengths, settings=settings)
    coefficients = [step.metrics["kl/coef"] for step in run]
    assert coefficients[:4] == [0.05] * 4
    assert coefficients[4] == 0.025  # by the first rollout after warm-up, as by the first of a run without one


def test_beta_stands_still_where_no_step_was_taken_and_a_kl_that_is_no_number_is_an_alarm(model: Any, tokenizer: Any) -> None:
    cfg = PPOConfig(objective="penalty", beta_controller="doubling", beta=2.0)
    run = PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=lengths, settings={**SMALL, "ppo.total_episodes": 4})
    (step,) = run
    start = Carried(beta=2.0)
    unmoved = replace(step.stats, steps=0, kl_after=0.0)
    assert ppo_lm._moved(start, step.rollout, unmoved, cfg, 1, start.running).beta == 2.0
    assert ppo_lm._moved(start, step.rollout, replace(unmoved, steps=1), cfg, 1, start.running).beta == 1.0
    with pytest.raises(TrainingError, match="after update 1 is not a number: the weights have diverged"):
        ppo_lm._moved(start, step.rollout, replace(unmoved, steps=1, kl_after=torch.nan), cfg, 1, start.running)


def test_minibatches_of_answers_that_could_not_be_scored_are_no_alarm(model: Any, tokenizer: Any) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [1.0, None, None, None]

    settings = {**SMALL, "ppo.num_mini_batches": 4, "ppo.num_ppo_epochs": 3, "ppo.max_skipped_steps": 2, "ppo.total_episodes": 8}
    for step in PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=reward, settings=settings):
        assert (step.stats.steps, step.stats.skipped, step.stats.skipped_in_row) == (3, 9, 0)


def test_why_a_step_was_not_taken_stands_in_the_events_of_the_run(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [1e30, -1e30, 0.0, 1.0]

    settings = {**SMALL, "ppo.total_episodes": 4, "ppo.max_skipped_steps": 9}
    run = PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=reward, settings=settings, out=tmp_path / "run")
    run.learn()
    messages = [row["message"] for row in read_jsonl(tmp_path / "run/events.jsonl")]
    assert "update 1: 4 steps were not taken. The first: loss_value, loss_total not finite" in messages
