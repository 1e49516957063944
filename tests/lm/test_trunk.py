"""What the shared blocks computed once must give what the whole decoder gives from the tokens on."""

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from surefoot.config import ModelConfig
from surefoot.lm.backbone import Backbone
from surefoot.lm.roles import LanguageActorCritic, RewardScorer
from surefoot.lm.tokens import Context
from surefoot.lm.trunk import SharedRows, SplitTrunk, split_trunk
from surefoot.rewards.ensemble import EnsembleReward
from surefoot.rewards.model import RewardFacts, SharedRewardModel
from surefoot.stages import rollouts
from surefoot.stages.rollouts import RunningDeviation
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
)

UPPER = ModelConfig(name="tiny", lora_rank=4, lora_layers=1)


def written(backbone: Backbone, count: int = 8) -> tuple[Prompts, Completions]:
    pad = backbone.codec.pad_id
    prompts = make_prompts(random_rows(backbone, count, 2, 6), pad, extra=2)
    return prompts, make_completions(random_rows(backbone, count, 1, 9, seed=1), pad, extra=1)


def gradients(policy: LanguageActorCritic, states: Context, ids: Tensor) -> list[Tensor]:
    """All that an update reads, and what it does to the weights."""
    policy.zero_grad()
    seen = policy.evaluate(states, ids)
    (seen.logp * torch.linspace(-1, 1, ids.shape[1]) + seen.entropy + seen.values**2).masked_select(states.mask).sum().backward()
    named = [*policy.named_policy_parameters(), *policy.named_critic_parameters()]
    out = [seen.logp, seen.entropy, seen.values, policy.reference(states, ids)[0]]
    return [x.detach() for x in out] + [p.grad.clone() for _, p in named if p.grad is not None]


@pytest.mark.parametrize("critic, critic_layer", [("detached", None), ("shared", None), ("adapter", None), ("adapter", 1)])
def test_roles_that_go_on_from_the_shared_blocks_equal_those_that_begin_at_the_tokens(
    model: Any, tokenizer: Any, critic: Literal["detached", "shared", "adapter"], critic_layer: int | None
) -> None:
    backbone = make_backbone(model, tokenizer)
    policy = moved(make_policy(backbone, cfg=UPPER, critic=critic, critic_layer=critic_layer, entropy_gradient=True))
    prompts, completions = written(backbone)
    plain = context_of(prompts, completions)
    begun = policy.begin(plain, completions.ids)
    assert begun.begun is not None
    rows = torch.tensor([5, 0, 3])  # in another order, and narrower than the batch was
    for found, expected in zip(
        gradients(policy, begun[rows], completions.ids[rows]), gradients(policy, plain[rows], completions.ids[rows]), strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_a_rollout_hands_the_shared_states_to_the_update_in_the_order_of_its_rows(
    model: Any, tokenizer: Any, objective: str
) -> None:
    backbone = make_backbone(model, tokenizer)
    policy = moved(make_policy(backbone, cfg=UPPER))
    prompts, completions = written(backbone)
    cfg = plain_ppo(objective=objective, micro_batch_size=3)
    scores = make_scores([float(i) for i in range(8)])
    batch = rollouts.rollout(policy, prompts, completions, scores, cfg, kl_coef=0.1, running=RunningDeviation()).batch
    assert batch.states.begun is not None
    with torch.no_grad():
        logp = policy.evaluate(batch.states, batch.actions).logp
    assert torch.allclose(logp, batch.logp_old, atol=1e-5)


def test_states_that_are_too_many_to_keep_are_computed_again(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone(model, tokenizer)
    policy = moved(make_policy(backbone, cfg=UPPER))
    prompts, completions = written(backbone)
    cfg, scores = plain_ppo(micro_batch_size=3), make_scores([1.0] * 8)
    kept = rollouts.rollout(policy, prompts, completions, scores, cfg, kl_coef=0.1, running=RunningDeviation()).batch
    monkeypatch.setattr(rollouts, "KEPT_BYTES", 100)
    batch = rollouts.rollout(policy, prompts, completions, scores, cfg, kl_coef=0.1, running=RunningDeviation()).batch
    assert batch.states.begun is None
    assert torch.equal(batch.logp_old, kept.logp_old)


@pytest.mark.parametrize("members", [1, 2])
def test_the_blocks_below_a_reward_head_run_once_for_the_head_and_for_those_who_judge(
    model: Any, tokenizer: Any, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head reads answers that length cut with an EOS behind them; policy and reference go on from the same states."""
    backbone = make_backbone(model, tokenizer)
    policy = moved(make_policy(backbone, cfg=UPPER))
    prompts, completions = written(backbone)
    plain = make_backbone(model, tokenizer)

    def source(on: Backbone) -> EnsembleReward:
        scorers = [RewardScorer(on, layer=2, adapter=None, seed=i) for i in range(members)]
        return EnsembleReward([SharedRewardModel(scorer, RewardFacts(), 3) for scorer in scorers], "mean")

    runs: list[int] = []
    begin = SplitTrunk.begin
    monkeypatch.setattr(
        SplitTrunk, "begin", lambda self, rows, lengths=None: runs.append(len(rows)) or begin(self, rows, lengths)
    )
    scores = source(backbone).score(prompts, completions)
    assert sum(runs) == 8
    assert torch.allclose(scores.value, source(plain).score(prompts, completions).value, atol=1e-5)
    cfg = plain_ppo(micro_batch_size=3)
    given = (policy, prompts, completions, scores, cfg)
    shared = rollouts.rollout(*given, kl_coef=0.1, running=RunningDeviation())
    assert sum(runs) == 8  # nothing began a second time
    again = rollouts.rollout(*given, kl_coef=0.1, running=RunningDeviation())  # the states are handed over once
    assert sum(runs) == 16
    mask = shared.batch.mask
    for name in ("logp_old", "values_old", "advantages", "returns"):
        assert torch.allclose(getattr(shared.batch, name)[mask], getattr(again.batch, name)[mask], atol=1e-5)
    assert torch.allclose(shared.logp_ref, again.logp_ref, atol=1e-5)


def test_states_of_other_answers_are_not_taken_and_too_many_are_not_kept(model: Any, tokenizer: Any) -> None:
    rows = [[5, 6, 7], [8, 9]]
    shared, states = SharedRows(), torch.randn(2, 3, 4)
    shared.keep(rows, states)
    assert shared.taken([[5, 6, 7], [8, 8]], [2]) is None
    found = shared.taken(rows, [2])
    assert found is not None and torch.equal(found[1], states[1, :2])
    assert shared.taken(rows, [2]) is None
    shared.keep([[5, 6, 2]], states[:1])
    found = shared.taken([[5, 6]], [3, 2])  # the EOS that a reward model puts behind a cut answer
    assert found is not None and torch.equal(found[0], states[0, :2])
    shared.keep(rows, states)
    shared.forget()
    assert shared.taken(rows, [2]) is None
    shared.MOST_KEPT = 10
    shared.keep(rows, states)
    assert shared.taken(rows, [2]) is None


@pytest.mark.parametrize("cfg", [ModelConfig(name="tiny", lora_rank=4), ModelConfig(name="tiny", tuning="full")])
def test_nothing_is_shared_where_every_block_learns(model: Any, tokenizer: Any, cfg: ModelConfig) -> None:
    backbone = make_backbone(model, tokenizer, cfg)
    prompts, completions = written(backbone)
    plain = context_of(prompts, completions)
    assert make_policy(backbone, cfg=cfg).begin(plain, completions.ids) is plain


def test_a_decoder_whose_halves_are_not_the_whole_is_not_split(model: Any) -> None:
    decoder = copy.deepcopy(model).get_decoder()
    assert split_trunk(decoder, 1) is not None
    assert split_trunk(decoder, 0) is None
    assert split_trunk(decoder, decoder.config.num_hidden_layers) is None
    decoder.embed_tokens.register_forward_hook(lambda module, inputs, states: states * 2)
    forward = decoder.forward
    decoder.forward = lambda input_ids=None, inputs_embeds=None, **rest: forward(  # scales what it is given, as Gemma does
        inputs_embeds=decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds * 2, **rest
    )
    assert split_trunk(decoder, 1) is None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        positions_added = GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=32)).eval()
    assert split_trunk(positions_added, 1) is None
