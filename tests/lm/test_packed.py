"""The packed decoder against transformers' own forward, which is the oracle: the same tokens, log-probs to 1e-4."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from surefoot.api import PPORun
from surefoot.config import ModelConfig, RolloutConfig
from surefoot.lm.backbone import Backbone, from_objects
from surefoot.optim import adamw
from surefoot.rollout import products
from surefoot.rollout.local import LocalEngine
from surefoot.rollout.packed import PackedDecoder, packed_decoder
from surefoot.rollout.plain import PlainDecoder
from surefoot.rollout.products import Products
from surefoot.types import Completions, Prompts
from tiny_language import make_backbone, make_policy, make_prompts, moved, random_rows, sharpened, single_tokens

SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def written(backbone: Backbone, prompts: Prompts, *, packs: bool, adapter: str | None = None, **cfg: Any) -> Completions:
    engine = LocalEngine(backbone, RolloutConfig(response_length=12, **cfg), adapter=adapter, packs=packs)
    made = engine.generate(prompts, torch.Generator().manual_seed(1))
    assert engine.packs is packs
    return made


def assert_equal(ours: Completions, theirs: Completions) -> None:
    assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.mask, theirs.mask)
    assert (ours.logp_sampler - theirs.logp_sampler).abs().max() < 1e-4
    assert ours.text == theirs.text and torch.equal(ours.finished, theirs.finished)


def prompts_of(backbone: Backbone, count: int = 12) -> Prompts:
    """Prompts of many lengths, each of three of them twice."""
    rows = random_rows(backbone, count - 3, 1, 9)
    return make_prompts([*rows, *rows[:3]], backbone.codec.pad_id, extra=2)


@pytest.mark.parametrize("adapter", ["policy", None])
@pytest.mark.parametrize("batch_size", [64, 12, 5, 1])
@pytest.mark.parametrize("tricks", [{}, {"temperature": 0.7}, {"top_k": 7, "top_p": 0.9}])
def test_the_same_tokens_as_transformers_whatever_the_batch(
    backbone: Backbone, adapter: str | None, batch_size: int, tricks: dict[str, Any]
) -> None:
    moved(make_policy(backbone))
    prompts = prompts_of(backbone)
    stops = tuple(single_tokens(backbone.codec.tokenizer).values())[::4]  # rows end at many lengths, so that places fall free
    ours = written(backbone, prompts, packs=True, adapter=adapter, batch_size=batch_size, stop_token=stops, **tricks)
    theirs = written(backbone, prompts, packs=False, adapter=adapter, batch_size=64, stop_token=stops, **tricks)
    assert len(set(ours.mask.sum(1).tolist())) > 3
    assert_equal(ours, theirs)


def test_samples_of_one_prompt_share_its_reading(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts, each eight times: the first pass reads three rows."""
    read: list[int] = []
    through = PackedDecoder._through
    monkeypatch.setattr(
        PackedDecoder, "_through", lambda self, ids, attention: read.append(len(ids)) or through(self, ids, attention)
    )
    prompts = make_prompts([row for row in random_rows(backbone, 3, 4, 4) for _ in range(8)], backbone.codec.pad_id)
    ours = written(backbone, prompts, packs=True)
    assert 3 * 4 in read and 24 * 4 not in read
    monkeypatch.undo()
    assert_equal(ours, written(backbone, prompts, packs=False))


def test_waiting_prompts_take_the_places_of_ended_rows(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight answers of 1, 12, 1, 12, ... tokens in four places: eleven steps more than the first, not twice eleven."""
    steps: list[int] = []
    step = PackedDecoder.step
    monkeypatch.setattr(PackedDecoder, "step", lambda self, tokens: steps.append(len(tokens)) or step(self, tokens))
    engine = LocalEngine(backbone, RolloutConfig(response_length=12, batch_size=4), adapter=None)
    lengths = torch.tensor([1, 12] * 4)
    monkeypatch.setattr(engine, "is_last", lambda rows, steps, tokens: steps + 1 >= lengths[rows])
    prompts = make_prompts(random_rows(backbone, 8, 5, 5), backbone.codec.pad_id)
    made = engine.generate(prompts, torch.Generator().manual_seed(0))
    assert made.mask.sum(1).tolist() == lengths.tolist()
    checked = 2  # steps of the comparison with transformers
    assert len(steps) - checked < 2 * 11 and max(steps) <= 4


@pytest.mark.parametrize(
    "kind, config, is_packed",
    [
        (Qwen2ForCausalLM, Qwen2Config(**SIZES), True),  # biases on query, key and value
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None, head_dim=16), True),
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=4, head_dim=16), False),
        (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=8), False),  # norms on queries and keys
        (GPT2LMHeadModel, GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4, n_positions=128), False),
    ],
)
def test_other_architectures_are_packed_where_they_are_the_same_and_sampled_plainly_where_not(
    tokenizer: Any, kind: Any, config: Any, is_packed: bool
) -> None:
    torch.manual_seed(0)
    model = sharpened(kind(config).eval())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    backbone = from_objects(model, tokenizer, ModelConfig(name="tiny"))
    engine = LocalEngine(backbone, RolloutConfig(response_length=12), adapter=None)
    ours = engine.generate(prompts_of(backbone), torch.Generator().manual_seed(1))
    assert engine.packs is is_packed
    assert_equal(ours, written(backbone, prompts_of(backbone), packs=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_computes_something_else_is_not_packed(model: Any, tokenizer: Any, dtype: torch.dtype) -> None:
    backbone = make_backbone(copy.deepcopy(model).to(dtype), tokenizer)
    assert packed_decoder(backbone, None, slots=4, capacity=8) is not None, "rounding alone is no reason"
    block = backbone.model.get_decoder().layers[1]
    block.mlp.act_fn = torch.nn.ReLU()
    assert packed_decoder(backbone, None, slots=4, capacity=8) is None
    assert packed_decoder(backbone, None, slots=4, capacity=8, is_known=True) is not None


@pytest.mark.parametrize("adapter", ["policy", None])
def test_in_bf16_an_adapter_far_smaller_than_a_weights_rounding_still_acts(
    model: Any, tokenizer: Any, adapter: Literal["policy"] | None
) -> None:
    """Added to bf16 weights, changes of a thousandth are rounded away; the packed product keeps them apart."""
    cfg = ModelConfig(name="tiny", dtype="bfloat16", lora_rank=4)
    backbone = make_backbone(copy.deepcopy(model).bfloat16(), tokenizer, cfg)
    policy = moved(make_policy(backbone, cfg=cfg), scale=0.003)
    rows = random_rows(backbone, 6, 5, 5)
    packed, plain = PackedDecoder(backbone, adapter, slots=6, capacity=6), PlainDecoder(backbone, adapter)
    with torch.no_grad():
        ours, theirs = packed.begin(rows).float(), plain.begin(rows).float()
    assert (ours - theirs).abs().mean() < 0.02
    layer = policy.model.get_decoder().layers[0].mlp.up_proj
    down, up = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight * layer.scaling["policy"]
    x = torch.randn(200, down.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    if adapter is None:
        return
    exact = x.float() @ (up @ down).T
    base = layer.get_base_layer().weight
    alone = copy.deepcopy([policy.model.get_decoder().layers[0].mlp.gate_proj, layer])
    with torch.no_grad():
        for each in alone:
            each.get_base_layer().weight.zero_()  # what is left is the adapter's
        apart = Products().of(alone, "policy", torch.bfloat16)(x)[:, -len(up) :].float()
    merged = x.float() @ ((base.float() + up @ down).bfloat16().float() - base.float()).T
    assert (apart - exact).norm() < 0.02 * exact.norm()
    assert (merged - exact).norm() > 0.2 * exact.norm()


def test_frozen_weights_stay_laid_out_until_they_change(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    laid: list[int] = []
    laid_out = products.laid_out
    monkeypatch.setattr(products, "laid_out", lambda weight, *rest: laid.append(len(weight)) or laid_out(weight, *rest))
    engine = LocalEngine(backbone, RolloutConfig(response_length=12), adapter=None, keeps_packed=True)
    prompts = prompts_of(backbone)
    block = backbone.model.get_decoder().layers[0]
    weight = block.self_attn.k_proj.weight
    every = 4 * len(backbone.model.get_decoder().layers) + 1

    def answers() -> Completions:
        laid.clear()
        made = engine.generate(prompts, torch.Generator().manual_seed(1))
        assert_equal(made, written(backbone, prompts, packs=False))
        return made

    first = answers()
    assert len(laid) == every
    assert torch.equal(answers().logp_sampler, first.logp_sampler)
    assert laid == []
    with torch.no_grad():
        weight.mul_(2)  # in place
        block.mlp.down_proj.weight.data = block.mlp.down_proj.weight * 0.5  # another storage
    assert not torch.equal(answers().logp_sampler, first.logp_sampler)
    assert len(laid) == 2
    weight.data.mul_(0.5)  # past the counter of writes
    answers()
    assert len(laid) == 1
    weight.requires_grad_(True)
    optimizer = adamw([weight], lr=0.1, weight_decay=0.0)  # the fused one is not counted either
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    weight.requires_grad_(False)
    answers()
    assert len(laid) == 1
    backbone.model.requires_grad_(True)
    for _ in range(2):  # what is trained is laid out every time
        answers()
        assert len(laid) == every


def test_an_engine_that_is_not_told_to_keep_lays_out_anew(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(backbone, RolloutConfig(response_length=2), adapter=None)
    engine.generate(prompts_of(backbone), torch.Generator().manual_seed(1))
    laid: list[int] = []
    laid_out = products.laid_out
    monkeypatch.setattr(products, "laid_out", lambda weight, *rest: laid.append(len(weight)) or laid_out(weight, *rest))
    engine.generate(prompts_of(backbone), torch.Generator().manual_seed(1))
    assert len(laid) == 4 * len(backbone.model.get_decoder().layers) + 1


def test_prompts_are_read_by_few_numbers_of_tokens(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is kept for each number of rows: of all kinds of lengths few numbers may come."""
    read: list[int] = []
    through = PackedDecoder._through
    monkeypatch.setattr(
        PackedDecoder, "_through", lambda self, ids, attention: read.append(len(ids)) or through(self, ids, attention)
    )
    decoder = PackedDecoder(backbone, None, slots=9, capacity=20)
    with torch.no_grad():
        for seed in range(40):
            rows = random_rows(backbone, 9, 1, 19, seed=seed)
            decoder.lengths = decoder.lengths[:0]
            states = decoder.begin(rows)
            plain = PlainDecoder(backbone, None).begin(rows)
            assert torch.allclose(states, plain, atol=1e-4)
            total = sum(map(len, rows))
            assert read[-1] == min(total + -total % 32, 9 * max(map(len, rows)))
    assert len(set(read)) < 12


def test_a_bias_on_some_of_the_layers_that_are_joined(backbone: Backbone) -> None:
    layer = backbone.model.get_decoder().layers[0].self_attn.k_proj
    layer.bias = torch.nn.Parameter(torch.randn(layer.out_features, generator=torch.Generator().manual_seed(0)), False)
    prompts = prompts_of(backbone)
    assert_equal(written(backbone, prompts, packs=True), written(backbone, prompts, packs=False))


def test_norms_of_another_class_are_called_as_they_are(backbone: Backbone) -> None:
    config = backbone.model.config
    decoder = backbone.model.get_decoder()
    other = torch.nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    decoder.layers[0].input_layernorm = other.requires_grad_(False)
    prompts = prompts_of(backbone)
    assert_equal(written(backbone, prompts, packs=True), written(backbone, prompts, packs=False))


def test_weights_that_are_no_numbers_stop_the_run(backbone: Backbone) -> None:
    from surefoot.errors import Diverged

    engine = LocalEngine(backbone, RolloutConfig(response_length=3), adapter=None)
    with torch.no_grad():
        backbone.model.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(Diverged, match="at token 1 of an answer"):
        engine.generate(prompts_of(backbone), torch.Generator().manual_seed(0))


def test_ppo_lays_frozen_weights_out_once_for_all_rollouts(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laid: list[int] = []
    laid_out = products.laid_out
    monkeypatch.setattr(products, "laid_out", lambda weight, *rest: laid.append(len(weight)) or laid_out(weight, *rest))
    run = PPORun(
        (copy.deepcopy(model).bfloat16(), tokenizer),  # in float32 adapters are merged, and every weight is new
        prompts=["the film was"] * 4,
        reward=lambda prompts, completions: [float(i) for i in range(len(prompts))],
        settings={"rollout.response_length": 4, "ppo.rollout_batch_size": 8, "ppo.total_episodes": 24, "model.dtype": "bfloat16"},
    )
    counts = []
    for _ in run:
        counts.append(len(laid))
    assert len(counts) == 3 and counts[0] > 0
    assert counts[1] == counts[2] == counts[0]
