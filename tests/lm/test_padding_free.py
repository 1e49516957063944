"""Rows without the padding between them: what is said of them, and what is learned, is what it is with padding."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from surefoot.config import ModelConfig
from surefoot.lm.attention import attend
from surefoot.lm.backbone import Backbone, from_objects
from surefoot.lm.batches import CompletionTask, TokenRow
from surefoot.lm.logits import token_logps, token_statistics
from surefoot.lm.padding_free import ROUND, FlatRows
from surefoot.lm.roles import LanguageActorCritic, RewardScorer
from surefoot.stages.answers import sequence_kl
from tiny_language import context_of, make_backbone, make_completions, make_policy, make_prompts, moved, random_rows, their_logp

SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FREE, PADDED = ModelConfig(name="tiny", lora_rank=4), ModelConfig(name="tiny", lora_rank=4, padding_free=False)


def flat_rows(lengths: list[int], multiple: int = 1) -> FlatRows:
    rows = FlatRows.of(torch.tensor(lengths), max(lengths), multiple)
    assert rows is not None
    return rows


def test_tokens_go_behind_one_another_and_back() -> None:
    x = torch.arange(24.0).reshape(3, 4, 2)
    rows = flat_rows([2, 4, 1])
    assert torch.equal(rows.flat(x)[0], torch.cat([x[0, :2], x[1], x[2, :1]]))
    assert rows.positions.tolist() == [[0, 1, 0, 1, 2, 3, 0]]
    back = rows.padded(rows.flat(x))
    is_token = torch.arange(4) < torch.tensor([2, 4, 1])[:, None]
    assert torch.equal(back, x * is_token[:, :, None])


def test_rows_of_one_length_have_nothing_to_leave_out() -> None:
    assert FlatRows.of(torch.tensor([4, 4]), 4, 1) is None
    assert FlatRows.of(torch.tensor([4, 3]), 4, 8) is None, "rounded up, it is all read"


def test_a_number_of_tokens_is_rounded_up_by_padding_behind_rows() -> None:
    rows = flat_rows([2, 7, 3], multiple=8)
    assert rows.lengths == (6, 7, 3) and len(rows.places) == 16


@pytest.mark.parametrize("pads", [True, False])
def test_attention_sees_its_own_row_alone(pads: bool) -> None:
    """Both ways of taking rows apart, and their gradients, beside a softmax by hand in double precision."""
    lengths = [3, 3, 1, 5, 2, 2]
    rows = replace(flat_rows(lengths), pads=pads)
    q, k, v = (torch.randn(1, 2, sum(lengths), 4, requires_grad=True) for _ in range(3))
    out, _ = attend(torch.nn.Module(), q, k, v, torch.zeros(1, 1, 1, 1), flat_rows=rows, scaling=0.7)
    row = torch.repeat_interleave(torch.arange(6), torch.tensor(lengths))
    mask = (row[:, None] == row) & torch.ones(16, 16, dtype=torch.bool).tril()
    a, b, c = (x.detach().double().requires_grad_() for x in (q, k, v))
    exact = ((a @ b.mT * 0.7).masked_fill(~mask, -torch.inf).softmax(-1) @ c).transpose(1, 2)
    upstream = torch.randn(exact.shape)
    out.backward(upstream)
    exact.backward(upstream.double())
    for ours, theirs in ((out, exact), (q.grad, a.grad), (k.grad, b.grad), (v.grad, c.grad)):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def learned(policy: LanguageActorCritic) -> list[Tensor]:
    """All that a rollout and an update read of rows of many lengths, and the gradients."""
    backbone = policy.backbone
    pad = backbone.codec.pad_id
    prompts = make_prompts(random_rows(backbone, 7, 1, 9), pad, extra=1)
    answers = make_completions(random_rows(backbone, 7, 1, 11, seed=1), pad, extra=2)
    states = policy.begin(context_of(prompts, answers), answers.ids)
    seen = policy.evaluate(states, answers.ids)
    mask = states.mask
    terms = (seen.logp * torch.linspace(-1, 1, mask.shape[1]), 0.1 * seen.entropy, seen.values**2, seen.next_values)
    sum(term[mask].sum() for term in terms).backward()  # type: ignore[union-attr]
    named = [*policy.named_policy_parameters(), *policy.named_critic_parameters()]
    reference, dist = policy.reference(states, answers.ids)
    out = [seen.logp, seen.entropy, reference, policy.kl(seen.dist, dist)]  # type: ignore[arg-type]
    out += [torch.where(mask, x, 0.0) for x in (seen.values, seen.next_values)]
    return [x.detach() for x in out] + [p.grad.clone() for _, p in named if p.grad is not None]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "tuning, layers, critic, layer",
    [
        ("lora", None, "detached", None),
        ("lora", None, "shared", 1),
        ("lora", 1, "shared", None),
        ("lora", 1, "adapter", None),
        ("lora", None, "adapter", 1),
        ("full", None, "model", None),
    ],
)
def test_a_policy_says_and_learns_the_same(
    model: Any,
    tokenizer: Any,
    tuning: Literal["lora", "full"],
    layers: int | None,
    critic: Any,
    layer: int | None,
    recompute: bool,
) -> None:
    settings: dict[str, Any] = {"lora_rank": 4, "lora_layers": layers} if tuning == "lora" else {}
    found = []
    for free in (True, False):
        cfg = ModelConfig(name="tiny", tuning=tuning, padding_free=free, activation_checkpointing=recompute, **settings)
        backbone = make_backbone(model, tokenizer, cfg)
        assert backbone.padding_free == free
        policy = moved(make_policy(backbone, cfg=cfg, critic=critic, critic_layer=layer, entropy_gradient=True))
        found.append(learned(policy))
    for free, padded in zip(*found, strict=True):
        torch.testing.assert_close(free, padded, rtol=1e-4, atol=1e-4)


def widths_seen(backbone: Backbone) -> list[int]:
    """Tokens of each product of the first block from here on."""
    seen: list[int] = []
    first = next(m for name, m in backbone.model.named_modules() if name.endswith("gate_proj"))
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_have_tokens_alone(model: Any, tokenizer: Any, dtype: torch.dtype) -> None:
    backbone = make_backbone(copy.deepcopy(model).to(dtype), tokenizer)
    rows = random_rows(backbone, 9, 2, 20)
    total, most = sum(map(len, rows)), 9 * max(map(len, rows))
    seen = widths_seen(backbone)
    RewardScorer(backbone, layer=None, adapter=None, seed=0).features(rows)
    CompletionTask([TokenRow(tuple(row), 1) for row in rows], backbone, None).loss(range(9))
    expected = total if dtype == torch.float32 else total + -total % ROUND  # kernels are few in half precision
    assert seen == [expected, expected] and expected < most


def test_supervised_losses_and_reward_states_are_the_same(model: Any, tokenizer: Any) -> None:
    found = []
    for cfg in (FREE, PADDED):
        backbone = make_backbone(model, tokenizer, cfg)
        rows = random_rows(backbone, 9, 2, 20)
        loss, _ = CompletionTask([TokenRow(tuple(row), 1) for row in rows], backbone, None).loss(range(9))
        scored = [RewardScorer(backbone, layer=layer, adapter=None, seed=0).features(rows) for layer in (None, 1)]
        found.append([loss.detach(), *(x.detach() for x in scored)])
    for free, padded in zip(*found, strict=True):
        torch.testing.assert_close(free, padded, rtol=1e-4, atol=1e-4)


ARCHITECTURES = [
    (Qwen2ForCausalLM, Qwen2Config(**SIZES), True),
    (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None, head_dim=16), True),
    (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=4, head_dim=16), False),  # rows attend by another rule
    (GPT2LMHeadModel, GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4, n_positions=128), True),
]


@pytest.mark.parametrize("kind, config, is_free", ARCHITECTURES)
def test_other_architectures_are_asked(tokenizer: Any, kind: Any, config: Any, is_free: bool) -> None:
    torch.manual_seed(0)
    config.eos_token_id = tokenizer.eos_token_id
    backbone = from_objects(kind(config), tokenizer, ModelConfig(name="tiny"))
    assert backbone.padding_free == is_free
    lengths = torch.tensor([3, 9, 1, 9])
    rows = torch.randint(3, 300, (4, 9))
    is_token = torch.arange(9) < lengths[:, None]
    with torch.no_grad():
        whole, free = backbone.hidden(rows, None), backbone.hidden(rows, None, lengths=lengths)
    torch.testing.assert_close(free[is_token], whole[is_token], rtol=1e-4, atol=1e-4)
    assert bool((free[~is_token] == 0).all()) == is_free


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_that_takes_no_such_rows_is_run_with_padding(model: Any, tokenizer: Any, dtype: torch.dtype) -> None:
    """One that does not hand over to attention what it is given, and one that attends by itself."""
    other = copy.deepcopy(model).to(dtype)
    decoder = other.get_decoder()
    forward = decoder.forward

    def without_extras(*args: Any, flat_rows: Any = None, **given: Any) -> Any:
        return forward(*args, **given)

    decoder.forward = without_extras
    assert not from_objects(other, tokenizer, FREE).padding_free
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    backbone = from_objects(eager, tokenizer, FREE)
    rows, lengths = torch.randint(3, 300, (2, 5)), torch.tensor([2, 5])
    assert torch.equal(backbone.hidden(rows, None, lengths=lengths), backbone.hidden(rows, None))


def test_a_block_that_leaves_its_rows_joined_stops_the_run(model: Any, tokenizer: Any) -> None:
    """Whatever its figures are: in half precision a small error would not show in them."""
    backbone = make_backbone(model, tokenizer)
    block = backbone.model.get_decoder().layers[-1]
    forward = block.self_attn.forward
    block.self_attn.forward = lambda *args, flat_rows=None, **given: forward(*args, **given)
    with pytest.raises(RuntimeError, match="did not take its rows apart"):
        backbone.hidden(torch.randint(3, 300, (2, 5)), None, lengths=torch.tensor([2, 5]))


def test_rows_without_any_token_are_run_as_they_are(model: Any, tokenizer: Any) -> None:
    backbone = make_backbone(model, tokenizer)
    rows = torch.randint(3, 300, (2, 5))
    assert torch.equal(backbone.hidden(rows, None, lengths=torch.tensor([0, 0])), backbone.hidden(rows, None))


def test_the_kl_of_answers_is_that_of_rows_with_padding(model: Any, tokenizer: Any) -> None:
    found = []
    for cfg in (FREE, PADDED):
        policy = moved(make_policy(make_backbone(model, tokenizer, cfg), cfg=cfg))
        merged, backbone = policy.backbone.merged("policy"), make_backbone(model, tokenizer, cfg)
        prompts = make_prompts(random_rows(backbone, 7, 1, 9), backbone.codec.pad_id, extra=1)
        answers = make_completions(random_rows(backbone, 7, 1, 11, seed=1), backbone.codec.pad_id, extra=2)
        found.append(torch.tensor(sequence_kl(merged, backbone, prompts, answers, 0.7)))
        by_hand = []
        for i in range(7):
            prompt, answer = prompts.ids[i][prompts.mask[i]].tolist(), answers.ids[i][answers.mask[i]].tolist()
            logps = [their_logp(one.model, prompt, answer, 0.7).sum() for one in (merged, backbone)]
            by_hand.append(logps[0] - logps[1])
        torch.testing.assert_close(found[-1], torch.stack(by_hand), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_alone_are_those_with_entropy(backbone: Backbone, temperature: float) -> None:
    states, tokens = torch.randn(9, backbone.width), torch.randint(3, 300, (9,))
    head = backbone.head(temperature)
    with torch.no_grad():
        assert torch.equal(token_logps(states, tokens, head), token_statistics(states, tokens, head)[0])
    assert token_logps(states[:0], tokens[:0], head).shape == (0,)


def test_a_merged_copy_runs_as_its_source(model: Any, tokenizer: Any) -> None:
    policy = moved(make_policy(make_backbone(model, tokenizer, FREE)))
    merged = policy.backbone.merged("policy")
    seen = widths_seen(merged)
    rows = torch.randint(3, 300, (2, 5))
    free = merged.hidden(rows, None, lengths=torch.tensor([2, 5]))
    assert seen == [7] and merged.shared is not policy.backbone.shared
    torch.testing.assert_close(free[1], policy.backbone.hidden(rows, "policy")[1], rtol=1e-4, atol=1e-4)
