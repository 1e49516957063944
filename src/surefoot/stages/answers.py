"""Models that answer prompts, each with its own tokenizer: what pairs and comparisons are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PromptSet
from surefoot.lm.logits import token_logps
from surefoot.lm.tokens import Codec, Context, joined_rows, pad_right, states_before
from surefoot.types import Completions, Prompts, RolloutEngine


@dataclass(frozen=True, slots=True)
class Author:
    """A model that answers. `prompts` are the common prompts in this model's tokens: row i of all authors is one prompt."""

    name: str
    backbone: Backbone
    engine: RolloutEngine
    prompts: PromptSet

    def take(self, index: range) -> Prompts:
        return self.prompts.take(index, self.backbone.codec.pad_id)

    def answer(self, index: range, chance: torch.Generator) -> Completions:
        """One answer to each of the prompts at `index`."""
        return self.engine.generate(self.take(index), chance)


def reread(completions: Completions, codec: Codec) -> Completions:
    """The same answers in the tokens of another model, by way of their text; `logp_sampler` is not known there and 0."""
    rows = [codec.completion_ids(text, end=bool(end)) for text, end in zip(completions.text, completions.finished, strict=True)]
    ids, mask = pad_right(rows, codec.pad_id)
    return Completions(ids, mask, torch.zeros(ids.shape), completions.finished, completions.text, completions.version)


@torch.no_grad()
def sequence_kl(
    policy: Backbone, reference: Backbone, prompts: Prompts, completions: Completions, temperature: float
) -> list[float]:
    """log pi_theta(y|x) - log pi_SFT(y|x) of each sampled answer: k1, whose mean is KL(policy || SFT), nats a sequence."""
    logps = [_logp(model, prompts, completions, temperature) for model in (policy, reference)]
    return (logps[0] - logps[1]).sum(1).tolist()


def _logp(model: Backbone, prompts: Prompts, completions: Completions, temperature: float) -> Tensor:
    mask, ids = completions.mask.to(model.device), completions.ids.to(model.device)
    context = Context(prompts.ids.to(model.device), prompts.mask.to(model.device), mask)
    rows, prompt_lengths = joined_rows(context, ids, model.codec.pad_id)
    states = states_before(model.hidden(rows, None, lengths=context.lengths), prompt_lengths, ids.shape[1])[:, :-1]
    logp = token_logps(states[mask], ids[mask], model.head(temperature))
    return torch.zeros(mask.shape, device=model.device).masked_scatter(mask, logp).cpu()
