"""Samples of a sampler whose arithmetic is not the trainer's: the gap is seen, and truncated weights make up for it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from surefoot.api import PPORun
from surefoot.lm.backbone import Backbone
from surefoot.stages.rollouts import RunningDeviation, rollout, truncated_weights
from tiny_language import make_completions, make_policy, make_prompts, make_scores, moved, plain_ppo, random_rows

PROMPTS = ["the film was", "the plot seemed rather dull and", "the", "the cast looked fine and very"]


def test_a_weight_is_the_ratio_of_both_probabilities_up_to_the_cap() -> None:
    gap = torch.tensor([[0.0, math.log(1.5), math.log(4.0), math.log(0.25)]])
    assert truncated_weights(gap, 2.0)[0].tolist() == pytest.approx([1.0, 1.5, 2.0, 0.25])


def test_weights_make_the_samplers_samples_those_of_the_policy() -> None:
    """Over three actions: E_mu[w f] = E_pi[f] exactly where nothing is cut; with a cap of 1.5 the mass above is missing."""
    pi, mu, f = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, -2.0, 4.0])
    gap = pi.log() - mu.log()
    assert (mu * truncated_weights(gap, 10.0) * f).sum().item() == pytest.approx((pi * f).sum().item())
    assert (mu * truncated_weights(gap, 1.5) * f).sum().item() == pytest.approx(0.2 * 1.5 - 0.6 + 0.8)


def test_a_rollout_weighs_its_tokens_and_tells_how_many_the_cap_cut(backbone: Backbone) -> None:
    policy, pad = moved(make_policy(backbone)), backbone.codec.pad_id
    prompts = make_prompts(random_rows(backbone, 4, 1, 7, seed=1), pad)
    answers = make_completions(random_rows(backbone, 4, 2, 6, seed=2), pad, extra=2)  # their sampler's log-probs are 0
    given = (policy, prompts, answers, make_scores([1.0, 2.0, 3.0, 4.0]))
    seen, plain = (rollout(*given, plain_ppo(tis_cap=cap), kl_coef=0.0, running=RunningDeviation()) for cap in (1e-3, None))
    assert plain.batch.weights is None and "val/sampler_weight" not in plain.metrics
    assert seen.batch.weights is not None
    expected = seen.batch.logp_old.exp().clamp(max=1e-3)
    mask = seen.batch.mask
    assert torch.allclose(seen.batch.weights[mask], expected[mask])
    assert seen.metrics["val/sampler_weight"] == pytest.approx(expected[mask].mean().item())
    assert seen.metrics["val/sampler_weight_capped"] == pytest.approx((expected[mask] == 1e-3).float().mean().item())
    assert torch.equal(seen.batch.advantages, plain.batch.advantages)  # weighed in the update, once they are standardised


def run_of(model: Any, tokenizer: Any, dtype: str, **settings: Any) -> PPORun:
    """PPO towards answers with many letters e."""
    small = {"rollout.response_length": 6, "ppo.rollout_batch_size": 16, "ppo.num_ppo_epochs": 2, "ppo.kl_coef": 0.0}
    return PPORun(
        (copy.deepcopy(model).to(getattr(torch, dtype)), tokenizer),
        prompts=PROMPTS,
        reward=lambda prompts, completions: [sum(letter == "e" for letter in answer) for answer in completions],
        settings=small | {"model.dtype": dtype, "ppo.learning_rate": 0.01} | settings,
    )


def test_in_float32_weights_are_1_and_in_bf16_they_measure_the_gap(model: Any, tokenizer: Any) -> None:
    seen = {}
    for dtype in ("float32", "bfloat16"):
        *_, step = run_of(model, tokenizer, dtype, **{"ppo.tis_cap": 2.0, "ppo.total_episodes": 48})
        assert step.rollout.batch.weights is not None
        off = (step.rollout.batch.weights[step.rollout.batch.mask] - 1).abs().mean().item()
        seen[dtype] = off
        assert off == pytest.approx(step.metrics["val/sampler_gap"], rel=0.2, abs=1e-6)  # |e^x - 1| is |x| for small x
        assert step.metrics["val/first_log_ratio"] < (1e-4 if dtype == "float32" else 0.02)  # recomputed in either case
        assert step.metrics["val/sampler_weight"] == pytest.approx(1.0, abs=0.01)
    assert seen["float32"] < 1e-5 < 1e-4 < seen["bfloat16"]
