"""Surefoot's side of work W: `python -m ppo_iteration_parts.ours '{"work": {...}, "tuning": "lora", ...}'`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from ppo_iteration_parts.work import Work
from surefoot.config import Config
from surefoot.launch import keep_freed_memory, set_threads
from surefoot.lm.backbone import load_backbone, resolve
from surefoot.lm.batches import PromptSet
from surefoot.lm.data import PromptRow
from surefoot.lm.roles import LanguageActorCritic, RewardScorer
from surefoot.rewards.model import RewardFacts, SeparateRewardModel, SharedRewardModel
from surefoot.rollout.local import LocalEngine
from surefoot.runtime.single import SingleRuntime
from surefoot.stages import ppo_lm
from turn_parts.child import forget_peak, held_gib, say, wait_for_turn

MODEL = {"name": "model", "tuning": "tuning", "dtype": "dtype", "lora_layers": "lora_layers"}


class Split:
    """Seconds of forward passes and optimiser steps within the update; the rest of it is the backward pass."""

    def __init__(self) -> None:
        self.seconds = {"forward": 0.0, "optimiser": 0.0}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                if torch.is_grad_enabled() or name == "optimiser":
                    self.seconds[name] += time.perf_counter() - start

        return wrapped

    def taken(self) -> dict[str, float]:
        out, self.seconds = self.seconds, {"forward": 0.0, "optimiser": 0.0}
        return out


def main() -> None:
    asked = json.loads(sys.argv[1])
    set_threads(asked["threads"])
    work = Work(**asked["work"])
    full = asked["tuning"] == "full"
    cfg = Config.model_validate(
        {
            "model": {name: asked[key] for name, key in MODEL.items()},
            "rollout": {"response_length": work.response, "batch_size": work.rows},
            "ppo": {
                "rollout_batch_size": work.rows,
                "micro_batch_size": work.micro_batch,
                "num_ppo_epochs": 1,
                "total_episodes": work.rows * 10_000,
                "critic": "model" if full else "detached",
                "cliprange_value": 0.2,
                "old_logprobs": asked["old_logprobs"],
            },
        }
    )
    backbone = load_backbone(cfg.model, asked["device"])
    scored: SeparateRewardModel | SharedRewardModel
    if full:
        separate = AutoModelForSequenceClassification.from_pretrained(
            resolve(cfg.model.name), num_labels=1, dtype=getattr(torch, asked["dtype"]), pad_token_id=backbone.codec.pad_id
        )
        scored = SeparateRewardModel(
            separate.to(asked["device"]).eval().requires_grad_(False), backbone.codec, RewardFacts(), work.rows, reads_ids=True
        )
    else:
        scored = SharedRewardModel(
            RewardScorer(backbone, layer=asked["reward_layer"], adapter=None, seed=0), RewardFacts(), work.rows
        )
    policy = LanguageActorCritic(backbone, cfg.model, critic=cfg.ppo.critic, temperature=1.0, entropy_gradient=False, seed=0)
    if asked.get("compiled"):
        policy.backbone.model.get_decoder().compile(dynamic=True)
    keeps = cfg.ppo.old_logprobs == "sampled"
    engine = LocalEngine(policy.backbone, cfg.rollout, adapter=policy.policy_adapter, keeps_states=keeps, keeps_packed=True)
    engine.stop_ids = (-1,)  # no token ends an answer
    rows = work.prompts(backbone.model.config.vocab_size)
    names = [f"prompt {i}" for i in range(work.rows)]
    prompts = PromptSet(tuple(map(tuple, rows)), tuple(PromptRow(name, name, {}) for name in names), 0)
    parts = ppo_lm.PPOParts(policy, engine, scored, prompts, runtime=SingleRuntime(asked["device"]))
    split = Split()
    policy.forward = split.timed("forward", policy.forward)  # type: ignore[method-assign]
    parts.runtime.step = split.timed("optimiser", parts.runtime.step)  # type: ignore[method-assign]
    forget_peak()
    say(ready=True, threads=torch.get_num_threads(), held_gib=held_gib())
    keep_freed_memory()  # after what is held was told: loading leaves pages that are nobody's
    steps = ppo_lm.steps(parts, cfg)
    while True:
        wait_for_turn()
        start, cpu = time.perf_counter(), time.process_time()
        step = next(steps)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        inner = split.taken()
        stages = {name: step.seconds[name] for name in ("rollout", "reward", "evaluate")} | inner
        stages["backward"] = step.seconds["update"] - sum(inner.values())
        stages["other"] = seconds - sum(stages.values())
        tokens = int(step.rollout.batch.mask.sum())
        say(seconds=seconds, cpu=cpu, stages=stages, tokens=tokens, loss=step.stats.loss_total, skipped=step.stats.skipped)


if __name__ == "__main__":
    main()
