"""Looks at a policy while PPO trains it: every few updates it answers the same held-out prompts, and is scored and judged.

A look draws from a generator of its own, the same one each time, and moves nothing: a run with looks ends with the weights of one
without. It stands before the update's checkpoint, so a resumed run has each look once, and the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from surefoot.config import Config
from surefoot.diagnostics.text import distinct_n
from surefoot.errors import RewardError
from surefoot.lm.batches import PromptSet
from surefoot.lm.roles import LanguageActorCritic
from surefoot.stages.judging import Judge, judged
from surefoot.stages.rollouts import RunningDeviation, rollout
from surefoot.types import RewardSource, RolloutEngine

SEEDS_APART = 7_919  # as in an evaluation of the same seed: both sample with the same uniform numbers


@dataclass(frozen=True, slots=True)
class HeldOutPlan:
    """What is looked at and how often. `stop_kl`, nats a sequence: the run ends at the first look beyond it."""

    prompts: Any
    judges: Mapping[str, Judge]
    num_prompts: int
    every: int
    stop_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """Means over the prompts, as metrics, and a row for each prompt."""

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    is_far: bool


class HeldOut:
    """The held-out prompts of a run of PPO."""

    def __init__(self, plan: HeldOutPlan, prompts: PromptSet, cfg: Config) -> None:
        self.plan, self.prompts, self._seed, self._size = plan, prompts, cfg.seed, cfg.rollout.batch_size
        # the exact KL of each token's distribution, which scatters less than the log-prob of the token that was drawn
        self._ppo = cfg.ppo.model_copy(update={"kl_estimator": "exact", "kl_in": "reward", "objective": "clip"})

    def is_due(self, update: int, total: int) -> bool:
        return update % self.plan.every == 0 or update == total

    def look(self, policy: LanguageActorCritic, engine: RolloutEngine, reward: RewardSource, heed: Callable[[], None]) -> Look:
        """One sampled answer to each prompt at the run's temperature. `heed` may raise between two batches.

        `held_out/kl` is the mean over answers of sum_t KL(pi_theta(.|y_<t) || pi_SFT(.|y_<t)), an unbiased estimate of
        KL(pi_theta || pi_SFT) in nats a sequence that is never negative.

        Raises: RewardError where an answer has no score.
        """
        rows: list[dict[str, Any]] = []
        total = min(self.plan.num_prompts, len(self.prompts))
        for start in range(0, total, self._size):
            heed()
            prompts = self.prompts.take(range(start, min(start + self._size, total)), policy.backbone.codec.pad_id)
            completions = engine.generate(prompts, torch.Generator().manual_seed(self._seed * SEEDS_APART + start))
            heed()
            scores = reward.score(prompts, completions)
            if not bool(scores.valid.all()):
                raise RewardError(
                    f"{int((~scores.valid).sum())} of {len(prompts)} answers to held-out prompts have no score, so that their "
                    "mean is none of the policy's. Let the reward score every answer."
                )
            seen = rollout(policy, prompts, completions, scores, self._ppo, kl_coef=0.0, running=RunningDeviation())
            said = judged(self.plan.judges, prompts.text, completions.text)
            rows += [
                {
                    "held_out": True,
                    "prompt": prompts.text[i],
                    "completion": completions.text[i],
                    "score": round(float(scores.value[i]), 6),
                    "kl": round(float(seen.sequence_kl[i]), 6),
                    "length": int(completions.mask[i].sum()),
                    "finished": bool(completions.finished[i]),
                    "judges": {name: round(numbers[i], 6) for name, numbers in said.items()},
                }
                for i in range(len(prompts))
            ]
        metrics = {f"held_out/{key}": _mean([row[key] for row in rows]) for key in ("kl", "score", "length")}
        metrics["held_out/distinct_2"] = distinct_n([row["completion"] for row in rows], 2)
        metrics |= {f"held_out/judge/{name}": _mean([row["judges"][name] for row in rows]) for name in self.plan.judges}
        return Look(metrics, rows, self.plan.stop_kl is not None and metrics["held_out/kl"] > self.plan.stop_kl)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
