"""Training of the language side: which loss moves which weight, in which precision, and that it learns what it is paid for."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.api import PPORun, RewardRun
from surefoot.config import Config, ModelConfig
from surefoot.core import kl_categorical
from surefoot.errors import ModelError
from surefoot.lm import logits
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PairRow
from surefoot.lm.logits import TokenDist, exact_kl, token_statistics
from surefoot.lm.roles import LanguageActorCritic, RewardScorer
from surefoot.lm.tokens import joined_rows, states_before
from surefoot.rewards.model import RewardFacts, SharedRewardModel, save_reward_model
from surefoot.stages.reward import RankingTask, held_out_figures
from tiny_language import (
    CRITICS,
    context_of,
    make_backbone,
    make_completions,
    make_policy,
    make_prompts,
    moved,
    random_rows,
    sharpened,
)

PROMPTS = ["the film was", "the plot seemed rather dull and", "the", "the cast looked fine and very"]


def _run(model: Any, tokenizer: Any, reward: Any, **settings: Any) -> PPORun:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return PPORun((copy.deepcopy(model), tokenizer), prompts=PROMPTS, reward=reward, settings=named)


def _weights(named: list[tuple[str, torch.nn.Parameter]]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in named}


def _moved(before: dict[str, Tensor], now: dict[str, Tensor]) -> set[str]:
    assert before.keys() == now.keys()
    return {name for name in before if not torch.equal(before[name], now[name])}


def _gradients(policy: LanguageActorCritic, of: str) -> tuple[float, float]:
    """The largest gradient of the policy's and of the critic's weights, of the sum of `of` of an evaluation."""
    rows = random_rows(policy.backbone, 3, 2, 6)
    answers = make_completions(rows, 0)
    seen = policy.evaluate(context_of(make_prompts(rows, 0), answers), answers.ids)
    getattr(seen, of)[answers.mask].sum().backward()
    sides = (policy.named_policy_parameters(), policy.named_critic_parameters())
    largest = [max((float(p.grad.abs().max()) for _, p in side if p.grad is not None), default=0.0) for side in sides]
    return largest[0], largest[1]


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("critic", CRITICS)
def test_item_38_the_value_loss_moves_the_policy_of_a_shared_trunk_and_of_no_other(
    model: Any, tokenizer: Any, tuning: Any, critic: Any, layer: int | None
) -> None:
    cfg = ModelConfig(name="tiny", tuning=tuning)
    if (tuning, critic) == ("full", "adapter"):
        with pytest.raises(ValueError, match="would move the policy"):
            Config(model=cfg, ppo={"critic": "adapter"})
        return

    def gradients(of: str) -> tuple[float, float]:
        backbone = make_backbone(model, tokenizer, cfg)
        return _gradients(moved(make_policy(backbone, cfg=cfg, critic=critic, critic_layer=layer)), of)

    policy, critics = gradients("values")
    assert (policy > 0) is (critic == "shared")
    assert critics > 0
    policy, critics = gradients("logp")
    assert policy > 0 and critics == 0  # nor does the policy's loss move the critic


@pytest.mark.parametrize("critic", CRITICS)
def test_item_38_the_value_head_reads_the_layer_that_it_is_told(backbone: Backbone, critic: Any) -> None:
    """Of 2 blocks: the states after the first, final-normed, of the critic's own adapter or copy; the policy's log-probs stay."""
    answers = make_completions(random_rows(backbone, 3, 2, 6), 0)
    context = context_of(make_prompts([[3], [4], [5]], 0), answers)
    first = moved(make_policy(backbone, critic=critic, critic_layer=1))
    rows, lengths = joined_rows(context, answers.ids, backbone.codec.pad_id)
    source = first._critic_backbone or first.backbone
    adapter = {"adapter": "critic", "model": None}.get(critic, "policy")
    with torch.no_grad():
        seen = first.evaluate(context, answers.ids)
        states = [source.hidden(rows, adapter, layer) for layer in (1, 2)]
        early, late = (first.value_head(states_before(s, lengths, answers.ids.shape[1]))[..., 0] for s in states)
    assert torch.allclose(seen.values[answers.mask], early[:, :-1][answers.mask], atol=1e-6)
    assert not torch.allclose(seen.values[answers.mask], late[:, :-1][answers.mask], atol=1e-3)
    with pytest.raises(ModelError, match=r"ppo\.critic_layer = 3 does not exist\. The model has layers 1 to 2"):
        make_policy(backbone, critic=critic, critic_layer=3)


@pytest.mark.parametrize("critic", CRITICS)
def test_item_39_the_value_head_starts_at_0(backbone: Backbone, critic: Any) -> None:
    policy = make_policy(backbone, critic=critic)
    answers = make_completions(random_rows(backbone, 3, 2, 6), 0)
    seen = policy.evaluate(context_of(make_prompts([[3], [4], [5]], 0), answers), answers.ids)
    assert seen.values.abs().max() == seen.next_values.abs().max() == 0


def test_item_39_the_reward_head_starts_at_a_deviation_of_1_over_the_root_of_d_plus_1(backbone: Backbone) -> None:
    drawn = torch.cat([RewardScorer(backbone, layer=None, adapter=None, seed=seed).weight[0] for seed in range(200)])
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(backbone.width + 1), rel=0.03)  # 6400 numbers: within 1 % or so
    assert abs(drawn.mean().item()) < 0.01


@pytest.mark.parametrize("critic", CRITICS)
def test_item_40_critic_warm_up_leaves_the_policy_bit_identical(model: Any, tokenizer: Any, critic: str) -> None:
    run = _run(
        model, tokenizer, lambda prompts, completions: [float(len(c)) for c in completions],
        rollout__response_length=4, ppo__rollout_batch_size=8, ppo__total_episodes=24, ppo__critic_warmup_steps=2,
        ppo__critic=critic, ppo__learning_rate=0.01, ppo__weight_decay=0.1,
    )  # fmt: skip
    policy = run.parts.policy
    before = _weights(policy.named_policy_parameters()), _weights(policy.named_critic_parameters())
    for step in run:
        changed = _moved(before[0], _weights(policy.named_policy_parameters()))
        assert bool(changed) is (step.update == 3)
        assert "value_head.weight" in _moved(before[1], _weights(policy.named_critic_parameters()))


def test_item_45_a_step_of_1e_6_moves_weights_that_compute_in_bf16(model: Any, tokenizer: Any) -> None:
    half = copy.deepcopy(model).bfloat16()  # even where what was given holds half precision
    run = _run(
        half, tokenizer, lambda prompts, completions: [float(len(c)) for c in completions],
        model__tuning="full", model__dtype="bfloat16", ppo__critic="model", ppo__learning_rate=1e-6, ppo__num_ppo_epochs=1,
        rollout__response_length=8, ppo__rollout_batch_size=8, ppo__total_episodes=8,
    )  # fmt: skip
    policy = run.parts.policy
    named = [*policy.named_policy_parameters(), *policy.named_critic_parameters()]
    assert {p.dtype for _, p in named} == {torch.float32}
    seen: list[torch.dtype] = []
    layer = policy.model.get_decoder().layers[0].mlp.down_proj
    watch = layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    before = _weights(policy.named_policy_parameters())
    run.learn()
    watch.remove()
    assert set(seen) == {torch.bfloat16}  # while the arithmetic was in half precision
    name = next(name for name in before if name.endswith("down_proj.weight"))
    now = _weights(policy.named_policy_parameters())
    assert (before[name] != now[name]).float().mean() > 0.9
    assert (before[name].bfloat16() != now[name].bfloat16()).float().mean() < 0.01  # in bf16 the step would have been lost


@pytest.mark.parametrize("method", ["head", "adapter", "full"])
def test_item_45_reward_models_on_half_precision_train_float32_weights(model: Any, tokenizer: Any, method: str) -> None:
    pairs = [{"prompt": "the film was", "chosen": " good .", "rejected": " bad ."}] * 4
    settings = {"reward.method": method, "reward.learning_rate": 1e-6, "data.validation_share": 0, "model.dtype": "bfloat16"}
    given = make_backbone(copy.deepcopy(model).bfloat16(), tokenizer, ModelConfig(name="tiny", dtype="bfloat16"))
    untouched = {name: p.clone() for name, p in given.model.state_dict().items()}
    run = RewardRun(given, train=pairs, settings=settings)
    assert {p.dtype for _, p in run.parts.parameters} == {torch.float32}
    before = _weights(run.parts.parameters)
    run.fit()
    assert "score.weight" in (changed := _moved(before, _weights(run.parts.parameters)))
    assert (len(changed) > 1) is (method != "head")
    for name, weight in given.model.state_dict().items():  # a model that was given is not the one that is trained whole
        if "lora_" not in name:
            assert torch.equal(weight, untouched[name.replace(".base_layer", "")])


def _plain(states: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    logits = states @ weight.T if bias is None else states @ weight.T + bias
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return logp.gather(1, tokens[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("head_learns, entropy_gradient", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("with_bias, temperature", [(False, 0.7), (True, 0.7), (True, 1.0)])
def test_item_46_chunks_and_checkpoints_give_the_gradient_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, head_learns: bool, entropy_gradient: bool, with_bias: bool, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(13, 8, generator=generator), torch.randn(20, 8, generator=generator)
    tokens, upstream = torch.randint(0, 20, (13,), generator=generator), torch.randn(13, generator=generator)
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 100)  # 5 rows a chunk: 5 + 5 + 3

    def gradients(chunked: bool) -> list[Tensor]:
        x, w = states.clone().requires_grad_(), weight.clone().requires_grad_(head_learns)
        b = weight[:, 0].clone().requires_grad_(head_learns) if with_bias else None
        if chunked:
            logp, entropy = token_statistics(x, tokens, logits.Head(w, b, temperature), entropy_gradient=entropy_gradient)
        else:
            logp, entropy = _plain(x, tokens, w, b, temperature)
        total = (upstream * logp).sum() + ((upstream**2 * entropy).sum() if entropy_gradient else 0)
        total.backward()
        return [logp, entropy, x.grad, *([w.grad] if head_learns else []), *([b.grad] if b is not None and head_learns else [])]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_item_46_the_same_figures_to_the_bit_whatever_is_trained(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ratio of an update divides what was said without a gradient by what is said with one."""
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 100)
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(count, 8, generator=generator).to(dtype) for count in (13, 20))
    tokens = torch.randint(0, 20, (13,), generator=generator)

    def said(states_learn: bool, head_learns: bool) -> Tensor:
        x, w = states.clone().requires_grad_(states_learn), weight.clone().requires_grad_(head_learns)
        return torch.stack(token_statistics(x, tokens, logits.Head(w, None, 0.7))).detach()

    assert torch.equal(said(False, False), said(True, False))
    assert torch.equal(said(False, False), said(True, True))


@pytest.mark.parametrize("used", ["logp", "entropy"])
def test_item_46_a_trained_head_learns_from_either_figure_alone_and_under_autocast(
    used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 100)
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(13, 8, generator=generator), torch.randn(20, 8, generator=generator)
    tokens = torch.randint(0, 20, (13,), generator=generator)

    def gradients(ours: bool, autocast: bool) -> list[Tensor]:
        x, w = states.clone().requires_grad_(), weight.clone().requires_grad_()
        both = token_statistics(x, tokens, logits.Head(w, None, 1.0)) if ours else _plain(x, tokens, w, None, 1.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            both[0 if used == "logp" else 1].sum().backward()
        return [x.grad, w.grad]

    expected = gradients(False, False)
    for autocast in (False, True):
        for found, wanted in zip(gradients(True, autocast), expected, strict=True):
            assert found.dtype == torch.float32
            assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("head_learns", [False, True])
def test_item_46_chunks_and_checkpoints_of_the_exact_divergence_give_the_gradient_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, head_learns: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    weight, mask = torch.randn(20, 8, generator=generator), torch.arange(5) < torch.tensor([[5], [3]])
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 60)

    def gradients(chunked: bool) -> list[Tensor]:
        x, y, w = p.clone().requires_grad_(), q.clone().requires_grad_(), weight.clone().requires_grad_(head_learns)
        head = logits.Head(w, None, 0.7)
        if chunked:
            kl = exact_kl(TokenDist(x, mask, head), TokenDist(y, mask, head))
        else:
            kl = torch.where(mask, kl_categorical(x @ w.T / 0.7, y @ w.T / 0.7), 0.0)
        (kl * torch.arange(1.0, 6)).sum().backward()
        return [kl, x.grad, y.grad, *([w.grad] if head_learns else [])]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_item_49_the_score_is_at_the_last_real_token_for_both_padding_sides(backbone: Backbone, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    scorer = RewardScorer(backbone, layer=None, adapter=None, seed=0)
    prompts, answers = random_rows(backbone, 4, 1, 9, seed=1), [[*row, 2] for row in random_rows(backbone, 4, 1, 9, seed=2)]
    found = [
        SharedRewardModel(scorer, RewardFacts(), 4).score(
            make_prompts(prompts, 0, left), make_completions(answers, 0, extra=right)
        )
        for left, right in ((0, 0), (6, 0), (0, 6))
    ]
    save_reward_model(scorer, RewardFacts(), tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    width = max(map(len, rows)) + 3
    for side in ("left", "right"):
        ids = torch.tensor([[0] * (width - len(r)) + r if side == "left" else r + [0] * (width - len(r)) for r in rows])
        scores = theirs(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, 0]
        for ours in found:
            assert torch.allclose(ours.value, scores, atol=1e-5)
    assert scores.std() > 0.05


def test_item_53_a_reward_models_held_out_figures_have_interval_calibration_and_accuracy_by_length_gap(
    backbone: Backbone,
) -> None:
    class Known(RankingTask):
        """R = 2 a token, so the longer answer is preferred with P = sigmoid(2 gap)."""

        def scores(self, items: Any) -> tuple[Tensor, Tensor]:
            sides = ([len(self.pairs[i].chosen) for i in items], [len(self.pairs[i].rejected) for i in items])
            return torch.tensor(sides[0]) * 2.0, torch.tensor(sides[1]) * 2.0

    def pair(first: int, second: int, target: float) -> PairRow:
        return PairRow((first, second), (3,) * first, (3,) * second, 0.0, target)

    scorer = RewardScorer(backbone, layer=None, adapter=None, seed=0)
    # gap 1 in favour of the preferred one 3 times of 4; a tie says nothing; the last is preferred with votes 1 : 3
    pairs = [pair(2, 1, 1.0), pair(3, 2, 0.75), pair(1, 2, 1.0), pair(4, 4, 0.5), pair(1, 2, 0.25)]
    figures = held_out_figures(Known(pairs, scorer, None, use_margin=False, center_coef=0.0), 2)
    low, high = figures["accuracy_interval"]
    assert (figures["num_pairs"], figures["accuracy"]) == (4, 0.75) and 0 < low < 0.75 < high < 1
    (only,) = figures["calibration"]["bins"]
    confidence = 1 / (1 + math.exp(-2))
    assert only == {"confidence": pytest.approx(confidence), "accuracy": 0.75, "count": 4}
    assert figures["calibration"]["ece"] == pytest.approx(confidence - 0.75)
    assert [row["count"] for row in figures["accuracy_by_length_gap"]] == [4]


class _EmitOne:
    """Pays the share of an answer's tokens that are `token`; reads ids, so that no decoding stands between."""

    def __init__(self, token: int, shuffled: bool = False) -> None:
        self.token, self.chance = token, torch.Generator().manual_seed(0) if shuffled else None

    def score(self, prompts: Any, completions: Any) -> Any:
        from surefoot.types import Scores

        share = ((completions.ids == self.token) & completions.mask).sum(1) / completions.mask.sum(1).clamp(min=1)
        paid = share if self.chance is None else share[torch.randperm(len(share), generator=self.chance)]
        return Scores(paid, {"share": share}, torch.ones(len(share), dtype=torch.bool))


def _learn(
    model: Any, tokenizer: Any, *, token: int = 300, shuffled: bool = False, updates: int = 16, **settings: Any
) -> tuple[list[float], list[float]]:
    """By rollout: the share of the token, and KL(policy || SFT) in nats a sequence. At first it is 1 of some 350 tokens."""
    chosen: dict[str, Any] = {
        "rollout__response_length": 4, "rollout__batch_size": 128,
        "ppo__rollout_batch_size": 128, "ppo__micro_batch_size": 128, "ppo__num_ppo_epochs": 2,
        "ppo__num_mini_batches": 2, "ppo__total_episodes": 128 * updates, "ppo__learning_rate": 0.02, "ppo__kl_coef": 0.0,
        "model__tuning": "full",
    }  # fmt: skip
    run = _run(model, tokenizer, _EmitOne(token, shuffled), **(chosen | settings))
    seen = list(run)
    assert len(seen) == updates
    return [float(s.rollout.scores.parts["share"].mean()) for s in seen], [s.metrics["objective/kl"] for s in seen]


@pytest.mark.parametrize("objective", ["clip", "penalty", "policy_gradient"])
def test_item_57_emitting_one_token_is_solved(model: Any, tokenizer: Any, objective: str) -> None:
    shares, kl = _learn(model, tokenizer, ppo__objective=objective)
    assert shares[0] < 0.1 and sum(shares[-3:]) / 3 > 0.7 and kl[-1] > 5


def test_item_57_emitting_one_token_is_learned_by_an_adapter(model: Any, tokenizer: Any) -> None:
    # with the head frozen the states can only turn towards the token: its row must be long enough to be chosen
    loud = sharpened(copy.deepcopy(model), 3.0)
    shares, _ = _learn(loud, tokenizer, model__tuning="lora")
    assert shares[0] < 0.1 and sum(shares[-3:]) / 3 > 0.3


def test_item_57_shuffled_rewards_teach_nothing_of_it(model: Any, tokenizer: Any) -> None:
    shares, _ = _learn(model, tokenizer, shuffled=True)
    assert max(shares) < 0.2


def test_item_57_a_learning_rate_next_to_0_is_flat(model: Any, tokenizer: Any) -> None:
    shares, kl = _learn(model, tokenizer, updates=4, ppo__learning_rate=1e-30)
    assert max(shares) < 0.1 and max(map(abs, kl)) < 1e-4


@pytest.mark.parametrize("kl_in, estimator", [("reward", "k1"), ("loss", "exact")])
def test_item_57_a_huge_tether_stays(model: Any, tokenizer: Any, kl_in: str, estimator: str) -> None:
    tether = {"ppo__kl_coef": 100.0, "ppo__learning_rate": 0.005, "ppo__kl_in": kl_in, "ppo__kl_estimator": estimator}
    shares, kl = _learn(model, tokenizer, **tether)
    assert max(shares) < 0.2 and max(map(abs, kl)) < 1
