"""Sampling in this process, with the policy's own weights and a KV cache.

Every row draws from its own column of uniform numbers, so an answer does not depend on which other rows are decoded with it. A
row that ended leaves the batch at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from surefoot.config import RolloutConfig
from surefoot.errors import ConfigError, Diverged
from surefoot.lm.backbone import Backbone
from surefoot.lm.tokens import finished_rows
from surefoot.rollout.sampling import inverse_cdf, restrict
from surefoot.types import Completions, Prompts


class LocalEngine:
    """Samples from `backbone` with `adapter` on (None: the bare backbone)."""

    def __init__(self, backbone: Backbone, cfg: RolloutConfig, *, adapter: str | None) -> None:
        self.backbone, self.cfg, self.adapter = backbone, cfg, adapter
        self.stop_ids = (*backbone.codec.eos_ids, *_stop_ids(backbone, cfg.stop_token))
        self.version = 0

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
        by_length = torch.argsort(prompts.mask.sum(1), stable=True)  # neighbours of like length waste little padding
        for part in by_length.split(self.cfg.batch_size):
            self._decode(prompts, part, uniforms, ids, logp, mask)
        width = int(mask.sum(1).max())
        ids, logp, mask = ids[:, :width], logp[:, :width], mask[:, :width]
        text = tuple(self.backbone.codec.text(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True))
        return Completions(ids, mask, logp, finished_rows(ids, mask, self.stop_ids), text, self.version)

    def _decode(self, prompts: Prompts, part: Tensor, uniforms: Tensor, ids: Tensor, logp: Tensor, mask: Tensor) -> None:
        """Decodes the rows `part` into the given tensors. `alive` are the rows that have not ended, in cache order."""
        device, head = self.backbone.device, self.backbone.head(self.cfg.temperature)
        width = int(prompts.mask[part].sum(1).max())
        tokens = prompts.ids[part][:, prompts.ids.shape[1] - width :].to(device)
        seen = prompts.mask[part][:, prompts.mask.shape[1] - width :].to(device)
        stops = torch.tensor(self.stop_ids, device=device)
        alive, cache = part, DynamicCache(config=self.backbone.model.config)
        with self.backbone.using(self.adapter) as decoder:
            for step in range(self.cfg.response_length):
                position = (seen.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
                attention = None if bool(seen.all()) else seen.long()
                states = decoder(
                    input_ids=tokens, attention_mask=attention, position_ids=position, past_key_values=cache, use_cache=True
                ).last_hidden_state[:, -1]
                logp_all = torch.log_softmax(head.logits(states), dim=-1)
                if bool(logp_all[:, 0].isnan().any()):  # one logit that is not finite makes the whole row NaN
                    raise Diverged(
                        f"the policy's log-probabilities are not finite at token {step + 1} of an answer, so nothing can be "
                        "sampled: its weights have diverged. Lower learning_rate, or set ppo.target_kl."
                    )
                logp_all = restrict(logp_all, self.cfg.top_k, self.cfg.top_p)
                token = inverse_cdf(logp_all, uniforms[alive, step].to(device))
                ids[alive, step] = token.cpu()
                logp[alive, step] = logp_all.gather(1, token[:, None])[:, 0].cpu()
                mask[alive, step] = True
                going = ~torch.isin(token, stops)
                if not bool(going.any()):
                    return
                tokens, seen = token[:, None], torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
                if not bool(going.all()):
                    keep = going.nonzero()[:, 0]
                    alive, tokens, seen = alive[keep.cpu()], tokens[keep], seen[keep]
                    cache.batch_select_indices(keep)

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
