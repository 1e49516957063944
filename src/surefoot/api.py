"""The Python face: what sft, reward and ppo do (evaluate: api_evaluate.py), from a notebook, with the same objects and settings.

A run is iterable: each step yields what it did, so one can look, stop and go on. `settings` are the names of the configuration
file: `{"ppo.kl_coef": 0.1, "rollout.response_length": 24}`. With `out` a run has a folder: it saves, resumes, and can be
reported on; without, nothing is written until `save`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from surefoot.api_steps import Settings, configuration, stepped
from surefoot.build import build_ppo, build_reward, build_sft
from surefoot.build_data import Rows
from surefoot.config import Config
from surefoot.lm.backbone import Backbone, load_backbone
from surefoot.lm.batches import prompt_set
from surefoot.lm.data import rows_from
from surefoot.rewards.ensemble import EnsembleReward, save_ensemble
from surefoot.rewards.model import RewardFacts, SharedRewardModel
from surefoot.runs import RunFolder
from surefoot.runs.durable import open_like_folder
from surefoot.stages import ppo_lm, reward, reward_card, sft
from surefoot.stages.judging import Judge
from surefoot.stages.ppo_lm import PPOStep
from surefoot.stages.reward_ensemble import first_member, member_facts
from surefoot.stages.supervised import FitStep
from surefoot.types import Completions, Prompts, Scores


def _configured(verb: str, model: Any, settings: Settings | None) -> Config:
    """A model by name goes into model.name; objects already loaded are given to the run."""
    named = {"model.name": model} if isinstance(model, (str, Path)) else {}
    return configuration(verb, {**named, **(settings or {})})


def _loaded(model: Any, cfg: Config) -> Any:
    return load_backbone(cfg.model) if isinstance(model, (str, Path)) else model


class SFTRun:
    """Supervised fine-tuning. `model` is a name, a Backbone, or (transformers model, tokenizer); `train` rows, a file or a hub
    name.

    >>> sft = SFTRun("embedded", train=[{"prompt": "The film", "completion": " was a joy."}]).fit()  # doctest: +SKIP
    >>> sft.save("sft")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any = "embedded",
        *,
        train: Rows,
        validation: Rows | None = None,
        settings: Settings | None = None,
        out: str | Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config = _configured("sft", model, settings)
        self.parts = build_sft(self.config, say, model=_loaded(model, self.config), train=train, validation=validation)
        self._steps = stepped(
            out, "sft", self.config, lambda: sft.inputs(self.parts), lambda folder: sft.steps(self.parts, self.config, folder)
        )

    def __iter__(self) -> Iterator[FitStep]:
        return self._steps

    def fit(self) -> Self:
        """Runs to the end; returns itself."""
        for _ in self._steps:
            pass
        return self

    @property
    def model(self) -> Backbone:
        """The model as it is now, the adapter merged in: a plain backbone for the next stage."""
        return self.parts.backbone.merged(self.parts.adapter)

    def save(self, folder: str | Path) -> None:
        """Writes what AutoModelForCausalLM loads."""
        self.parts.backbone.save(Path(folder), merge=self.parts.adapter)
        open_like_folder(Path(folder))


class RewardRun:
    """Reward-model training on preferences. It scores like any reward source, so it can be given to PPORun as it is."""

    def __init__(
        self,
        model: Any = "embedded",
        *,
        train: Rows,
        validation: Rows | None = None,
        settings: Settings | None = None,
        out: str | Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config = _configured("reward", model, settings)
        given = _loaded(model, self.config)
        self.parts = build_reward(
            self.config, None if out is None else Path(out), say, model=given, train=train, validation=validation
        )
        self._facts: tuple[RewardFacts, ...] | None = None
        self._steps = stepped(out, "reward", self.config, lambda: reward.inputs(self.parts), self._learn)

    def _learn(self, folder: RunFolder | None) -> Iterator[FitStep]:
        for step in reward.steps(self.parts, self.config, folder):
            self._facts = None  # of weights that have moved
            yield step

    def __iter__(self) -> Iterator[FitStep]:
        return self._steps

    def fit(self) -> Self:
        """Runs to the end; returns itself."""
        for _ in self._steps:
            pass
        return self

    @property
    def held_out(self) -> dict[str, object]:
        """Accuracy on held-out pairs with its interval, and calibration."""
        return reward.held_out_figures(self.parts.validation, self.config.reward.batch_size)

    @property
    def card(self) -> dict[str, Any]:
        """The report card: accuracy, calibration and its temperature, length, probes, and a verdict in words."""
        held = reward_card.held_out_pairs(self.parts.validation, self.config.reward.batch_size)
        return reward_card.report_card(self.parts, held, self.config)

    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        """Scores of answers, normalised by the answers it was trained on."""
        size = self.config.reward.batch_size
        members = [SharedRewardModel(s, facts, size) for s, facts in zip(self.parts.scorers, self._known(), strict=True)]
        source = members[0] if len(members) == 1 else EnsembleReward(members, "mean")
        return source.score(prompts, completions)

    def save(self, folder: str | Path) -> None:
        """Writes what AutoModelForSequenceClassification loads, reward.json, and what it was trained on."""
        save_ensemble(self.parts.scorers, self._known(), Path(folder))
        train, left = first_member(self.parts.train), first_member(self.parts.validation)
        reward.feature_statistics(train, self.config.reward.batch_size, held_out=left).save(Path(folder))
        open_like_folder(Path(folder))

    def _known(self) -> tuple[RewardFacts, ...]:
        """Mean and deviation over all training answers, measured once for the weights as they are: PPO scores often."""
        if self._facts is None:
            self._facts = member_facts(self.parts, self.config)
        return self._facts


class PPORun:
    """PPO on prompts against a reward: a callable `reward(prompts, completions, **columns)`, a RewardRun, a folder,
    module:function.

    >>> run = PPORun("embedded", prompts=["The film"], reward=lambda prompts, completions: [float(len(c)) for c in completions])
    ... # doctest: +SKIP
    >>> for step in run: print(step.metrics["objective/scores"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any = "embedded",
        *,
        prompts: Rows,
        reward: Any,
        judges: Mapping[str, Judge] | None = None,
        settings: Settings | None = None,
        out: str | Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        named = {"reward_source.source": str(reward)} if isinstance(reward, (str, Path)) else {}
        self.config = _configured("ppo", model, {**named, **(settings or {})})
        given = None if named else reward
        self.parts = build_ppo(self.config, say, model=_loaded(model, self.config), prompts=prompts, reward=given, judges=judges)
        self._steps = stepped(
            out,
            "ppo",
            self.config,
            lambda: ppo_lm.inputs(self.parts, self.config),
            lambda folder: ppo_lm.steps(self.parts, self.config, folder),
        )

    def __iter__(self) -> Iterator[PPOStep]:
        return self._steps

    def learn(self) -> Self:
        """Runs to the end; returns itself."""
        for _ in self._steps:
            pass
        return self

    def generate(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        """The policy's answers as it is now."""
        codec, rollout = self.parts.policy.backbone.codec, self.config.rollout
        rows = prompt_set(rows_from(prompts, "prompts").rows, codec, rollout.response_length, self.config.data.long_prompts)
        batch = rows.take(range(len(rows)), codec.pad_id)
        return list(self.parts.engine.generate(batch, torch.Generator().manual_seed(seed)).text)

    @property
    def model(self) -> Backbone:
        """The policy as it is now, as a plain backbone."""
        return self.parts.policy.backbone.merged(self.parts.policy.policy_adapter)

    def save(self, folder: str | Path) -> None:
        """Writes what AutoModelForCausalLM loads."""
        self.parts.policy.backbone.save(Path(folder), merge=self.parts.policy.policy_adapter)
        open_like_folder(Path(folder))
