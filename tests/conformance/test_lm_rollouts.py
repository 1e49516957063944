"""From scored answers to returns: which value stands before which token, what is paid where, and in which order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.api import RewardRun
from surefoot.config import Config, PPOConfig, RolloutConfig
from surefoot.core import clipped_value_loss, value_loss
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PromptSet, prompt_set
from surefoot.lm.data import rows_from
from surefoot.lm.roles import LanguageActorCritic
from surefoot.ppo import ppo_loss
from surefoot.rewards.function import FunctionReward
from surefoot.rewards.model import load_reward_model
from surefoot.rollout.local import LocalEngine
from surefoot.stages import ppo_lm
from surefoot.stages.rollouts import Rollout, RunningDeviation, rollout
from surefoot.types import Completions, Prompts
from tiny_language import (
    context_of,
    make_backbone,
    make_completions,
    make_policy,
    make_prompts,
    make_scores,
    moved,
    plain_ppo,
    random_rows,
    single_tokens,
    their_logp,
)


def _rolled(
    policy: LanguageActorCritic,
    answers: Sequence[Sequence[int]],
    scores: Sequence[float],
    cfg: PPOConfig,
    *,
    finished: Sequence[bool] | None = None,
    running: RunningDeviation | None = None,
) -> Rollout:
    """A rollout of given answers to the same short prompt."""
    prompts = make_prompts([[5, 6, 7]] * len(answers), 0)
    completions = make_completions(answers, 0, finished)
    running = running or RunningDeviation()
    return rollout(policy, prompts, completions, make_scores(scores), cfg, kl_coef=cfg.kl_coef, running=running)


@pytest.mark.parametrize("kept", ["old", "reference"])
def test_item_16_distributions_that_a_rollout_keeps_stand_in_the_order_of_its_rows(backbone: Backbone, kept: str) -> None:
    """Rows of like length are evaluated together; what is kept of them is that of the row, not of the place it had there."""
    policy = moved(make_policy(backbone))
    settings = {"objective": "penalty"} if kept == "old" else {"kl_in": "loss", "kl_estimator": "exact"}
    cfg = PPOConfig(**settings, micro_batch_size=2)
    answers = [[11, 12, 13, 14], [21], [31, 32, 33], [41, 42]]
    batch = _rolled(policy, answers, [0.0] * 4, cfg).batch
    dist = batch.dist_old if kept == "old" else batch.dist_ref
    assert dist is not None
    for i in range(4):
        row = torch.tensor([i])
        seen = policy.evaluate(batch.states[row], batch.actions[row]).dist
        expected = seen if kept == "old" else policy.reference(batch.states[row], batch.actions[row])[1]
        assert torch.equal(dist[row].mask, batch.mask[row])
        assert policy.kl(dist[row], expected).abs().max() < 1e-6
        assert (policy.kl(dist[row], seen).max() > 1e-4) == (kept == "reference")


def test_item_23_the_value_before_token_t_reads_what_stood_before_it_and_pairs_with_its_log_prob(backbone: Backbone) -> None:
    policy = moved(make_policy(backbone))
    prompts, answer = [[9, 8, 7, 6], [5]], [[11, 12, 13], [21, 22, 23]]
    context = context_of(make_prompts(prompts, 0), make_completions(answer, 0))
    seen = policy.evaluate(context, torch.tensor(answer))
    merged = backbone.merged("policy").model  # transformers' own model, one prefix at a time
    weight, bias = policy.value_head.weight[0].detach(), policy.value_head.bias.detach()
    for i in range(2):
        for t in range(4):
            state = merged.get_decoder()(torch.tensor([prompts[i] + answer[i][:t]])).last_hidden_state[0, -1]
            value = (state @ weight + bias).item()
            if t < 3:
                assert seen.values[i, t].item() == pytest.approx(value, abs=1e-4)
            if t > 0:
                assert seen.next_values[i, t - 1].item() == pytest.approx(value, abs=1e-4)
        assert torch.allclose(seen.logp[i], their_logp(merged, prompts[i], answer[i]), atol=1e-4)
    assert seen.values.std() > 0.01


@pytest.mark.parametrize("bootstrap_cut", [False, True])
def test_item_24_behind_eos_is_nothing_and_a_cut_answer_follows_the_stated_rule(backbone: Backbone, bootstrap_cut: bool) -> None:
    policy = moved(make_policy(backbone))
    answers = [[11, 12, 2], [11, 12, 13]]  # one ended by EOS, one cut by length
    cfg = plain_ppo(kl_coef=0.0, bootstrap_cut=bootstrap_cut)
    batch = _rolled(policy, answers, [1.0, 1.0], cfg, finished=[True, False]).batch
    behind = policy.evaluate(batch.states, batch.actions).next_values[:, -1]
    assert behind.abs().min() > 0.01
    # gamma = lambda = 1: a return is what is still to come, the score, and behind a cut V of the cut state if that is asked for
    assert batch.returns[0].tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert batch.returns[1].tolist() == pytest.approx([1.0 + (behind[1].item() if bootstrap_cut else 0.0)] * 3, abs=1e-5)


def test_item_27_reward_scaling_divides_by_the_running_deviation_and_keeps_the_mean_where_it_was(backbone: Backbone) -> None:
    policy = make_policy(backbone)
    cfg = plain_ppo(kl_coef=0.0, reward_scale="running")
    running = RunningDeviation().seen(torch.tensor([2.0, 4.0])).seen(torch.tensor([6.0, 8.0]))
    assert (running.mean, running.deviation) == (5.0, 5.0**0.5)  # of 2, 4, 6, 8, in two parts
    seen = _rolled(policy, [[3], [4]], [2.0, 6.0], cfg, running=running)
    assert seen.batch.returns[:, 0].tolist() == pytest.approx([2 / 5**0.5, 6 / 5**0.5])
    assert seen.metrics["objective/scores"] == 4.0  # as given; what is paid is objective/rlhf_reward
    assert seen.metrics["objective/rlhf_reward"] == pytest.approx(4 / 5**0.5)  # divided, not shifted to 0


def test_item_27_scores_that_are_all_equal_are_left_as_they_are() -> None:
    assert RunningDeviation().deviation == RunningDeviation().seen(torch.tensor([3.0, 3.0])).deviation == 1.0
    assert RunningDeviation().seen(torch.zeros(0)) == RunningDeviation()


def _gradient(policy: LanguageActorCritic, seen: Rollout, cfg: PPOConfig, kl_coef: float) -> torch.Tensor:
    weights = [p for _, p in policy.named_policy_parameters()]
    for p in weights:
        p.grad = None
    evaluation = policy.evaluate(seen.batch.states, seen.batch.actions)
    loss, _ = ppo_loss(evaluation, seen.batch, cfg, kl=policy.kl, beta=0.0, kl_coef=kl_coef, count=int(seen.batch.mask.sum()))
    loss.backward()
    return torch.cat([p.grad.flatten() for p in weights if p.grad is not None])


@pytest.mark.parametrize("estimator", ["exact", "k1", "k2", "k3"])
def test_item_28_a_tether_in_the_reward_is_the_whole_return_and_adds_no_gradient(backbone: Backbone, estimator: Any) -> None:
    policy = moved(make_policy(backbone))
    torch.nn.init.zeros_(policy.value_head.weight), torch.nn.init.zeros_(policy.value_head.bias)
    answers = random_rows(backbone, 4, 2, 5)
    cfg = plain_ppo(kl_coef=1.0, kl_estimator=estimator)
    seen = _rolled(policy, answers, [0.0] * 4, cfg)
    assert (seen.sequence_kl.abs() > 0.001).all()
    assert torch.allclose(seen.batch.returns[:, 0], -seen.sequence_kl, atol=1e-5)
    assert torch.equal(_gradient(policy, seen, cfg, kl_coef=1.0), _gradient(policy, seen, cfg, kl_coef=0.0))
    merged = backbone.merged("policy").model
    for row, found in zip(answers, seen.sequence_kl, strict=True):  # and it is the KL between policy and SFT model
        gap = their_logp(merged, [5, 6, 7], row) - their_logp(backbone.merged(None).model, [5, 6, 7], row)
        by_hand = {"k1": gap, "k2": gap**2 / 2, "k3": torch.exp(-gap) - 1 + gap}
        if estimator in by_hand:
            assert float(found) == pytest.approx(float(by_hand[estimator].sum()), abs=1e-3)


@pytest.mark.parametrize("direction, estimator", [("policy_sft", "exact"), ("policy_sft", "k2"), ("sft_policy", "exact")])
def test_item_28_a_tether_in_the_loss_is_not_in_the_reward_too(backbone: Backbone, direction: Any, estimator: Any) -> None:
    policy = moved(make_policy(backbone))
    torch.nn.init.zeros_(policy.value_head.weight), torch.nn.init.zeros_(policy.value_head.bias)
    cfg = plain_ppo(kl_coef=1.0, kl_in="loss", kl_direction=direction, kl_estimator=estimator)
    seen = _rolled(policy, random_rows(backbone, 4, 2, 5), [0.0] * 4, cfg)
    assert seen.batch.returns.abs().max() == 0
    assert _gradient(policy, seen, cfg, kl_coef=0.0).abs().max() == 0
    assert _gradient(policy, seen, cfg, kl_coef=1.0).abs().max() > 1e-4


@pytest.mark.parametrize("set_up", ["eos", "stop token", "several eos"])
def test_item_32_the_missing_eos_penalty_knows_every_way_to_stop(model: Any, tokenizer: Any, set_up: str) -> None:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 3  # EOS is likely
        logits = model(tokenizer("the film was", return_tensors="pt")["input_ids"]).logits[0, -1]
    stop = next(i for i in logits.argsort(descending=True).tolist() if i in single_tokens(tokenizer))  # and so is another token
    if set_up == "several eos":
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    backbone = make_backbone(model, tokenizer)
    cfg = RolloutConfig(response_length=6, stop_token=(tokenizer.decode([stop]),) if set_up == "stop token" else ())
    prompts = make_prompts([backbone.codec.prompt_ids("the film was")] * 300, 0)
    answers = LocalEngine(backbone, cfg, adapter=None).generate(prompts, torch.Generator().manual_seed(0))
    stops = {tokenizer.eos_token_id} if set_up == "eos" else {tokenizer.eos_token_id, stop}
    rows = [ids[keep].tolist() for ids, keep in zip(answers.ids, answers.mask, strict=True)]
    assert answers.finished.tolist() == [row[-1] in stops for row in rows]
    assert {row[-1] for row in rows if row[-1] in stops} == stops  # every way was taken
    assert not any(stops & set(row[:-1]) for row in rows)  # nothing is written behind a stop
    assert any(stop in row[:-1] for row in rows) is (set_up == "eos")
    paid = rollout(
        make_policy(backbone), prompts, answers, make_scores([5.0] * 300), plain_ppo(missing_eos_penalty=2.0, kl_coef=0.0),
        kl_coef=0.0, running=RunningDeviation(),
    )  # fmt: skip
    expected = [5.0 if row[-1] in stops else 3.0 for row in rows]
    assert paid.batch.returns[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert set(expected) == {3.0, 5.0}
    assert paid.metrics["response_length/cut"] == pytest.approx(expected.count(3.0) / 300)


def test_item_33_penalties_come_first_then_the_scale_then_the_clip_then_the_tether(backbone: Backbone) -> None:
    policy = moved(make_policy(backbone))
    torch.nn.init.zeros_(policy.value_head.weight), torch.nn.init.zeros_(policy.value_head.bias)
    running = RunningDeviation(count=2, mean=0.0, squares=8.0)  # deviation 2
    settings: dict[str, Any] = {"missing_eos_penalty": 2.0, "length_penalty": 0.5, "reward_scale": "running", "reward_clip": 3.0}
    cfg = plain_ppo(kl_coef=20.0, **settings)
    seen = _rolled(policy, [[11, 12], [13, 14]], [10.0, 4.0], cfg, finished=[False, False], running=running)
    # (10 - 2 - 2 * 0.5) / 2 = 3.5, clipped to 3; (4 - 3) / 2 = 0.5; the tether is charged behind the clip
    tether = 20.0 * seen.sequence_kl
    assert tether.abs().max() > 3
    assert torch.allclose(seen.batch.returns[:, 0], torch.tensor([3.0, 0.5]) - tether, atol=1e-4)


def test_item_33_the_statistics_that_normalise_a_reward_model_are_saved_with_it(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    pairs = [
        {"prompt": f"the {a} was", "chosen": " good .", "rejected": f" {b} ."} for a in ("film", "plot") for b in ("dull", "bad")
    ]
    settings = {"reward.num_epochs": 2, "data.validation_share": 0, "reward.learning_rate": 0.01}
    backbone = make_backbone(model, tokenizer)
    run = RewardRun(backbone, train=pairs, settings=settings).fit()
    ids = [backbone.codec.prompt_ids(str(p["prompt"])) for p in pairs for _ in range(2)]
    words = [backbone.codec.completion_ids(str(p[side])) for p in pairs for side in ("chosen", "rejected")]
    prompts, answers = make_prompts(ids, 0), make_completions(words, 0)
    scores = run.score(prompts, answers).value
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)  # over the answers it was trained on
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    run.save(tmp_path)
    for may_share in (False, True):
        loaded = load_reward_model(tmp_path, backbone, 3, may_share=may_share)
        assert torch.allclose(loaded.score(prompts, answers).value, scores, atol=1e-4)
    raw = load_reward_model(tmp_path, backbone, 3, may_share=False)
    plain = replace(raw.facts, mean=0.0, deviation=1.0)
    raw.facts = plain
    assert not torch.allclose(raw.score(prompts, answers).value, scores, atol=0.1)


def test_item_33_the_statistics_are_measured_once_for_the_weights_as_they_are(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.stages import reward_ensemble

    measured: list[tuple[float, float]] = []
    plain = reward_ensemble.normalisation
    monkeypatch.setattr(
        reward_ensemble, "normalisation", lambda task, size, heed: measured.append(plain(task, size)) or measured[-1]
    )
    pairs = [{"prompt": "the film was", "chosen": " good .", "rejected": " bad ."}]  # two answers, one of them alone in a batch
    settings = {"reward.num_epochs": 3, "data.validation_share": 0, "reward.learning_rate": 0.1}
    run = RewardRun(make_backbone(model, tokenizer), train=pairs, settings=settings)
    prompts, answers = make_prompts([[5, 6]] * 2, 0), make_completions([[7, 2], [8, 2]], 0)
    before = run.score(prompts, answers).value
    for _ in range(3):
        next(iter(run))
        assert torch.equal(run.score(prompts, answers).value, run.score(prompts, answers).value)
    assert len(measured) == len(set(measured)) == 4
    assert before.isfinite().all() and not torch.equal(run.score(prompts, answers).value, before)


def test_item_33_a_head_is_never_put_on_another_model_that_was_given_as_an_object(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    from surefoot.rewards.model import SeparateRewardModel

    pairs = [{"prompt": "the film was", "chosen": " good .", "rejected": " bad ."}] * 2
    RewardRun((copy.deepcopy(model), tokenizer), train=pairs, settings={"data.validation_share": 0}).save(tmp_path)
    other = make_backbone(model, tokenizer)
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(-1)
    assert isinstance(load_reward_model(tmp_path, other, 2, may_share=True), SeparateRewardModel)


@dataclass(frozen=True)
class _PaddedPrompts(PromptSet):
    """The same prompts, with `extra` columns of padding that hold another id."""

    extra: int = 0

    def take(self, index: Sequence[int], pad_id: int) -> Prompts:
        plain = PromptSet.take(self, index, pad_id)
        ids = torch.nn.functional.pad(plain.ids, (self.extra, 0), value=17)
        return replace(plain, ids=ids, mask=torch.nn.functional.pad(plain.mask, (self.extra, 0)))


class _PaddingEngine(LocalEngine):
    """The same answers, with `extra` columns of padding that hold another id."""

    extra = 0

    def generate(self, prompts: Prompts, generator: torch.Generator) -> Completions:
        plain = super().generate(prompts, generator)
        pad = {
            f.name: torch.nn.functional.pad(getattr(plain, f.name), (0, self.extra), value=1)
            for f in fields(plain)[:3]
            if f.name != "mask"
        }
        return replace(plain, **pad, mask=torch.nn.functional.pad(plain.mask, (0, self.extra)))


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_in": "reward", "whiten_rewards": True, "cliprange_value": 0.1, "ent_coef": 0.01},
        {
            "kl_in": "loss",
            "kl_estimator": "exact",
            "objective": "penalty",
            "loss_aggregation": "sequence_mean",
            "bootstrap_cut": True,
        },
    ],
)
def test_item_56_every_metric_is_invariant_to_padding(model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    ppo = PPOConfig(
        rollout_batch_size=8, micro_batch_size=3, num_mini_batches=2, num_ppo_epochs=2, total_episodes=16, learning_rate=0.01,
        length_penalty=0.1, missing_eos_penalty=0.5, reward_scale="running", **settings,
    )  # fmt: skip
    stops = tuple(single_tokens(tokenizer).values())[::6]
    cfg = Config(ppo=ppo, rollout=RolloutConfig(response_length=6, stop_token=stops))

    def metrics(extra: int) -> list[dict[str, float]]:
        backbone = make_backbone(model, tokenizer)
        policy = make_policy(backbone, entropy_gradient=ppo.ent_coef > 0)
        engine = _PaddingEngine(backbone, cfg.rollout, adapter="policy")
        engine.extra = extra
        plain = prompt_set(
            rows_from(["the film was", "the", "the plot seemed rather"], "prompts").rows, backbone.codec, 6, "drop"
        )
        prompts = _PaddedPrompts(plain.ids, plain.rows, plain.num_long, extra)
        reward = FunctionReward(lambda prompts, completions: [float(len(c) % 7) for c in completions])
        parts = ppo_lm.PPOParts(policy, engine, reward, prompts)
        return [dict(step.metrics) for step in ppo_lm.steps(parts, cfg)]

    plain, padded = metrics(0), metrics(5)
    assert len(plain) == 2 and plain[1]["objective/kl"] != 0
    assert all(
        0 < step["response_length/cut"] < 1 and step["response_length/mean"] < step["response_length/max"] for step in plain
    )
    for one, other in zip(plain, padded, strict=True):
        assert one.keys() == other.keys() and len(one) > 30
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=2e-4, abs=2e-6), key


def test_item_37_a_value_inside_its_range_is_not_clipped_by_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    values, values_old, returns = 0.05 * torch.randn(3, 5000, generator=generator)  # all within 0.5 of each other
    assert torch.equal(clipped_value_loss(values, values_old, returns, cliprange=0.5), value_loss(values, returns))
