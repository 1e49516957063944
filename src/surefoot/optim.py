"""The optimizer of a policy and its critic, and how its learning rates move: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .config import OptimizerConfig, PPOConfig
from .errors import ModelError
from .types import ActorCritic

ADAM_EPS = 1e-8
"""torch's default. The 1e-5 of OpenAI's baselines is as large as the gradients of a language model whose loss is a mean over
thousands of tokens, and would turn Adam into plain gradient descent there."""


def lr_share(cfg: OptimizerConfig, step: int, total: int) -> float:
    """The learning rate of step `step` (0 to total - 1) as a share of its peak.

    Warm-up rises linearly and never stands at 0: (step + 1) / (warmup_steps + 1). After it, with p the share of the remaining
    steps that are done: constant 1; linear 1 - p; cosine (1 + cos(pi p)) / 2. The last two end at `lr_min_share` instead of 0,
    reached at step = total and kept from there on, so that the last step that is taken still moves.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / (cfg.warmup_steps + 1)
    progress = min(1.0, (step - cfg.warmup_steps) / max(1, total - cfg.warmup_steps))
    match cfg.lr_scheduler:
        case "constant":
            return 1.0
        case "linear":
            left = 1 - progress
        case "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
    return cfg.lr_min_share + (1 - cfg.lr_min_share) * left


def set_learning_rates(optimizer: torch.optim.Optimizer, cfg: OptimizerConfig, step: int, total: int) -> float:
    """Sets every group to its own peak times `lr_share`, and returns the first group's rate (the policy's).

    The peak is what the group was made with; it stands in the group as `initial_lr`, the key of torch's own schedulers.
    """
    share = lr_share(cfg, step, total)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * share
    return float(optimizer.param_groups[0]["lr"])


def adamw(parameters: Iterable[Any], *, lr: float, weight_decay: float, eps: float = ADAM_EPS) -> torch.optim.AdamW:
    """torch's AdamW, fused: one pass over a weight and its moments, where the default makes one for each term of the formula.

    The fused step takes no mixture of sharded and whole weights; those go one by one.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, eps=eps)
    for group in optimizer.param_groups:
        if (
            len({hasattr(weight, "device_mesh") for weight in group["params"]}) == 1
        ):  # what a DTensor has; a torch may lack the class
            group["fused"] = True
    return optimizer


def make_optimizer(actor_critic: ActorCritic, cfg: PPOConfig, *, eps: float = ADAM_EPS) -> torch.optim.AdamW:
    """One AdamW with two groups, "policy" and "critic": each has its rate, and a step is taken or refused for both at once.

    Frozen weights are left out. The order of the parameters is that of `trainable_names`.

    Raises: ModelError where a trainable weight is in neither group or in both, or is not kept in float32 (a step of 1e-6 of a
    weight vanishes in bfloat16, whose neighbours lie 4e-3 apart).
    """
    policy = [(name, p) for name, p in actor_critic.named_policy_parameters() if p.requires_grad]
    critic = [(name, p) for name, p in actor_critic.named_critic_parameters() if p.requires_grad]
    for name, p in policy + critic:
        if p.dtype not in (torch.float32, torch.float64):
            raise ModelError(f"The trainable weight {name} is {p.dtype}, and must be float32: half precision loses small steps.")
    ids = [id(p) for _, p in policy + critic]
    if len(set(ids)) != len(ids):
        raise ModelError(
            "The policy and the critic name the same weight. Name a shared trunk in named_policy_parameters() alone."
        )
    unnamed = sum(p.requires_grad and id(p) not in set(ids) for p in actor_critic.parameters())
    if unnamed:
        raise ModelError(f"{unnamed} trainable weights belong to neither the policy nor the critic. Name them, or freeze them.")
    critic_rate = cfg.critic_learning_rate or cfg.learning_rate
    groups = [
        {"name": "policy", "params": [p for _, p in policy], "lr": cfg.learning_rate, "initial_lr": cfg.learning_rate},
        {"name": "critic", "params": [p for _, p in critic], "lr": critic_rate, "initial_lr": critic_rate},
    ]
    return adamw(groups, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, eps=eps)


def trainable_names(actor_critic: ActorCritic) -> list[str]:
    """Names of the weights in the order in which `make_optimizer` holds them."""
    both = [*actor_critic.named_policy_parameters(), *actor_critic.named_critic_parameters()]
    return [name for name, p in both if p.requires_grad]
