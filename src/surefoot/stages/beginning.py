"""What a run's first rollouts were like, as sums saved with every checkpoint, and what a later rollout is beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from surefoot.diagnostics.attribution import FEATURES, FeatureSums, attribution, feature_sums, movers
from surefoot.diagnostics.prompt_shift import PromptSums, prompt_shift, prompt_sums, shift_words
from surefoot.stages.rollouts import Rollout

WINDOW_UPDATES = 3  # the last rollouts, this one included, in which it is asked what pays: one is a small sample
BASELINE_UPDATES = 2  # the policy is then still close to the SFT model; what they showed is what later updates are compared with

Say = Callable[[int], str]  # a token as text


@dataclass(frozen=True, slots=True)
class Beginning:
    """Sums over the first BASELINE_UPDATES rollouts, None where a checkpoint of an earlier version had none.

    `recent` are those of the answers of later rollouts, each its own, that are still in the window when the next comes.
    """

    answers: FeatureSums | None = None
    prompts: PromptSums | None = None
    recent: tuple[FeatureSums, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        recent = {f"recent{i}": sums for i, sums in enumerate(self.recent)}
        parts = {"answers": self.answers, "prompts": self.prompts, **recent}
        return {f"{name}.{f.name}": getattr(part, f.name) for name, part in parts.items() if part for f in fields(part)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Beginning:
        """Back from a checkpoint, bit for bit."""

        def part(name: str) -> dict[str, Tensor]:
            return {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}

        answers, prompts = part("answers"), part("prompts")
        recent = tuple(FeatureSums(**found) for i in range(WINDOW_UPDATES - 1) if (found := part(f"recent{i}")))
        return cls(FeatureSums(**answers) if answers else None, PromptSums(**prompts) if prompts else None, recent)


@dataclass(frozen=True, slots=True)
class Look:
    """A rollout beside the run's beginning: metrics, and in words what pays, which tokens moved, and what prompts are like."""

    beginning: Beginning
    metrics: Mapping[str, float]
    words: Mapping[str, str]


def looked(beginning: Beginning, seen: Rollout, judgements: Mapping[str, Sequence[float]], update: int, say: Say) -> Look:
    """Compares a rollout with the beginning, or adds it where it is still part of that."""
    mask, given = seen.batch.mask, seen.scores.value
    targets = torch.stack([given.double().cpu(), *(torch.tensor(list(numbers)).double() for numbers in judgements.values())], 1)
    answers = feature_sums(seen.completions.ids, mask, seen.completions.finished, targets)
    prompts = prompt_sums(seen.prompts, seen.prompt_states)
    if update <= BASELINE_UPDATES:
        return Look(_grown(beginning, answers, prompts), {}, {})
    metrics: dict[str, float] = {}
    words: dict[str, str] = {}
    before = beginning.answers
    if before is not None and before.targets.shape == answers.targets.shape and float(answers.count):
        window = [one for one in (*beginning.recent, answers) if one.targets.shape == answers.targets.shape]
        found = attribution(before + reduce(add, window), say)
        metrics |= {f"drift/reward_{name}": share for name, share in zip(FEATURES, found.shares, strict=True)}
        pays = zip(FEATURES, found.words, found.shares, strict=True)
        words |= {f"drift/pays/{name}": what for name, what, share in pays if share > 0}
        moved = movers(before, answers, say)
        metrics["drift/top_mover"] = max((abs(one.z) for one in moved), default=0.0)
        words["drift/top_movers"] = "; ".join(f"{one.token!r} {one.before:.0%} to {one.now:.0%}" for one in moved)
    if beginning.prompts is not None and beginning.prompts.sums.shape == prompts.sums.shape:
        metrics |= {f"drift/prompt_{name}": x for name, x in prompt_shift(beginning.prompts, prompts).items()}
        words["drift/prompts"] = shift_words(beginning.prompts, prompts)
    return Look(replace(beginning, recent=(*beginning.recent, answers)[1 - WINDOW_UPDATES :]), metrics, words)


def _grown(beginning: Beginning, answers: FeatureSums, prompts: PromptSums) -> Beginning:
    return Beginning(
        answers if beginning.answers is None else beginning.answers + answers,
        prompts if beginning.prompts is None else beginning.prompts + prompts,
    )
