"""A decoder for sampling through transformers' own forward: the obvious path, for any architecture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from surefoot.lm.backbone import Backbone
from surefoot.lm.tokens import pad_left


class PlainDecoder:
    """Rows that are being written, padded on the left so that all append at one column: they begin together."""

    joins = False

    def __init__(self, backbone: Backbone, adapter: str | None) -> None:
        self.backbone, self.adapter = backbone, adapter
        self.cache = DynamicCache(config=backbone.model.config)
        self.seen = torch.zeros(0, 0, dtype=torch.bool, device=backbone.device)

    def begin(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "N D"]:
        """Reads prompts; the states after their last tokens."""
        ids, seen = pad_left(rows, self.backbone.codec.pad_id)
        self.cache, self.seen = DynamicCache(config=self.backbone.model.config), seen.to(self.backbone.device)
        return self._forward(ids.to(self.backbone.device))

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Appends a token to every row; the states after it."""
        self.seen = torch.cat([self.seen, torch.ones_like(self.seen[:, :1])], dim=1)
        return self._forward(tokens[:, None])

    def keep(self, index: Int[Tensor, " K"]) -> Int[Tensor, " K"]:
        """Drops all rows but `index` and tells the new order."""
        self.seen = self.seen[index]
        self.cache.batch_select_indices(index)
        return index

    def logits(self, states: Float[Tensor, "B D"], temperature: float) -> Float[Tensor, "B V"]:
        """Logits at `temperature`, float32."""
        return self.backbone.head(temperature).logits(states)

    def _forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        position = (self.seen.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        attention = None if bool(self.seen.all()) else self.seen.long()
        with self.backbone.using(self.adapter) as decoder:
            states: Tensor = decoder(
                input_ids=tokens, attention_mask=attention, position_ids=position, past_key_values=self.cache, use_cache=True
            ).last_hidden_state
        return states[:, -1]
