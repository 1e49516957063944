"""One run of the trial: a small world, its SFT and reward model, PPO with a bug in the reward or without, and what rang."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from surefoot.build import build_ppo
from surefoot.build_data import prompts_of
from surefoot.config import Config
from surefoot.config_file import load_config
from surefoot.embedded.tiny_world import SUBJECTS, VALENCE, VERBS
from surefoot.embedded.worlds import DemoWorld, preference_rows, tiny_world
from surefoot.lm.backbone import load_backbone
from surefoot.lm.batches import PromptSet
from surefoot.progress import PlainProgress
from surefoot.rewards.ensemble import load_reward
from surefoot.runs import RunFolder, load_manifest
from surefoot.stages import reward, sft
from surefoot.stages.beginning import Beginning, looked
from surefoot.stages.chain import on_model, run_stage, sft_config
from surefoot.stages.ppo_lm import PPOParts, steps
from surefoot.types import Prompts

from .bugs import BuggyReward, planted

UPDATES, ROWS = 10, 64
NUM_WORLDS = 2  # SFT and reward models, each for half of the seeds
SHIFT_AFTER = 4  # updates, in runs whose prompts change


def settings(seed: int) -> Config:
    """The demo's tiny preset with a run of UPDATES rollouts."""
    words = [f"--seed={seed}", f"--ppo.total_episodes={UPDATES * ROWS}", f"--ppo.rollout_batch_size={ROWS}"]
    return load_config(None, words, verb="demo", preset="tiny")


def models(root: Path, seed: int) -> tuple[Config, DemoWorld]:
    """SFT model and reward model of the seed's world, trained once, in root/world-SEED."""
    first = seed - seed % 1000 + seed % NUM_WORLDS  # seeds of another thousand share no world
    cfg, world = settings(first), tiny_world(first)
    path = root / f"world-{first}"
    if not (path / "manifest.json").exists() or load_manifest(path)["status"] != "done":  # one process opens a folder at a time
        with RunFolder.open(path, verb="demo", cfg=cfg, resume="auto") as folder:
            progress = PlainProgress(StringIO())
            run_stage(folder, "sft", "sft", sft.run, sft_config(cfg), {"train": world.sentences}, progress)
            given = {"train": preference_rows(world.votes), "validation": preference_rows(world.held_out_votes)}
            run_stage(folder, "reward", "reward", reward.run, on_model(cfg, path / "sft/final"), given, progress)
            folder.finish()
    return on_model(settings(seed), path / "sft/final", reward_source={"source": str(path / "reward/final")}), world


@dataclass(frozen=True)
class ChangedPrompts:
    """Prompts that become others after `place` of them: what a data set sorted by topic does to a run."""

    first: PromptSet
    then: PromptSet
    place: int

    def __len__(self) -> int:
        return len(self.first) + len(self.then)

    def take(self, index: Sequence[int], pad_id: int) -> Prompts:
        split = len(self.first)
        own = self.first if index[0] < split else self.then
        return own.take([i % split if own is self.first else i - split for i in index], pad_id)

    def cyclic(self, start: int, count: int, seed: int) -> list[int]:
        if start < self.place:
            return self.first.cyclic(start, count, seed)
        return [i + len(self.first) for i in self.then.cyclic(start - self.place, count, seed)]


def openings(seed: int, *, changed: bool) -> list[str]:
    """Prompts about half of the subjects; changed: about the other half (even seeds), or longer ones (odd seeds)."""
    half = SUBJECTS[::2] if not changed or seed % 2 else SUBJECTS[1::2]
    if changed and seed % 2:
        return [f"the {one} {verb} {word} and" for one in half for verb, word in zip(VERBS, VALENCE, strict=False)]
    return [f"the {one} {verb}" for one in half for verb in VERBS]


def run(root: Path, kind: str, seed: int) -> dict[str, Any]:
    """PPO of one run; `kind` is clean, a bug, shift or control. Its figures, with the judge and without."""
    cfg, world = models(root, seed)
    backbone = load_backbone(cfg.model)
    source = load_reward(Path(cfg.reward_source.source or ""), backbone, cfg.reward_source, may_share=False)
    bug = planted(kind, seed)
    prompts = openings(seed, changed=False) if kind in ("shift", "control") else world.ppo_prompts
    given = {"prompts": prompts, "reward": BuggyReward(source, bug), "judges": {"gold": world.judges["gold"]}}
    parts = build_ppo(cfg, lambda line: None, model=backbone, **given)
    if kind == "shift":
        after = prompts_of(cfg, backbone, openings(seed, changed=True), "data.prompts", lambda line: None)
        changed: Any = ChangedPrompts(parts.prompts, after, SHIFT_AFTER * ROWS)  # takes the place of a PromptSet
        parts = replace(parts, prompts=changed)
    return {"alarm": bug.alarm if bug else "", "word": bug.word if bug else "", "updates": watched(parts, cfg)}


def watched(parts: PPOParts, cfg: Config) -> list[dict[str, Any]]:
    """Every update's figures and words, and under "unjudged" those that a run without judges would have had.

    Alarms do not move a run that is only warned, so that they can be asked afterwards (`judged.rang`) under any limits.
    """
    codec = parts.policy.backbone.codec
    beginning = Beginning()
    rows: list[dict[str, Any]] = []
    for step in steps(parts, cfg):
        look = looked(beginning, step.rollout, {}, step.update, lambda token: codec.pieces([token])[0])
        beginning = look.beginning
        own = {key: value for key, value in step.metrics.items() if not key.startswith("alarm/")}
        rows.append({"metrics": own, "words": dict(step.words), "unjudged": {**look.metrics, **look.words}})
    return rows
