"""old_logprobs = "sampled": a rollout is evaluated from the sampler's states, and that is what a forward pass says."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from surefoot.api import PPORun
from surefoot.config import ModelConfig, PPOConfig, RolloutConfig
from surefoot.doctor_rungs import echoing
from surefoot.errors import ConfigError
from surefoot.lm.roles import LanguageActorCritic
from surefoot.rollout.local import LocalEngine
from surefoot.stages.rollouts import Rollout, RunningDeviation, rollout
from tiny_language import CRITICS, make_backbone, make_policy, make_prompts, make_scores, moved, plain_ppo, random_rows

SAMPLED = {"old_logprobs": "sampled"}


def rollouts(policy: LanguageActorCritic, *, packs: bool = True, **ppo: Any) -> tuple[Rollout, Rollout]:
    """The same answers evaluated from the sampler's states and by a forward pass."""
    cfg = RolloutConfig(response_length=7, batch_size=3)  # rows wait, join and leave
    engine = LocalEngine(policy.backbone, cfg, adapter=policy.policy_adapter, packs=packs, keeps_states=True)
    engine.stop_ids = tuple(range(3, policy.backbone.model.config.vocab_size, 5))  # answers of several lengths
    prompts = make_prompts(random_rows(policy.backbone, 8, 2, 9), policy.backbone.codec.pad_id)
    answers = engine.generate(prompts, torch.Generator().manual_seed(0))
    assert len(set(answers.mask.sum(1).tolist())) > 1
    given = (policy, prompts, answers, make_scores([float(i) for i in range(8)]))
    seen = [rollout(*given, plain_ppo(old_logprobs=how, **ppo), kl_coef=0.1, running=RunningDeviation()) for how in HOW]
    return seen[0], seen[1]


HOW = ("sampled", "recomputed")


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("layer", [None, 1])
def test_both_ways_say_the_same(model: Any, tokenizer: Any, critic: Any, layer: int | None, packs: bool) -> None:
    policy = moved(make_policy(make_backbone(model, tokenizer), critic=critic, critic_layer=layer))
    sampled, recomputed = rollouts(policy, packs=packs)
    mask = recomputed.batch.mask
    for name in ("logp_old", "values_old", "advantages", "returns"):
        ours, theirs = getattr(sampled.batch, name)[mask], getattr(recomputed.batch, name)[mask]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert sampled.metrics["objective/entropy"] == pytest.approx(recomputed.metrics["objective/entropy"], rel=1e-4)
    assert sampled.metrics["val/sampler_gap"] < 1e-4
    assert sampled.batch.logp_rounding is not None and recomputed.batch.logp_rounding is None


def test_full_fine_tuning_and_the_exact_penalty_too(model: Any, tokenizer: Any) -> None:
    cfg = ModelConfig(name="tiny", tuning="full")
    policy = moved(make_policy(make_backbone(model, tokenizer, cfg), cfg=cfg, critic="model"))
    sampled, recomputed = rollouts(policy, objective="penalty", kl_estimator="exact")
    assert torch.allclose(sampled.kl, recomputed.kl, atol=1e-4)
    dist, other = sampled.batch.dist_old, recomputed.batch.dist_old
    assert policy.kl(dist, other).abs().max() < 1e-5


def test_no_forward_pass_of_the_policy_is_made(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = moved(make_policy(make_backbone(model, tokenizer)))
    adapters: list[str | None] = []
    hidden = type(policy.backbone).hidden

    def noted(self: Any, rows: Any, adapter: str | None, layer: int | None = None, **given: Any) -> Any:
        adapters.append(adapter)
        return hidden(self, rows, adapter, layer, **given)

    monkeypatch.setattr(type(policy.backbone), "hidden", noted)
    prompts = make_prompts(random_rows(policy.backbone, 4, 2, 9), policy.backbone.codec.pad_id)
    engine = LocalEngine(policy.backbone, RolloutConfig(response_length=5), adapter="policy", keeps_states=True)
    answers = engine.generate(prompts, torch.Generator().manual_seed(0))
    scores, running = make_scores([0.0] * 4), RunningDeviation()
    for how, expected in zip(HOW, ([None], ["policy", None]), strict=True):
        adapters.clear()
        rollout(policy, prompts, answers, scores, plain_ppo(old_logprobs=how), kl_coef=0.1, running=running)
        assert adapters == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_learns_as_with_a_forward_pass(dtype: str) -> None:
    needed = {}
    for how in HOW:
        settings = {"model.dtype": dtype, "ppo.old_logprobs": how}
        needed[how] = next(update for update, (share, _) in enumerate(echoing(settings), start=1) if share > 0.9)
    assert needed["sampled"] <= 1.5 * needed["recomputed"]


def test_a_sampler_of_other_weights_is_found(model: Any, tokenizer: Any) -> None:
    """The check of the first ratio still holds: here the sampler believes in another temperature."""
    sizes = {"rollout.response_length": 4, "ppo.rollout_batch_size": 8, "ppo.total_episodes": 8}
    run = PPORun(
        (copy.deepcopy(model), tokenizer),
        prompts=["the film was"] * 4,
        reward=lambda prompts, completions: [0.0] * len(prompts),
        settings=sizes | {"ppo.old_logprobs": "sampled"},
    )
    engine = run.parts.engine
    generate = engine.generate

    def scaled(prompts: Any, generator: torch.Generator) -> Any:
        answers = generate(prompts, generator)
        return replace(answers, states=answers.states * 1.5)

    engine.generate = scaled
    with pytest.raises(Exception, match="Before the first step the policy differs from the rollout's"):
        list(run)


def test_what_cannot_be_is_refused_in_words(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValidationError, match="the sampler makes no state after an answer's last token"):
        PPOConfig(old_logprobs="sampled", bootstrap_cut=True)
    policy = make_policy(make_backbone(model, tokenizer))
    prompts = make_prompts(random_rows(policy.backbone, 4, 2, 9), policy.backbone.codec.pad_id)
    answers = LocalEngine(policy.backbone, RolloutConfig(response_length=3), adapter="policy").generate(
        prompts, torch.Generator()
    )
    with pytest.raises(ConfigError, match="this sampler keeps no states"):
        rollout(policy, prompts, answers, make_scores([0.0] * 4), PPOConfig(**SAMPLED), kl_coef=0.1, running=RunningDeviation())
