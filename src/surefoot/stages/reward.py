"""Reward model (8.3.5, second stage): one number an answer, so that the answer people chose gets more."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surefoot.config import Config
from surefoot.core import pair_accuracy, ranking_loss
from surefoot.diagnostics.calibration import accuracy_by_length_gap, accuracy_interval, calibration
from surefoot.diagnostics.report_card import HeldOut
from surefoot.lm.batches import PairRow
from surefoot.lm.roles import RewardScorer
from surefoot.progress import Progress
from surefoot.rewards.ensemble import save_ensemble
from surefoot.rewards.novelty import TrainedOn, trained_on
from surefoot.runs import RunFolder, has_progress
from surefoot.stages.cards import write_card
from surefoot.stages.inputs import digest
from surefoot.stages.supervised import FitStep, Task, fit, total_steps
from surefoot.stages.votes import frozen_votes

Row = tuple[int, ...]
Heed = Callable[[], None]  # raises Interrupted where a stop was asked for


def unheeding() -> None:
    """Where nobody asks for a stop."""


class Features:
    """Frozen states of token rows, computed once and kept in a file: a head is trained without running the trunk again.

    The scorer's scale becomes the deviation of each feature over these rows; `scale` has it for other heads that read them.
    """

    def __init__(
        self, scorer: RewardScorer, rows: Sequence[Row], folder: Path | None, batch_size: int, heed: Heed = unheeding
    ) -> None:
        unique = sorted(set(rows), key=lambda row: (len(row), row))
        self.place = {row: i for i, row in enumerate(unique)}
        width = scorer.backbone.width
        place = folder if folder is not None and folder.is_dir() else None  # from Python the run folder is made later
        with tempfile.NamedTemporaryFile(prefix="features-", dir=place) as file:  # mapped: it goes when the table goes
            self.table = torch.from_file(file.name, shared=True, size=len(unique) * width, dtype=torch.float32).reshape(-1, width)
        with torch.no_grad():
            for start in range(0, len(unique), batch_size):
                heed()
                part = [list(row) for row in unique[start : start + batch_size]]
                self.table[start : start + len(part)] = scorer.features(part).cpu()
            scorer.scale.copy_(self.table.std(0, correction=0).clamp(min=1e-4))
        self.scale = scorer.scale

    def of(self, rows: Sequence[Row]) -> Float[Tensor, "B D"]:
        return self.table[[self.place[row] for row in rows]]


class PairTask(Task, Protocol):
    """Learns from pairs, and scores both answers of each."""

    pairs: Sequence[PairRow]

    def scores(self, items: Sequence[int]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]: ...


class RankingTask:
    """The ranking loss over pairs:

    -t log sigmoid(d) - (1-t) log sigmoid(-d') with margins, plus the pull of `center_coef` to 0.
    """

    def __init__(
        self, pairs: Sequence[PairRow], scorer: RewardScorer, features: Features | None, *, use_margin: bool, center_coef: float
    ) -> None:
        self.pairs, self.scorer, self.features = pairs, scorer, features
        self.use_margin, self.center_coef = use_margin, center_coef

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, item: int) -> int:
        return max(len(self.pairs[item].chosen), len(self.pairs[item].rejected))

    def weight(self, items: Sequence[int]) -> float:
        return float(len(items))

    def scores(self, items: Sequence[int]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(R of the first answers, R of the second), raw."""
        rows = [self.pairs[i].chosen for i in items] + [self.pairs[i].rejected for i in items]
        if self.features is not None:
            both = self.scorer.head(self.features.of(rows).to(self.scorer.backbone.device))
        else:
            both = self.scorer([list(row) for row in rows])
        return both[: len(items)], both[len(items) :]

    def loss(self, items: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        chosen, rejected = self.scores(items)
        return self.losses(items, chosen, rejected).sum(), self.figures(items, chosen, rejected)

    def losses(self, items: Sequence[int], chosen: Tensor, rejected: Tensor) -> Float[Tensor, " B"]:
        """The loss of each pair, given its scores."""
        target = torch.tensor([self.pairs[i].target for i in items], device=chosen.device)
        margin = torch.tensor([self.pairs[i].margin for i in items], device=chosen.device) if self.use_margin else None
        return ranking_loss(chosen, rejected, margin, target) + self.center_coef * (chosen + rejected) ** 2 / 4

    def figures(self, items: Sequence[int], chosen: Tensor, rejected: Tensor) -> dict[str, float]:
        """Sums over the pairs of what is recorded, given their scores."""
        target = torch.tensor([self.pairs[i].target for i in items], device=chosen.device)
        # a vote for the first answer agrees with a share `target` of the voters, a tie with half of them
        agreement = target * pair_accuracy(chosen, rejected) + (1 - target) * pair_accuracy(rejected, chosen)
        both = torch.cat([chosen, rejected]).detach()
        return {
            "accuracy": agreement.sum().item(),
            "margin": (chosen - rejected).sum().item(),
            "mean_reward": both.mean().item() * len(items),
            "min_reward": both.min().item(),
            "max_reward": both.max().item(),
        }


@dataclass(frozen=True, slots=True)
class RewardParts:
    """What reward-model training needs: one scorer, or the members of an ensemble."""

    scorers: tuple[RewardScorer, ...]
    train: PairTask
    validation: PairTask
    parameters: list[tuple[str, nn.Parameter]]

    @property
    def scorer(self) -> RewardScorer:
        """The one scorer, or the first member."""
        return self.scorers[0]


def steps(parts: RewardParts, cfg: Config, folder: RunFolder | None = None) -> Iterator[FitStep]:
    """Yields after every optimiser step, and held-out figures before the first and after the last."""
    yield from fit(parts.train, parts.parameters, cfg.reward, seed=cfg.seed, validation=parts.validation, folder=folder)


@torch.no_grad()
def normalisation(task: PairTask, batch_size: int, heed: Heed = unheeding) -> tuple[float, float]:
    """Mean and deviation of raw scores over the answers trained on, each pair's two."""
    count, mean, squares = 0, 0.0, 0.0
    for start in range(0, len(task), batch_size):
        heed()
        raw = torch.cat(task.scores(range(start, min(start + batch_size, len(task))))).double()
        gap, total = raw.mean().item() - mean, count + len(raw)
        squares += ((raw - raw.mean()) ** 2).sum().item() + gap * gap * count * len(raw) / total  # Chan et al. 1983
        mean, count = mean + gap * len(raw) / total, total
    return mean, max(math.sqrt(squares / max(count, 1)), 1e-6)


@torch.no_grad()
def feature_statistics(
    task: RankingTask, batch_size: int, heed: Heed = unheeding, held_out: RankingTask | None = None
) -> TrainedOn:
    """Mean and covariance of what the head reads of the answers trained on, each once, and quantiles of the held-out ones'
    distances."""
    seen = trained_on(_features(task, batch_size, heed))
    if held_out is None:
        return seen
    return seen.with_held_out([x for part in _features(held_out, batch_size, heed) for x in seen.distances(part).tolist()])


def _features(task: RankingTask, batch_size: int, heed: Heed) -> Iterator[Tensor]:
    """What the head reads of a task's answers, each once, a batch at a time."""
    rows = sorted({row for pair in task.pairs for row in (pair.chosen, pair.rejected)}, key=lambda row: (len(row), row))
    for start in range(0, len(rows), batch_size):
        heed()
        part = rows[start : start + batch_size]
        yield task.scorer.features([list(row) for row in part]) if task.features is None else task.features.of(part)


def held_out_figures(task: PairTask, batch_size: int, heed: Heed = unheeding) -> dict[str, object]:
    """Accuracy on pairs with a preference, its 95 % interval, calibration of sigmoid(R_w - R_l), and accuracy by length gap."""
    from surefoot.stages.reward_card import held_out_pairs

    return figures_of(held_out_pairs(task, batch_size, heed))


def figures_of(held: HeldOut) -> dict[str, object]:
    """The figures of pairs that have been scored."""
    if not len(held):
        return {"num_pairs": 0}
    scores = held.chosen, held.rejected
    accuracy = accuracy_interval(*scores, held.prompts)
    by_gap = accuracy_by_length_gap(*scores, held.chosen_lengths, held.rejected_lengths)
    return {
        "accuracy": accuracy.value,
        "accuracy_interval": accuracy.as_list(),
        "num_pairs": len(held),
        "calibration": calibration(*scores).as_dict(),
        "accuracy_by_length_gap": [
            {"from": gap.low if math.isfinite(gap.low) else None, "accuracy": gap.accuracy.value, "count": gap.accuracy.count}
            for gap in by_gap
        ],
    }


def inputs(parts: RewardParts) -> dict[str, str]:
    """What the run was made from, as hashes for its manifest."""
    rows = {name: digest(task.pairs) for name, task in (("train", parts.train), ("validation", parts.validation))}
    return {"model": parts.scorer.backbone.fingerprint, **rows}


def run(cfg: Config, folder: RunFolder, progress: Progress, **given: Any) -> None:
    from surefoot.build import build_reward
    from surefoot.stages.reward_card import FILE as CARD
    from surefoot.stages.reward_card import held_out_pairs, report_card, write_card_file
    from surefoot.stages.reward_ensemble import first_member, member_facts

    votes = None
    if given.get("train") is None and cfg.reward.store is not None:
        votes = frozen_votes(folder, Path(cfg.reward.store), has_begun=bool(has_progress(folder.path)))
        progress.say(votes.description)
        given["train"] = votes.rows
    parts = build_reward(cfg, folder.path, progress.say, heed=folder.check_stop, **given)
    folder.declare(inputs(parts) | ({"votes": votes.sha256} if votes else {}))
    progress.start("reward", total_steps(len(parts.train), cfg.reward), "steps")
    for step in steps(parts, cfg, folder):
        progress.update(step.step, step.metrics)
    facts = member_facts(parts, cfg, folder.check_stop)
    held = held_out_pairs(parts.validation, cfg.reward.batch_size, folder.check_stop)
    figures, found = figures_of(held), report_card(parts, held, cfg, folder.check_stop)
    if len(facts) == 1 and len(held):
        facts = (replace(facts[0], temperature=found["calibration"]["temperature"]),)
    first, left = first_member(parts.train), first_member(parts.validation)
    seen = feature_statistics(first, cfg.reward.batch_size, folder.check_stop, left)
    backbone = parts.scorer.backbone
    with folder.final() as final:
        save_ensemble(parts.scorers, facts, final)
        seen.save(final)
        write_card_file(final, found)
        write_card(final, "reward", cfg, backbone.source, figures)
    folder.write(CARD, json.dumps(found, indent=2) + "\n")
    for finding in found["verdict"]:
        progress.say(finding["sentence"])
    folder.finish(base=backbone.source, held_out=figures, **({"votes": votes.facts} if votes else {}))
