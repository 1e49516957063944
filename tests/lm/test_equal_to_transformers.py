"""The shown figures: float32 log-probs and scores are those of transformers, before export and after, on three architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from surefoot.config import ModelConfig
from surefoot.lm.adapters import add_adapter
from surefoot.lm.roles import RewardScorer
from surefoot.rewards.model import RewardFacts, load_reward_model, save_reward_model
from tiny_language import (
    context_of,
    make_backbone,
    make_completions,
    make_policy,
    make_prompts,
    moved,
    random_rows,
    sharpened,
)

ARCHITECTURES = ("llama tied", "llama untied", "qwen2 untied", "gpt2")


def _model(kind: str, size: int) -> Any:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 96,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        match kind:
            case "llama tied":
                made: Any = LlamaForCausalLM(LlamaConfig(**shape, **ids, tie_word_embeddings=True))
            case "llama untied":
                made = LlamaForCausalLM(LlamaConfig(**shape, **ids, tie_word_embeddings=False))
            case "qwen2 untied":
                made = Qwen2ForCausalLM(Qwen2Config(**shape, **ids, tie_word_embeddings=False))
            case _:
                config = GPT2Config(vocab_size=size, n_embd=32, n_layer=3, n_head=4, n_positions=96, **ids)
                made = GPT2LMHeadModel(config)
    return sharpened(made.eval())


@torch.no_grad()
def _their_logp(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """A batch as transformers' own users run it: padded on the left, with an attention mask and positions that follow it."""
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    width, longest = max(map(len, rows)), max(map(len, answers))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logp = torch.log_softmax(model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.float(), dim=-1)
    taken = logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    out = torch.zeros(len(rows), longest)
    for i, answer in enumerate(answers):
        out[i, : len(answer)] = taken[i, -len(answer) :]
    return out


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_log_probs_equal_transformers_whatever_the_padding_and_after_export(
    tokenizer: Any, tmp_path: Path, kind: str, tuning: Any
) -> None:
    model = _model(kind, len(tokenizer))
    cfg = ModelConfig(name="tiny", tuning=tuning)
    policy = make_policy(make_backbone(model, tokenizer, cfg), cfg=cfg)
    prompts, answers = random_rows(policy.backbone, 6, 1, 20, seed=1), random_rows(policy.backbone, 6, 1, 15, seed=2)

    def ours(extra: int) -> torch.Tensor:
        completions = make_completions(answers, 0)
        return policy.evaluate(context_of(make_prompts(prompts, 0, extra), completions), completions.ids).logp.detach()

    expected = _their_logp(model, prompts, answers)
    for extra in (0, 11):
        assert (ours(extra) - expected).abs().max() < 1e-4
    moved(policy)
    assert (ours(0) - expected).abs().max() > 0.1
    policy.backbone.save(tmp_path, merge=policy.policy_adapter)
    final = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(final) is type(model) and not any("lora" in name for name in final.state_dict())
    assert (_their_logp(final, prompts, answers) - ours(0)).abs().max() < 1e-4
    merged = policy.backbone.merged(policy.policy_adapter).model
    assert (_their_logp(merged, prompts, answers) - ours(0)).abs().max() < 1e-4
    assert policy.backbone.codec.has_ids_of(AutoTokenizer.from_pretrained(tmp_path))  # Qwen2's adds a token of its own
    assert final.config.pad_token_id == 0 != final.config.eos_token_id


@pytest.mark.parametrize("adapter", [None, "reward"])
@pytest.mark.parametrize("layer", [1, 2, None])
@pytest.mark.parametrize("kind", ["llama tied", "qwen2 untied", "gpt2"])
def test_scores_equal_transformers_after_export_whatever_the_layer(
    tokenizer: Any, tmp_path: Path, kind: str, layer: int | None, adapter: str | None
) -> None:
    backbone = make_backbone(_model(kind, len(tokenizer)), tokenizer)
    if adapter:
        add_adapter(backbone.model, adapter, ModelConfig(name="tiny"), seed=0)
        with torch.no_grad():
            for name, weight in backbone.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    scorer = RewardScorer(backbone, layer=layer, adapter=adapter, seed=0)
    scorer.scale.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    prompts, answers = random_rows(backbone, 6, 1, 20, seed=1), [[*row, 2] for row in random_rows(backbone, 6, 1, 15, seed=2)]
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    ours = scorer(rows).detach()
    save_reward_model(scorer, RewardFacts("adapter" if adapter else "head", scorer.layer, "", 0.5, 2.0), tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.num_labels == 1 and theirs.config.num_hidden_layers == (layer or 3)
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    assert (theirs(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, 0] - ours).abs().max() < 1e-4
    assert ours.std() > 0.05
    source = load_reward_model(tmp_path, backbone, 4, may_share=True)
    found = source.score(make_prompts(prompts, 0), make_completions(answers, 0)).value
    assert (found - (ours - 0.5) / 2.0).abs().max() < 1e-4
    if layer is not None:
        deeper = RewardScorer(backbone, layer=None, adapter=adapter, seed=0)
        assert (deeper(rows) - ours).abs().max() > 0.01
