"""Blocks that run again in the backward pass: the same gradients from less that is kept, whatever adapters are on by then."""

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from surefoot.build import backbone_of
from surefoot.config import ModelConfig
from surefoot.errors import ModelError
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import CompletionTask, TokenRow
from surefoot.lm.roles import LanguageActorCritic
from surefoot.lm.trunk import recomputing
from tiny_language import CRITICS, context_of, make_backbone, make_completions, make_policy, make_prompts, moved, random_rows

Kind = Literal["detached", "shared", "adapter", "model"]


def gradients(policy: LanguageActorCritic) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of something that all trained weights decide, and the bytes that the forward pass kept for them."""
    backbone = policy.backbone
    prompts = make_prompts(random_rows(backbone, 4, 2, 9), backbone.codec.pad_id)
    completions = make_completions(random_rows(backbone, 4, 1, 8, seed=1), backbone.codec.pad_id)
    context, ids = context_of(prompts, completions), completions.ids
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluation = policy.evaluate(policy.begin(context, ids), ids)
        loss = (evaluation.logp.sum() + evaluation.values.square().sum() + evaluation.values.sum()) / 10
    policy.reference(context, ids)  # adapters are off when the backward pass comes
    loss.backward()
    named = [*policy.named_policy_parameters(), *policy.named_critic_parameters()]
    return {name: p.grad for name, p in named if p.grad is not None}, sum(kept.values())


def make(model: Any, tokenizer: Any, *, on: bool, critic: Kind, **settings: Any) -> LanguageActorCritic:
    cfg = ModelConfig(name="tiny", activation_checkpointing=on, **settings)
    return moved(make_policy(make_backbone(model, tokenizer, cfg), cfg=cfg, critic=critic))


LORA, UPPER, FULL = {"lora_rank": 4}, {"lora_rank": 4, "lora_layers": 1}, {"tuning": "full"}
CASES = [(critic, settings) for settings in (LORA, UPPER) for critic in CRITICS]
CASES += [(critic, FULL) for critic in CRITICS if critic != "adapter"]  # adapters beside full fine-tuning are refused


@pytest.mark.parametrize(("critic", "settings"), CASES, ids=str)
def test_gradients_are_those_of_blocks_that_keep_everything(
    model: Any, tokenizer: Any, critic: Kind, settings: dict[str, Any]
) -> None:
    plain, bytes_plain = gradients(make(model, tokenizer, on=False, critic=critic, **settings))
    again, bytes_again = gradients(make(model, tokenizer, on=True, critic=critic, **settings))
    assert plain.keys() == again.keys() and any(grad.abs().max() > 1e-3 for grad in plain.values())
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert bytes_again < 0.7 * bytes_plain


def test_bfloat16_masters_recompute_in_bfloat16(model: Any, tokenizer: Any) -> None:
    plain, _ = gradients(make(model, tokenizer, on=False, critic="detached", tuning="full", dtype="bfloat16"))
    again, _ = gradients(make(model, tokenizer, on=True, critic="detached", tuning="full", dtype="bfloat16"))
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_drops_the_same_once_more(tokenizer: Any) -> None:
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    shape = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    made = GPT2LMHeadModel(GPT2Config(**shape, **ids, resid_pdrop=0.3, embd_pdrop=0.0, attn_pdrop=0.3))
    rows = [TokenRow(tuple(range(5, 5 + length)), 1) for length in (4, 9, 6)]
    found = []
    for on in (False, True):
        cfg = ModelConfig(name="tiny", tuning="full", activation_checkpointing=on)
        backbone = make_backbone(made, tokenizer, cfg)
        backbone.model.requires_grad_(True)
        torch.manual_seed(1)
        loss, _ = CompletionTask(rows, backbone, None).loss(range(3))
        torch.manual_seed(2)  # by the backward pass chance has moved on
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in backbone.model.parameters())])
    for again, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-5)


def test_blocks_are_as_before_afterwards(backbone: Backbone) -> None:
    blocks = backbone.model.get_decoder().layers
    once_more = replace(backbone, recompute=True)
    with once_more.using(None):
        assert all("forward" in vars(block) for block in blocks)
    with pytest.raises(RuntimeError, match="a fault inside"), once_more.using(None):
        raise RuntimeError("a fault inside")
    assert not any("forward" in vars(block) for block in blocks)
    with torch.no_grad(), once_more.using(None):
        assert not any("forward" in vars(block) for block in blocks)


def test_a_decoder_without_a_list_of_blocks_is_refused(backbone: Backbone) -> None:
    decoder = copy.copy(backbone.model.get_decoder())
    decoder._modules = {name: child for name, child in decoder._modules.items() if name != "layers"}
    with pytest.raises(ModelError, match="no single list of blocks"), recomputing(decoder, lambda _block: torch.no_grad()):
        pass


def test_a_backbone_that_is_handed_on_keeps_the_setting(model: Any, tokenizer: Any) -> None:
    on, off = (ModelConfig(name="tiny", activation_checkpointing=flag) for flag in (True, False))
    backbone = make_backbone(model, tokenizer, on)
    assert backbone.merged(None).recompute and backbone.trainable_copy().recompute
    plain = make_backbone(model, tokenizer, off)
    assert not plain.recompute and backbone_of(plain, on).recompute and not backbone_of(plain, off).recompute
