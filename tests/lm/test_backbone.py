"""Backbones and adapters: what is refused, and that several adapters on one model leave each other alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surefoot.build import build_evaluate
from surefoot.config import Config, ModelConfig
from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.lm.adapters import add_adapter
from surefoot.lm.backbone import Backbone, load_backbone
from surefoot.lm.plan import model_sizes
from surefoot.lm.roles import RewardScorer
from surefoot.lm.tiny import tiny_model, tiny_tokenizer
from tiny_language import TEXTS, context_of, make_backbone, make_completions, make_policy, make_prompts, moved, random_rows


class _CappedHead(nn.Linear):
    """A head whose logits are capped, as Gemma 2's are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 0.1 * torch.tanh(super().forward(input) / 0.1)


def test_a_head_that_is_not_linear_is_refused(model: Any, tokenizer: Any) -> None:
    capped = copy.deepcopy(model)
    size, width = capped.lm_head.weight.shape
    capped.lm_head = _CappedHead(width, size, bias=False)
    with pytest.raises(ModelError, match="more than a linear head"):
        make_backbone(capped, tokenizer)


def test_a_tokenizer_without_eos_is_refused(model: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(ModelError, match="has no EOS token"):
        make_backbone(model, bare)


def test_every_eos_of_the_generation_config_ends_an_answer(model: Any, tokenizer: Any) -> None:
    for given, expected in ((7, (2, 7)), ([9, 2, 7], (2, 9, 7)), (2, (2,)), (None, (2,))):
        one = copy.deepcopy(model)
        one.generation_config.eos_token_id = given
        assert make_backbone(one, tokenizer).codec.eos_ids == expected


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    make_backbone(model, tokenizer).save(folder)
    return folder


def test_weights_that_are_cut_short_or_missing_are_refused_and_none_are_made_up(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", model, tokenizer)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-100], b"", b"weights"):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"model\.name = '.*' cannot be loaded as a causal language model: \w"):
            load_backbone(ModelConfig(name=str(folder)))
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] + 1}))
    layer = f"model.layers.{config['num_hidden_layers']}"
    with pytest.raises(ModelError, match=rf"lacks 9 of the tensors that its config\.json asks for, {layer}\.\S+ for one"):
        load_backbone(ModelConfig(name=str(folder)))


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": "many"}, {"num_attention_heads": 0}, {"hidden_size": None}, {"vocab_size": -3}], ids=str
)
def test_a_configuration_that_no_model_can_have_is_one_line(
    change: dict[str, Any], model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", model, tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for read in (model_sizes, load_backbone):
        with pytest.raises(ModelError, match=r"^model\.name = .*: "):
            read(ModelConfig(name=str(folder)))


def test_what_a_chat_template_refuses_is_told_with_the_prompt(model: Any, tokenizer: Any) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    codec = make_backbone(model, strict).codec
    with pytest.raises(DataError, match=r"chat template refuses the prompt .*Hi.*: roles must alternate\. Mend either"):
        codec.prompt_ids([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "name, words",
    [("./nowhere", "no such folder"), ("a/b/c", "no such folder"), ("file", "is a file"), ("empty", "holds no weights")],
)
def test_a_model_that_cannot_be_found_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    with pytest.raises(ModelError, match=words) as caught:
        load_backbone(ModelConfig(name=name))
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_does_not_exist_is_refused(backbone: Backbone, layer: int) -> None:
    if layer == 0:
        assert RewardScorer(backbone, layer=None, adapter=None, seed=0).layer == 2
        return
    with pytest.raises(ModelError, match="The model has layers 1 to 2"):
        RewardScorer(backbone, layer=layer, adapter=None, seed=0)


def test_an_adapter_is_added_once(backbone: Backbone) -> None:
    add_adapter(backbone.model, "policy", ModelConfig(name="tiny"), seed=0)
    with pytest.raises(ModelError, match="carries an adapter 'policy' already"):
        add_adapter(backbone.model, "policy", ModelConfig(name="tiny"), seed=0)


def test_an_adapter_is_not_wider_than_the_model(backbone: Backbone) -> None:
    width = backbone.width
    with pytest.raises(ModelError, match=f"model.lora_rank = {width + 1} is more than the model's width of {width}"):
        add_adapter(backbone.model, "policy", ModelConfig(name="tiny", lora_rank=width + 1), seed=0)
    add_adapter(backbone.model, "policy", ModelConfig(name="tiny", lora_rank=width), seed=0)


def test_adapters_on_the_last_blocks_leave_the_others_bare(backbone: Backbone) -> None:
    with pytest.raises(ModelError, match="the model has 2 blocks"):
        add_adapter(backbone.model, "policy", ModelConfig(name="tiny", lora_layers=3), seed=0)
    add_adapter(backbone.model, "policy", ModelConfig(name="tiny", lora_layers=1), seed=0)
    names = [name for name, _ in backbone.model.named_parameters() if "lora_" in name]
    assert names and all(".layers.1." in name for name in names)


def test_a_graph_that_one_adapter_built_keeps_its_gradients_while_others_run(backbone: Backbone) -> None:
    policy = moved(make_policy(backbone, critic="adapter"))
    answers = make_completions(random_rows(backbone, 3, 2, 6), 0)
    context = context_of(make_prompts([[3], [4], [5]], 0), answers)
    seen = policy.evaluate(context, answers.ids)
    policy.reference(context, answers.ids)
    (seen.logp.sum() + seen.values.sum()).backward()
    for _, weight in [*policy.named_policy_parameters(), *policy.named_critic_parameters()]:
        assert weight.requires_grad and weight.grad is not None and weight.grad.abs().max() > 0


def test_roles_on_one_backbone_do_not_see_each_others_adapters(backbone: Backbone) -> None:
    scorer = RewardScorer(backbone, layer=1, adapter=None, seed=0)
    rows = random_rows(backbone, 4, 2, 9)
    before = scorer(rows).detach()
    policy = moved(make_policy(backbone, critic="adapter"))
    answers = make_completions(rows, 0)
    policy.evaluate(context_of(make_prompts([[3]] * 4, 0), answers), answers.ids)
    assert torch.equal(scorer(rows), before)


def test_a_copy_to_train_is_in_float32_and_computes_as_the_original(model: Any, tokenizer: Any) -> None:
    half = make_backbone(copy.deepcopy(model).bfloat16(), tokenizer, ModelConfig(name="tiny", dtype="bfloat16"))
    whole = half.trainable_copy()
    assert whole.model.dtype == torch.float32 and whole.autocast == torch.bfloat16 and half.model.dtype == torch.bfloat16
    row = torch.tensor([half.codec.prompt_ids("the film was")])
    assert torch.allclose(whole.hidden(row, None).float(), half.hidden(row, None).float(), atol=0.1)
    assert make_backbone(model, tokenizer).trainable_copy().autocast is None


def test_two_models_with_different_tokenizers_are_not_compared(model: Any, tokenizer: Any) -> None:
    other = tiny_tokenizer(TEXTS[:20], vocabulary=300)
    pair = (tiny_model(other, width=32), other)
    with pytest.raises(ConfigError, match="different tokenizers"):
        build_evaluate(Config(), lambda line: None, model=(copy.deepcopy(model), tokenizer), against=pair, prompts=["the film"])
