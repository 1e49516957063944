"""SDPA through our own name: transformers' figures, in float32 for half precision on a CPU, and no trace in what is saved."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from surefoot.config import ModelConfig
from surefoot.lm.attention import NAME, attend
from surefoot.lm.backbone import from_objects
from surefoot.rollout.plain import PlainDecoder
from tiny_language import make_backbone, random_rows


def test_models_that_attend_by_sdpa_do_so_through_ours(model: Any, tokenizer: Any) -> None:
    def attends(given: Any) -> str:
        return str(from_objects(given, tokenizer, ModelConfig(name="tiny")).model.config._attn_implementation)

    assert attends(copy.deepcopy(model)) == attends(copy.deepcopy(model).bfloat16()) == NAME
    eager = copy.deepcopy(model).bfloat16()
    eager.set_attn_implementation("eager")
    assert attends(eager) == "eager"
    choosing = copy.deepcopy(model)
    choosing.config.index_topk = 4  # as of DeepSeek V3.2, which looks for "sdpa" by its name
    assert attends(choosing) == "sdpa"


def test_in_float32_it_is_transformers_own() -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 8)
    for mask in (None, torch.ones(5, 5, dtype=torch.bool).tril()):
        module = torch.nn.Module()
        theirs, _ = sdpa_attention_forward(module, q, k, v, mask, scaling=0.3)
        assert torch.equal(attend(module, q, k, v, mask, scaling=0.3)[0], theirs)


def test_queries_and_keys_are_widened_and_the_result_is_narrowed() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, generator=generator).bfloat16() for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    out, _ = attend(torch.nn.Module(), q, k, v, attention_mask=mask, scaling=0.3)
    exact = torch.softmax((q.double() @ k.double().mT * 0.3).masked_fill(~mask, -torch.inf), -1) @ v.double()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.transpose(1, 2), exact.float().bfloat16()), "rounded once, at the end"


@pytest.mark.parametrize("padded", [False, True])
def test_cached_and_padded_rows_are_those_of_a_forward_pass(model: Any, tokenizer: Any, padded: bool) -> None:
    """Prompts of unequal length are padded on the left, and then a mask is needed that the registered name must bring along."""
    backbone = make_backbone(copy.deepcopy(model).bfloat16(), tokenizer)
    rows = random_rows(backbone, 5, 2 if padded else 6, 6)
    decoder = PlainDecoder(backbone, None)
    tokens = torch.tensor([7, 8, 9, 10, 11])
    with torch.no_grad():
        decoder.begin(rows)
        ours = decoder.step(tokens)
        whole = [torch.tensor([[*row, token]]) for row, token in zip(rows, tokens.tolist(), strict=True)]
        theirs = torch.stack([backbone.hidden(ids, None)[0, -1] for ids in whole]).float()
    assert ((ours.float() - theirs).norm(dim=1) / theirs.norm(dim=1)).max() < 0.05


def test_what_is_saved_names_no_attention(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    make_backbone(copy.deepcopy(model).bfloat16(), tokenizer).save(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
