"""Tiny language models, and rollouts written by hand, for tests. Adapters go in place: copy a model first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from surefoot.config import ModelConfig, PPOConfig
from surefoot.lm.backbone import Backbone, from_objects
from surefoot.lm.roles import LanguageActorCritic
from surefoot.lm.tiny import tiny_model, tiny_tokenizer
from surefoot.lm.tokens import Context, pad_left, pad_right
from surefoot.types import Completions, Prompts, Scores

CRITICS: tuple[Literal["detached", "shared", "adapter", "model"], ...] = ("detached", "shared", "adapter", "model")


TEXTS = tuple(
    f"the {noun} {verb} {word} and {other} ."
    for noun in ("film", "plot", "cast", "score", "music", "humor", "script", "ending")
    for verb in ("was", "seemed", "looked", "felt")
    for word, other in (("good", "superb"), ("rather dull", "long"), ("very fine", "moving"), ("awful", "bad"))
)


def make_tokenizer() -> Any:
    return tiny_tokenizer([*TEXTS, "a joy \N{SLIGHTLY SMILING FACE}"])


def make_model(tokenizer: Any) -> Any:
    """A tiny Llama whose distributions are far from flat, so that a wrong state shows."""
    return sharpened(tiny_model(tokenizer, width=32))


def sharpened(model: Any, factor: float = 4.0) -> Any:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(factor)
    return model


def make_backbone(model: Any, tokenizer: Any, cfg: ModelConfig | None = None) -> Backbone:
    """A backbone of a copy of `model`."""
    return from_objects(copy.deepcopy(model), tokenizer, cfg or ModelConfig(name="tiny"))


def make_policy(
    backbone: Backbone,
    *,
    cfg: ModelConfig | None = None,
    critic: Literal["detached", "shared", "adapter", "model"] = "detached",
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    critic_layer: int | None = None,
) -> LanguageActorCritic:
    return LanguageActorCritic(
        backbone,
        cfg or ModelConfig(name="tiny", lora_rank=4),
        critic=critic,
        critic_layer=critic_layer,
        temperature=temperature,
        entropy_gradient=entropy_gradient,
        seed=0,
    )


def moved(policy: LanguageActorCritic, scale: float = 0.3, seed: int = 1) -> LanguageActorCritic:
    """The policy away from its reference, with a critic that has an opinion."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in [*policy.named_policy_parameters(), *policy.named_critic_parameters()]:
            weight.add_(torch.randn(weight.shape, generator=generator) * scale * max(float(weight.std(correction=0)), 0.05))
    return policy


def single_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that their own text becomes again: what `rollout.stop_token` can name."""
    texts = {i: tokenizer.decode([i]) for i in range(3, len(tokenizer))}
    return {i: text for i, text in texts.items() if tokenizer(text, add_special_tokens=False)["input_ids"] == [i]}


def random_rows(backbone: Backbone, count: int, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    """`count` rows of ids without special tokens, of all kinds of lengths."""
    generator = torch.Generator().manual_seed(seed)
    size = backbone.model.get_input_embeddings().weight.shape[0]
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, size, (length,), generator=generator).tolist() for length in lengths]


def make_prompts(rows: Sequence[Sequence[int]], pad_id: int, extra: int = 0) -> Prompts:
    """Prompts of given ids, with `extra` columns of padding on the left."""
    ids, mask = pad_left(rows, pad_id)
    ids, mask = torch.nn.functional.pad(ids, (extra, 0), value=pad_id), torch.nn.functional.pad(mask, (extra, 0))
    names = tuple(f"prompt {i}" for i in range(len(rows)))
    return Prompts(ids, mask, names, names)


def make_completions(
    rows: Sequence[Sequence[int]], pad_id: int, finished: Sequence[bool] | None = None, extra: int = 0
) -> Completions:
    """Answers of given ids, with `extra` columns of padding on the right; all finished unless said otherwise."""
    ids, mask = pad_right(rows, pad_id)
    ids, mask = torch.nn.functional.pad(ids, (0, extra), value=pad_id), torch.nn.functional.pad(mask, (0, extra))
    ends = torch.tensor(list(finished) if finished is not None else [True] * len(rows))
    return Completions(ids, mask, torch.zeros(ids.shape), ends, tuple(f"answer {i}" for i in range(len(rows))), 0)


def make_scores(values: Sequence[float], valid: Sequence[bool] | None = None) -> Scores:
    value = torch.tensor(list(values))
    return Scores(value, {"given": value}, torch.ones(len(value), dtype=torch.bool) if valid is None else torch.tensor(valid))


def context_of(prompts: Prompts, completions: Completions) -> Context:
    return Context(prompts.ids, prompts.mask, completions.mask)


@torch.no_grad()
def their_logp(model: Any, prompt: Sequence[int], answer: Sequence[int], temperature: float = 1.0) -> Tensor:
    """transformers' own log-probs of an answer's tokens: one row, no padding, log-softmax over its logits."""
    row = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0].float() / temperature
    logp = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return logp.gather(1, torch.tensor(list(answer))[:, None])[:, 0]


def plain_ppo(**settings: Any) -> PPOConfig:
    """One epoch of one minibatch, nothing whitened, GAE as plain sums: figures can be checked by hand."""
    chosen: dict[str, Any] = {"lam": 1.0, "whiten_advantages": False, "num_ppo_epochs": 1, "rollout_batch_size": 8}
    return PPOConfig(**(chosen | settings))
