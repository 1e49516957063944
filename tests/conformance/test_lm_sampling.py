"""Sampling and log-probs: what is sampled, what is trained and what is tethered to are the same distribution, row for row."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from surefoot.api import PPORun, SFTRun
from surefoot.build import build_ppo
from surefoot.config import Config, ModelConfig, RolloutConfig
from surefoot.lm.backbone import Backbone
from surefoot.lm.logits import token_statistics
from surefoot.rollout.local import LocalEngine
from surefoot.rollout.sampling import restrict
from surefoot.stages.rollouts import RunningDeviation, rollout
from surefoot.types import Scores
from tiny_language import (
    CRITICS,
    context_of,
    make_backbone,
    make_completions,
    make_policy,
    make_prompts,
    moved,
    plain_ppo,
    random_rows,
    sharpened,
    their_logp,
)

PROMPTS = ["the film was", "the plot seemed rather dull and", "the", "the cast looked fine and very"]
SMALL = {"rollout.response_length": 6, "ppo.rollout_batch_size": 8, "ppo.micro_batch_size": 3, "ppo.num_ppo_epochs": 1}


def run_of(model: Any, tokenizer: Any, reward: Any = None, **settings: Any) -> PPORun:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    reward = reward or (lambda prompts, completions: [float(len(c)) for c in completions])
    return PPORun((copy.deepcopy(model), tokenizer), prompts=PROMPTS, reward=reward, settings=SMALL | named)


def test_item_11_temperature_divides_old_new_and_reference_logits(model: Any, tokenizer: Any) -> None:
    run = run_of(model, tokenizer, rollout__temperature=0.7, ppo__kl_estimator="exact", ppo__total_episodes=8)
    step = next(iter(run))
    assert step.metrics["val/first_log_ratio"] < 1e-4
    assert abs(step.metrics["objective/kl"]) < 1e-4
    assert step.metrics["val/sampler_gap"] < 1e-5
    seen = step.rollout
    for i in range(8):
        keep, prompt = seen.completions.mask[i], seen.prompts.ids[i][seen.prompts.mask[i]]
        theirs = their_logp(model, prompt.tolist(), seen.completions.ids[i][keep].tolist(), temperature=0.7)
        assert torch.allclose(seen.batch.logp_old[i][keep], theirs, atol=1e-5)


def test_item_12_cutting_the_distribution_is_off_by_default_warned_of_and_seen_in_a_metric(model: Any, tokenizer: Any) -> None:
    assert (RolloutConfig().top_p, RolloutConfig().top_k) == (1.0, 0)
    said: list[str] = []
    given = {"model": (copy.deepcopy(model), tokenizer), "prompts": PROMPTS, "reward": lambda prompts, completions: []}
    build_ppo(Config(), said.append, **given)
    assert not any("biased" in line for line in said)
    given["model"] = (copy.deepcopy(model), tokenizer)
    build_ppo(Config(rollout=RolloutConfig(top_p=0.5)), said.append, **given)
    assert any("the ratio is biased" in line for line in said)
    gaps = [next(iter(run_of(model, tokenizer, rollout__top_p=p))).metrics["val/sampler_gap"] for p in (1.0, 0.5)]
    assert gaps[0] < 1e-5 and gaps[1] > 0.1


def test_item_12_top_p_keeps_the_smallest_set_of_its_mass_and_top_k_the_k_most_probable() -> None:
    logp = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.allclose(restrict(logp, 0, 0.7).exp(), torch.tensor([[0.625, 0.375, 0, 0]]))  # 0.5 is not enough, 0.8 is
    assert torch.allclose(restrict(logp, 3, 1.0).exp(), torch.tensor([[0.5, 0.3, 0.15, 0.0]]) / 0.95)
    assert restrict(logp, 0, 1.0) is logp


@pytest.mark.parametrize("critic", CRITICS)
def test_item_13_the_first_minibatch_of_a_real_update_has_ratio_1(model: Any, tokenizer: Any, critic: str) -> None:
    run = run_of(model, tokenizer, ppo__critic=critic, ppo__num_mini_batches=2, ppo__total_episodes=16, ppo__learning_rate=0.05)
    first, second = run
    for step in (first, second):  # the second comes after the policy has moved
        assert step.metrics["val/first_log_ratio"] < 1e-4
    assert second.metrics["objective/kl"] != 0
    one = next(iter(run_of(model, tokenizer, ppo__critic=critic)))
    assert one.metrics["policy/clipfrac_avg"] == one.metrics["policy/outside_fraction"] == 0


def test_item_13_the_ratio_is_exactly_1_where_the_same_rows_are_evaluated_again_with_gradient(backbone: Backbone) -> None:
    policy = moved(make_policy(backbone))
    prompts = make_prompts(random_rows(backbone, 4, 1, 9, seed=1), backbone.codec.pad_id)
    answers = make_completions(random_rows(backbone, 4, 1, 9, seed=2), backbone.codec.pad_id)
    with torch.no_grad():
        old = policy.evaluate(context_of(prompts, answers), answers.ids).logp
    now = policy.evaluate(context_of(prompts, answers), answers.ids).logp
    assert now.requires_grad and torch.equal(old, now)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_item_13_in_half_precision_the_mean_log_ratio_stays_below_its_bound(model: Any, tokenizer: Any, tuning: str) -> None:
    half = copy.deepcopy(model).bfloat16()
    run = PPORun(
        (half, tokenizer),
        prompts=PROMPTS,
        reward=lambda prompts, completions: [float(len(c)) for c in completions],
        settings=SMALL
        | {"model.dtype": "bfloat16", "model.tuning": tuning, "ppo.total_episodes": 16}
        # rows stand in other micro-batches than in the rollout, and bfloat16 then rounds in other places
        | {"ppo.num_mini_batches": 2, "ppo.micro_batch_size": 3},
    )
    for step in run:  # an update whose mean is above 0.02 raises
        assert step.metrics["val/first_log_ratio"] < 0.02
        assert step.metrics["val/sampler_gap"] < 0.02


def _with_dropout(model: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = model.get_input_embeddings().weight.shape[0]
    config = GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=2, bos_token_id=1, pad_token_id=0
    )
    assert config.resid_pdrop == 0.1  # the default of this architecture
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sharpened(GPT2LMHeadModel(config))


def test_item_14_dropout_is_off_in_ppo_whatever_mode_is_asked_for(model: Any, tokenizer: Any) -> None:
    policy = make_policy(make_backbone(_with_dropout(model).train(), tokenizer)).train()
    rows = random_rows(policy.backbone, 3, 2, 6)
    answers = make_completions(rows, 0)
    context = context_of(make_prompts(rows, 0), answers)
    first, second = policy.evaluate(context, answers.ids), policy.evaluate(context, answers.ids)
    assert torch.equal(first.logp, second.logp) and torch.equal(first.values, second.values)
    assert not any(module.training for module in policy.modules())


def test_item_14_sft_learns_with_dropout_measures_without_and_draws_it_from_the_seed(model: Any, tokenizer: Any) -> None:
    rows = [{"prompt": text, "completion": " good ."} for text in PROMPTS]
    settings = {
        "sft.num_epochs": 2,
        "sft.batch_size": 4,
        "data.validation_share": 0,
        "model.tuning": "full",
        "sft.learning_rate": 1e-9,
    }

    def figures(noise: int) -> list[list[float]]:
        torch.manual_seed(noise)
        others = [{**row, "prompt": row["prompt"] + "!"} for row in rows]
        run = SFTRun((_with_dropout(model), tokenizer), train=rows, validation=others, settings=settings)
        seen = [step.metrics for step in run]
        assert not run.parts.backbone.model.training
        return [[row[key] for row in seen if key in row] for key in ("loss", "validation/loss")]

    (trained, held_out), again = figures(1), figures(2)
    assert abs(trained[0] - trained[1]) > 1e-4  # the same rows, twice: dropout differs
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-6)
    assert again == [trained, held_out]


def test_item_15_the_gap_between_sampler_and_trainer_is_small_and_does_not_drift(model: Any, tokenizer: Any) -> None:
    settings = {
        "ppo__learning_rate": 1e-30,
        "ppo__rollout_batch_size": 2,
        "ppo__total_episodes": 100,
        "rollout__response_length": 3,
    }
    gaps = torch.tensor([step.metrics["val/sampler_gap"] for step in run_of(model, tokenizer, **settings)])
    assert len(gaps) == 50 and gaps.max() < 1e-5
    steps = torch.arange(50.0) - 24.5
    assert abs(float((steps * gaps).sum() / (steps**2).sum())) < 1e-8  # nats a step


def test_item_16_prompt_answer_and_reward_stay_together_through_sorting_and_bucketing(model: Any, tokenizer: Any) -> None:
    rows = [{"prompt": "the film " * (1 + 3 * (i % 4)) + f"{i}", "number": float(i)} for i in range(12)]
    calls: list[tuple[str, str, float]] = []

    def reward(prompts: list[str], completions: list[str], number: list[float]) -> list[float]:
        calls.extend(zip(prompts, completions, number, strict=True))
        return number

    settings = SMALL | {
        "rollout.batch_size": 3,
        "ppo.rollout_batch_size": 24,
        "ppo.num_samples_per_prompt": 2,
        "ppo.kl_coef": 0.0,
    }
    settings |= {"ppo.lam": 1.0, "ppo.total_episodes": 24}
    step = next(iter(PPORun((copy.deepcopy(model), tokenizer), prompts=rows, reward=reward, settings=settings)))
    seen = step.rollout
    assert sorted({number for *_, number in calls}) == [float(i) for i in range(12)]
    for i, (prompt, completion, number) in enumerate(calls):
        assert prompt.split()[-1] == str(int(number))
        assert (seen.prompts.text[i], seen.completions.text[i], float(seen.scores.value[i])) == (prompt, completion, number)
        keep, ids = seen.completions.mask[i], seen.prompts.ids[i][seen.prompts.mask[i]].tolist()
        answer = seen.completions.ids[i][keep].tolist()
        assert ids == tokenizer(prompt)["input_ids"] and tokenizer.decode(answer, skip_special_tokens=True) == completion
        assert seen.batch.returns[i][keep].tolist() == pytest.approx([number] * len(answer))  # V = 0, no tether, lambda 1
        assert torch.allclose(seen.completions.logp_sampler[i][keep], their_logp(model, ids, answer), atol=1e-5)
    pairs = [(a, b) for (a, *_), (b, *_) in zip(calls[::2], calls[1::2], strict=True)]
    assert all(a == b for a, b in pairs)  # two samples of each prompt, side by side


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_item_17_first_tokens_follow_the_models_distribution(backbone: Backbone, temperature: float) -> None:
    count = 3000
    prompt = backbone.codec.prompt_ids("the film was")
    engine = LocalEngine(backbone, RolloutConfig(response_length=1, temperature=temperature, batch_size=count), adapter=None)
    drawn = engine.generate(make_prompts([prompt] * count, 0), torch.Generator().manual_seed(0)).ids[:, 0]
    logits = backbone.model(torch.tensor([prompt])).logits[0, -1].double() / temperature
    expected = torch.softmax(logits, 0) * count
    common = expected >= 5  # the rest is one cell
    cells = torch.cat([torch.bincount(drawn, minlength=len(expected))[common], (~common[drawn]).sum()[None]]).double()
    hoped = torch.cat([expected[common], expected[~common].sum()[None]])
    statistic = ((cells - hoped) ** 2 / hoped).sum()
    p_value = torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2).double(), statistic / 2)
    assert len(cells) > 20 and p_value > 1e-3


def _digest(weights: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_item_18_the_reference_is_frozen_and_adapter_off_is_the_base(model: Any, tokenizer: Any, tuning: str) -> None:
    run = run_of(model, tokenizer, model__tuning=tuning, ppo__learning_rate=0.01, ppo__total_episodes=80)
    policy = run.parts.policy
    answers = make_completions(random_rows(policy.backbone, 3, 2, 6), 0)
    context = context_of(make_prompts(random_rows(policy.backbone, 3, 2, 6, seed=5), 0), answers)
    logp, dist = policy.reference(context, answers.ids)
    assert len(run.learn().parts.prompts) == 4
    logp_after, dist_after = policy.reference(context, answers.ids)
    assert torch.equal(logp, logp_after) and torch.equal(dist.states, dist_after.states)
    for i, row in enumerate(answers.mask.sum(1)):  # and it is the model that was given
        prompt = context.prompt_ids[i][context.prompt_mask[i]].tolist()
        assert torch.allclose(logp[i, :row], their_logp(model, prompt, answers.ids[i, :row].tolist()), atol=1e-5)
    assert (policy.evaluate(context, answers.ids).logp - logp).abs().max() > 0.1  # the policy itself went away
    if tuning == "lora":
        base = {k.replace(".base_layer", ""): v for k, v in policy.model.state_dict().items() if "lora_" not in k}
        assert _digest(base) == _digest(dict(model.state_dict()))


def test_item_19_log_softmax_is_in_float32_whatever_the_weights_are(model: Any, tokenizer: Any) -> None:
    backbone = make_backbone(copy.deepcopy(model).bfloat16(), tokenizer, ModelConfig(name="tiny", dtype="bfloat16"))
    states = backbone.hidden(torch.tensor([backbone.codec.prompt_ids("the film was")]), None)[0, -1:]
    size = backbone.head().weight.shape[0]
    assert states.dtype == backbone.head().weight.dtype == torch.bfloat16
    logp, entropy = token_statistics(states.expand(size, -1), torch.arange(size), backbone.head())
    assert logp.dtype == entropy.dtype == torch.float32
    assert float(logp.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)  # in bf16 the sum is off by 1e-2
    assert float(entropy[0]) == pytest.approx(-float((logp.double().exp() * logp.double()).sum()), abs=1e-4)


def test_item_21_what_stands_in_masked_slots_of_a_rollout_changes_nothing(backbone: Backbone) -> None:
    policy, pad = moved(make_policy(backbone, critic="shared")), backbone.codec.pad_id
    prompts = make_prompts(random_rows(backbone, 5, 1, 7, seed=1), pad, extra=2)
    answers = make_completions(random_rows(backbone, 5, 1, 8, seed=2), pad, [True, False, True, False, True], extra=2)
    scores = Scores(torch.tensor([1.0, -2.0, 0.5, 3.0, float("nan")]), {}, torch.tensor([True, True, True, True, False]))
    poisoned = (
        replace(prompts, ids=prompts.ids.masked_fill(~prompts.mask, 17)),
        replace(answers, ids=answers.ids.masked_fill(~answers.mask, 23), logp_sampler=torch.where(answers.mask, 0.0, torch.nan)),
        replace(scores, value=scores.value.masked_fill(~scores.valid, torch.inf)),
    )
    cfg = plain_ppo(kl_coef=0.1, reward_clip=2.0, whiten_rewards=True, bootstrap_cut=True, lam=0.9)
    clean, dirty = (
        rollout(policy, *given, cfg, kl_coef=0.1, running=RunningDeviation()) for given in ((prompts, answers, scores), poisoned)
    )
    mask = clean.batch.mask
    assert torch.equal(mask, dirty.batch.mask) and not mask[4].any()
    for name in ("logp_old", "values_old", "advantages", "returns"):
        assert torch.equal(getattr(clean.batch, name)[mask], getattr(dirty.batch, name)[mask])
        assert getattr(dirty.batch, name)[mask].isfinite().all()
    assert clean.metrics == dirty.metrics
