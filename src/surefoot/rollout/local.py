"""Sampling in this process, with the policy's own weights and a KV cache.

Every row draws from its own column of uniform numbers, so an answer does not depend on which other rows are decoded with it. A
row that ended leaves the batch at once, and a waiting prompt takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.config import RolloutConfig
from surefoot.errors import ConfigError, Diverged
from surefoot.lm.backbone import Backbone
from surefoot.lm.tokens import finished_rows
from surefoot.rollout.packed import packed_decoder
from surefoot.rollout.plain import PlainDecoder
from surefoot.rollout.products import Products
from surefoot.rollout.sampling import draw
from surefoot.types import Completions, Prompts

REFILL_SHARE = 4  # waiting prompts are read once a quarter of the places is free: reading one alone costs as much as a step


class Decoder(Protocol):
    """Rows that are being written. `joins` tells whether rows may begin while others are there."""

    joins: bool

    def begin(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "N D"]: ...
    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B D"]: ...
    def keep(self, index: Int[Tensor, " K"]) -> Int[Tensor, " K"]: ...
    def logits(self, states: Float[Tensor, "B D"], temperature: float) -> Float[Tensor, "B V"]: ...


class LocalEngine:
    """Samples from `backbone` with `adapter` on (None: the bare backbone).

    `packs` False decodes through transformers throughout: the obvious path, which any architecture takes that cannot be packed.
    `keeps_states` hands over the states that chose the tokens. `keeps_packed` leaves frozen weights laid out between calls: a
    second copy of them, which saves a part of every call.
    """

    def __init__(
        self,
        backbone: Backbone,
        cfg: RolloutConfig,
        *,
        adapter: str | None,
        packs: bool = True,
        keeps_states: bool = False,
        keeps_packed: bool = False,
    ) -> None:
        self.backbone, self.cfg, self.adapter, self.keeps_states = backbone, cfg, adapter, keeps_states
        self.stop_ids = (*backbone.codec.eos_ids, *_stop_ids(backbone, cfg.stop_token))
        self.version = 0
        self.packs, self._is_known, self._products = packs, False, Products(keeps=keeps_packed)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The weights are the policy's own, so there is nothing to copy: only the version moves."""
        del weights
        self.version = version

    @torch.no_grad()
    def generate(self, prompts: Prompts, generator: torch.Generator) -> Completions:
        """One answer a prompt, of at most response_length tokens. `generator` is the only source of chance.

        Raises: ConfigError (no room in the context); Diverged (a log-probability that is not finite).
        """
        steps, rows = self.cfg.response_length, len(prompts)
        self._check_context(prompts)
        uniforms = torch.rand((rows, steps), generator=generator)
        ids = torch.full((rows, steps), self.backbone.codec.pad_id)
        logp = torch.zeros((rows, steps))
        mask = torch.zeros((rows, steps), dtype=torch.bool)
        kept = None
        if self.keeps_states:
            kept = torch.zeros((rows, steps, self.backbone.width), dtype=self.backbone.model.dtype, device=self.backbone.device)
        self._decode(prompts, uniforms, ids, logp, mask, kept)
        width = int(mask.sum(1).max())
        kept = None if kept is None else kept[:, :width]
        ids, logp, mask = ids[:, :width], logp[:, :width], mask[:, :width]
        text = tuple(self.backbone.codec.text(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True))
        return Completions(ids, mask, logp, finished_rows(ids, mask, self.stop_ids), text, self.version, kept)

    def is_last(self, rows: Int[Tensor, " B"], steps: Int[Tensor, " B"], tokens: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """True where an answer ends with the token that was drawn: `tokens` are those of `rows`, after `steps` others."""
        del rows, steps
        return torch.isin(tokens, torch.tensor(self.stop_ids, device=tokens.device))

    def _decode(self, prompts: Prompts, uniforms: Tensor, ids: Tensor, logp: Tensor, mask: Tensor, kept: Tensor | None) -> None:
        """Writes answers to all prompts into the given tensors. `alive` are the rows being written, in the decoder's order."""
        tokens_of = [row[keep].tolist() for row, keep in zip(prompts.ids, prompts.mask, strict=True)]
        # neighbours of like length waste little padding; the longest first, so that no later prompt needs more room
        waiting = sorted(range(len(prompts)), key=lambda i: -len(tokens_of[i]))
        slots = min(self.cfg.batch_size, len(waiting))
        device = self.backbone.device
        decoder = self._decoder(slots, len(tokens_of[waiting[0]]) + self.cfg.response_length)
        alive = steps = torch.zeros(0, dtype=torch.long)
        tokens = alive.to(device)
        while waiting or len(alive):
            states = [decoder.step(tokens)] if len(alive) else []
            free = slots - len(alive)
            if waiting and (free == slots or (decoder.joins and free * REFILL_SHARE >= slots)):
                entering, waiting = torch.tensor(waiting[:free]), waiting[free:]
                states.append(decoder.begin([tokens_of[i] for i in entering]))
                alive, steps = torch.cat([alive, entering]), torch.cat([steps, torch.zeros_like(entering)])
            chose = torch.cat(states)
            if kept is not None:
                kept[alive.to(device), steps.to(device)] = chose.to(kept.dtype)
            logits = decoder.logits(chose, self.cfg.temperature)
            tokens, chosen = draw(logits, uniforms[alive, steps].to(device), top_k=self.cfg.top_k, top_p=self.cfg.top_p)
            chosen = chosen.cpu()
            if bool(chosen.isnan().any()):  # one logit that is not finite makes the whole row NaN
                first = int(steps[chosen.isnan()][0]) + 1
                raise Diverged(
                    f"the policy's log-probabilities are not finite at token {first} of an answer, so nothing can be sampled: "
                    "its weights have diverged. Lower learning_rate, or set ppo.target_kl."
                )
            ids[alive, steps], logp[alive, steps], mask[alive, steps] = tokens.cpu(), chosen, True
            steps = steps + 1
            going = (steps < self.cfg.response_length) & ~self.is_last(alive, steps - 1, tokens).cpu()
            if not bool(going.all()):
                order = decoder.keep(going.nonzero()[:, 0].to(device))
                alive, steps, tokens = alive[order.cpu()], steps[order.cpu()], tokens[order]

    def _decoder(self, slots: int, capacity: int) -> Decoder:
        """A packed decoder where this model has one, of the weights as they are now."""
        if self.packs:
            packed = packed_decoder(
                self.backbone, self.adapter, slots=slots, capacity=capacity, is_known=self._is_known, products=self._products
            )
            self.packs = self._is_known = packed is not None
            if packed is not None:
                return packed
            self._products = Products()  # what was laid out to find that it gives something else
        return PlainDecoder(self.backbone, self.adapter)

    def _check_context(self, prompts: Prompts) -> None:
        longest, context = int(prompts.mask.sum(1).max()), self.backbone.codec.context
        if longest + self.cfg.response_length > context:
            raise ConfigError(
                f"rollout.response_length = {self.cfg.response_length} after a prompt of {longest} tokens passes the model's "
                f"context of {context}. Use at most {max(context - longest, 0)}, or shorter prompts."
            )


def _stop_ids(backbone: Backbone, tokens: Sequence[str]) -> list[int]:
    out = []
    for token in tokens:
        ids = backbone.codec.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ConfigError(f"rollout.stop_token = {token!r} is {len(ids)} tokens of this model. Name a single token.")
        out.append(ids[0])
    return out
