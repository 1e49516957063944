"""Several reward models as one (Coste et al. 2023): they agree where they were taught, and less where the policy wanders off.

A folder of an ensemble holds `ensemble.json` and member-1, member-2, ...: each a reward model that loads on its own. Where
members are heads on the same states, the folder itself is one too, their mean. Scores are normalised by each member's own mean
and deviation before they are put together: the ranking loss leaves a score's zero open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.config import RewardSourceConfig
from surefoot.errors import ConfigError, ModelError
from surefoot.lm.backbone import Backbone
from surefoot.lm.roles import RewardScorer
from surefoot.rewards.model import (
    SIDECAR,
    RewardFacts,
    SeparateRewardModel,
    SharedRewardModel,
    load_reward_model,
    measured,
    normalised,
    save_reward_model,
    shared_raw,
)
from surefoot.rewards.novelty import TrainedOn
from surefoot.types import Completions, Prompts, Scores

FILE = "ensemble.json"
Rule = Literal["mean", "min", "mean_minus_std"]
Member = SharedRewardModel | SeparateRewardModel


def combined(each: Float[Tensor, "K B"], rule: Rule, k: float) -> Float[Tensor, " B"]:
    """One score of K members': their mean, the smallest, or mean - k std. std is that of the population (divided by K)."""
    match rule:
        case "mean":
            return each.mean(0)
        case "min":
            return each.amin(0)
        case "mean_minus_std":
            return each.mean(0) - k * each.std(0, correction=0)


class EnsembleReward:
    """Members' scores put together by `rule`. Heads that read one layer of one trunk share its pass.

    `Scores.parts` holds each member's score, their mean, and their standard deviation as "disagreement": where it is high, the
    members were taught nothing that they share, and a vote of a person tells most.
    """

    def __init__(self, members: Sequence[Member], rule: Rule, k: float = 1.0) -> None:
        self.members, self.rule, self.k = tuple(members), rule, k

    @torch.no_grad()
    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        """Scores a batch. Raises ModelError where a member gives a score that is not finite."""
        each, distance = self.each(prompts, completions)
        parts = {f"member_{i + 1}": row for i, row in enumerate(each)}
        parts |= {"ensemble_mean": each.mean(0), "disagreement": each.std(0, correction=0)}
        value = combined(each, self.rule, self.k)
        scores = Scores(value=value, parts=parts, valid=torch.ones_like(value, dtype=torch.bool))
        return measured(scores, distance, self.members[0].trained_on)

    def each(self, prompts: Prompts, completions: Completions) -> tuple[Float[Tensor, "K B"], Float[Tensor, " B"] | None]:
        """Every member's scores, normalised, in the members' order; and the answers' distances by the first member's trunk."""
        found: dict[int, Tensor] = {}
        distance: Tensor | None = None
        for i, member in enumerate(self.members):
            if i in found:
                continue
            if isinstance(member, SeparateRewardModel):
                scored = member.score(prompts, completions)
                found[i], distance = scored.value, scored.distance if i == 0 else distance
                continue
            alike = [j for j, other in enumerate(self.members) if isinstance(other, SharedRewardModel) and _alike(member, other)]
            heads = [self.members[j] for j in alike]
            scorers = [head.scorer for head in heads if isinstance(head, SharedRewardModel)]
            raw, far = shared_raw(scorers, prompts, completions, member)
            distance = far if i == 0 else distance
            found |= {j: normalised(raw[n], self.members[j].facts) for n, j in enumerate(alike)}
        return torch.stack([found[i] for i in range(len(self.members))]), distance


def _alike(one: SharedRewardModel, other: SharedRewardModel) -> bool:
    """Whether two heads read the same states."""
    a, b = one.scorer, other.scorer
    return a.backbone is b.backbone and a.adapter == b.adapter and a.layer == b.layer


def mean_head(scorers: Sequence[RewardScorer], facts: Sequence[RewardFacts]) -> tuple[RewardScorer, RewardFacts] | None:
    """The mean of members' normalised scores as one head, in the members' mean unit: each is linear in the same states.

    None where members read other states: another layer, an adapter of their own.
    """
    first = scorers[0]
    if any(other.backbone is not first.backbone or other.adapter or other.layer != first.layer for other in scorers):
        return None
    head, unit = RewardScorer(first.backbone, layer=first.layer, adapter=None, seed=0), fmean(own.deviation for own in facts)
    weights = [scorer.weight * (unit / own.deviation) for scorer, own in zip(scorers, facts, strict=True)]
    head.score.weight.data.copy_(torch.stack(weights).mean(0))
    return head, replace(facts[0], mean=fmean(own.mean * unit / own.deviation for own in facts), deviation=unit)


def save_ensemble(scorers: Sequence[RewardScorer], facts: Sequence[RewardFacts], folder: Path) -> None:
    """One reward model as it is; several as members, each of which AutoModelForSequenceClassification loads, and their mean."""
    for name in (FILE, SIDECAR, "config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)  # of what was saved here before
    if len(scorers) == 1:
        save_reward_model(scorers[0], facts[0], folder)
        return
    names = [f"member-{i + 1}" for i in range(len(scorers))]
    for name, scorer, own in zip(names, scorers, facts, strict=True):
        save_reward_model(scorer, own, folder / name)
    if (mean := mean_head(scorers, facts)) is not None:
        save_reward_model(*mean, folder)
    (folder / FILE).write_text(json.dumps({"members": names}, indent=2) + "\n", encoding="utf-8")


def load_reward(
    folder: Path, backbone: Backbone, cfg: RewardSourceConfig, *, may_share: bool
) -> SharedRewardModel | SeparateRewardModel | EnsembleReward:
    """The reward model or the ensemble in `folder`.

    Raises:
        ModelError: the ensemble's file is damaged or names a member that is not there.
    """
    if not (folder / FILE).exists():
        return load_reward_model(folder, backbone, cfg.batch_size, may_share=may_share)
    members = [load_reward_model(folder / name, backbone, cfg.batch_size, may_share=may_share) for name in _members(folder)]
    members[0].trained_on = TrainedOn.load(folder)  # the first member's features were measured
    return EnsembleReward(members, cfg.ensemble, cfg.ensemble_k)


def refuse_idle_rule(cfg: RewardSourceConfig) -> None:
    """Raises ConfigError where a rule for members is set and no source has members. Looks at names alone; loads nothing."""
    if cfg.ensemble != "mean" and cfg.every and not any(os.path.isfile(os.path.join(source, FILE)) for source in cfg.every):
        raise ConfigError(
            f"reward_source.ensemble = {cfg.ensemble!r} has no effect: {' + '.join(cfg.every)} holds no ensemble. "
            "Train one with `surefoot reward --reward.ensemble 4`, or remove the setting."
        )


def _members(folder: Path) -> list[str]:
    path = folder / FILE
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["members"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no list of members. Train the ensemble again.") from error
    if not isinstance(names, list) or not names or not all(_is_member(folder, name) for name in names):
        raise ModelError(f"{path} names members that are no folders beside it: {str(names)[:80]}. Train the ensemble again.")
    return names


def _is_member(folder: Path, name: object) -> bool:
    return isinstance(name, str) and name.startswith("member-") and "/" not in name and (folder / name).is_dir()
