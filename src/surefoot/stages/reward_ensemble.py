"""K reward models trained side by side, so that where they disagree can be seen: heads on one trunk, or adapters.

Members differ in their first weights, in their pairs (each learns from a bootstrap of them: N pairs drawn from N with
replacement, as counts), and, where layers are named, in the layer that they read. They share nothing that is trained, so
one optimiser and one loss, the mean of theirs, trains each as if it were alone, but for the clip of the common gradient norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from surefoot.config import Config
from surefoot.lm.adapters import add_adapter
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PairRow
from surefoot.lm.roles import RewardScorer
from surefoot.rewards.model import RewardFacts
from surefoot.stages.reward import Features, Heed, PairTask, RankingTask, RewardParts, normalisation, unheeding

SEEDS_APART = 7_919  # between the seeds of two members


class EnsembleTask:
    """The mean of the members' ranking losses, each over its own bootstrap; scores are the mean of the members' scores."""

    def __init__(self, members: Sequence[RankingTask], counts: Int[Tensor, "K N"]) -> None:
        self.members, self.counts, self.pairs = tuple(members), counts, members[0].pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, item: int) -> int:
        return self.members[0].length(item)

    def weight(self, items: Sequence[int]) -> float:
        return float(len(items))

    def scores(self, items: Sequence[int]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(R of the first answers, R of the second), raw, the mean over members."""
        first, second = self._each(items)
        return first.mean(0), second.mean(0)

    def loss(self, items: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        first, second = self._each(items)
        counts = self.counts[:, list(items)].to(first.device)
        losses = [task.losses(items, a, b) for task, a, b in zip(self.members, first, second, strict=True)]
        loss = (counts * torch.stack(losses)).mean(0).sum()
        figures = self.members[0].figures(items, first.mean(0), second.mean(0))
        return loss, {**figures, "disagreement": (first - second).detach().std(0, correction=0).sum().item()}

    def _each(self, items: Sequence[int]) -> tuple[Float[Tensor, "K B"], Float[Tensor, "K B"]]:
        both = [task.scores(items) for task in self.members]
        return torch.stack([first for first, _ in both]), torch.stack([second for _, second in both])


def first_member(task: PairTask) -> RankingTask:
    """The task of the one reward model, or of an ensemble's first."""
    if isinstance(task, EnsembleTask):
        return task.members[0]
    assert isinstance(task, RankingTask)  # there is no third kind
    return task


def member_scorers(backbone: Backbone, cfg: Config) -> tuple[RewardScorer, ...]:
    """One scorer a member: another seed each, an adapter of its own where adapters are trained, the layers in turn."""
    layers = cfg.reward.ensemble_layers or (cfg.reward.layer,)
    found = []
    for k in range(cfg.reward.ensemble):
        seed = cfg.seed + SEEDS_APART * k
        adapter = None
        if cfg.reward.method == "adapter":
            adapter = "reward" if k == 0 else f"reward_{k + 1}"
            add_adapter(backbone.model, adapter, cfg.model, seed=seed)
        found.append(RewardScorer(backbone, layer=layers[k % len(layers)], adapter=adapter, seed=seed))
    return tuple(found)


def member_parts(
    scorers: Sequence[RewardScorer],
    train: Sequence[PairRow],
    held_out: Sequence[PairRow],
    cfg: Config,
    folder: Path | None,
    say: Callable[[str], None],
    heed: Heed = unheeding,
) -> RewardParts:
    """Tasks and parameters of one reward model, or of several side by side."""
    reward = cfg.reward
    features: dict[int, Features] = {}
    if reward.method == "head":
        every = [row for part in (train, held_out) for pair in part for row in (pair.chosen, pair.rejected)]
        for scorer in scorers:
            if scorer.layer not in features:
                say(f"features: states of {len(set(every))} answers at layer {scorer.layer}, computed once")
                features[scorer.layer] = Features(scorer, every, folder, 2 * reward.micro_batch_size, heed)
            scorer.scale.copy_(features[scorer.layer].scale)

    def tasks(pairs: Sequence[PairRow]) -> list[RankingTask]:
        return [
            RankingTask(pairs, scorer, features.get(scorer.layer), use_margin=reward.use_margin, center_coef=reward.center_coef)
            for scorer in scorers
        ]

    learning, looking = tasks(train), tasks(held_out)
    if len(scorers) == 1:
        return RewardParts(tuple(scorers), learning[0], looking[0], scorers[0].trainable(reward.method))
    counts = torch.stack([_bootstrap(len(train), cfg.seed + SEEDS_APART * k, reward.bootstrap) for k in range(len(scorers))])
    named: list[tuple[str, nn.Parameter]] = [
        (f"member_{k + 1}.{name}", p) for k, scorer in enumerate(scorers) for name, p in scorer.trainable(reward.method)
    ]
    every_count = torch.ones(len(scorers), len(held_out), dtype=torch.long)
    return RewardParts(tuple(scorers), EnsembleTask(learning, counts), EnsembleTask(looking, every_count), named)


def _bootstrap(count: int, seed: int, wanted: bool) -> Int[Tensor, " N"]:
    """How often each of `count` pairs stands in a bootstrap of them; once each where none is wanted."""
    if not wanted:
        return torch.ones(count, dtype=torch.long)
    drawn = torch.randint(count, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.bincount(drawn, minlength=count)


def member_facts(parts: RewardParts, cfg: Config, heed: Heed = unheeding) -> tuple[RewardFacts, ...]:
    """Each member's sidecar: its layer, and mean and deviation of its scores over all answers trained on."""
    reward = cfg.reward
    tasks = parts.train.members if isinstance(parts.train, EnsembleTask) else (parts.train,)
    found = []
    for scorer, task in zip(parts.scorers, tasks, strict=True):
        assert isinstance(task, RankingTask)  # the other kind of task has been taken apart
        mean, deviation = normalisation(task, reward.batch_size, heed) if reward.normalize else (0.0, 1.0)
        found.append(RewardFacts(reward.method, scorer.layer, scorer.backbone.fingerprint, mean, deviation))
    return tuple(found)
