"""SDPA as this project calls it: over rows that follow one another without padding, and in float32 where that is faster."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from surefoot.lm.padding_free import FlatRows

NAME = "sdpa_of_rows"


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    flat_rows: FlatRows | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA, the result in the queries' dtype; of `flat_rows` each row by itself, causal, whatever the mask.

    Half-precision queries, keys and values are widened to float32 on a CPU, where the backward pass in half precision takes five
    times as long.
    """
    dtype = query.dtype
    widens = query.device.type == "cpu" and any(x.dtype in (torch.bfloat16, torch.float16) for x in (query, key, value))
    with torch.autocast("cpu", enabled=False) if widens else nullcontext():
        if widens:
            query, key, value, attention_mask = (_widened(x) for x in (query, key, value, attention_mask))
            given = {name: _widened(x) for name, x in given.items()}
        if flat_rows is None:
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        else:
            given["is_causal"] = True
            rectangles = flat_rows.rectangles(query, key, value)
            parts = [sdpa_attention_forward(module, q, k, v, None, **given)[0] for q, k, v in rectangles]
            out = flat_rows.flattened(parts)
    return out.to(dtype), None


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def set_attention(model: Any) -> None:
    """Lets a `model` that attends by SDPA do so through `attend`. Else nothing changes.

    Models that choose what is attended to (`index_topk`) ask for "sdpa" by its name, and keep it.
    """
    if model.config._attn_implementation == "sdpa" and not hasattr(model.config.get_text_config(), "index_topk"):
        model.set_attn_implementation(NAME)
