"""The stages as jobs for the server of tiny_run.py: each a run of a second on a model of a few thousand weights.

Started by conftest.py (`stages`). Settings are chosen so that every kind of state is there: moments of the optimiser, schedules,
running statistics, coefficients that move, several samples a prompt, checkpoints on the end of an epoch and beside it.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tiny_run import serve

from surefoot.config import Config
from surefoot.embedded.tiny_world import sentences, vocabulary_texts
from surefoot.embedded.worlds import opened
from surefoot.lm.roles import RewardScorer
from surefoot.lm.tiny import tiny_model, tiny_tokenizer
from surefoot.progress import SilentProgress
from surefoot.runs import RunFolder
from surefoot.stages import control_seeds, evaluate, pairs, ppo_control, ppo_lm, reward, sft
from surefoot.stages.supervised import fit

ROWS = [opened(text) for text in sentences(24, seed=5)]
PROMPTS = sorted({row["prompt"] for row in ROWS})
PAIRS = [
    {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]} for one, other in pairwise(ROWS[:17])
]
MODELS = "STAGE_RUNS_MODELS"  # the folder of both models
PLAIN, WITH_DROPOUT = "plain", "dropout"  # the second drops attention weights at random while it is fine-tuned


def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Vowels: a reward that differs between almost any two answers."""
    return [sum(letter in "aeiou" for letter in completion) / 4 for completion in completions]


class Called:
    """`function`, which says each call on stderr and sends this process a SIGTERM in the middle of call `stop_at` (0: never)."""

    def __init__(self, function: Callable[..., Any], stop_at: int) -> None:
        self.function, self.stop_at, self.count = function, stop_at, 0
        self.__name__ = function.__name__
        self.__signature__ = inspect.signature(function)

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        print("called", file=sys.stderr, flush=True)
        if self.count == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.function(*arguments)


def prefer(prompt: str, a: str, b: str) -> str:
    return "a" if sorted(a) < sorted(b) else "b"


def vowels(texts: Sequence[str]) -> list[float]:
    return score(texts, texts)


def _others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows under prompts that are in no other: what is held out is never trained on."""
    return [{**row, "prompt": f"{row['prompt']} too"} for row in rows]


def _run(verb: str, stage: Any, path: str, model: str, given: dict[str, Any], tuning: str = "lora", **sections: Any) -> None:
    settings: dict[str, Any] = {"name": str(Path(os.environ[MODELS]) / model), "tuning": tuning}
    if tuning == "lora":
        settings |= {"lora_rank": 2, "lora_alpha": 4.0}
    cfg = Config(seed=3, model=settings, **sections)  # type: ignore[arg-type]
    with RunFolder.open(Path(path), verb=verb, cfg=cfg) as folder:
        if not folder.is_done:
            stage.run(cfg, folder, SilentProgress(), **given)


def run_sft(path: str, model: str = PLAIN, **changed: Any) -> None:
    """12 steps of 2 epochs, every weight; checkpoints at 3, 6 (the end of epoch 1 exactly), 9, 12."""
    settings = {"batch_size": 4, "micro_batch_size": 2, "num_epochs": 2, "warmup_steps": 2, "save_every": 3, **changed}
    given = {"train": ROWS, "validation": _others(ROWS[:3])}
    _run("sft", sft, path, model, given, tuning="full", sft=settings, data={"validation_share": 0.1})


def run_reward(path: str, **changed: Any) -> None:
    """8 steps of 2 epochs, head and adapter; the last checkpoint does not fall on save_every."""
    settings = {"method": "adapter", "batch_size": 4, "micro_batch_size": 2, "num_epochs": 2, "save_every": 3, **changed}
    _run("reward", reward, path, PLAIN, {"train": PAIRS, "validation": _others(PAIRS[:4])}, reward=settings)


def run_chosen_pairs(path: str) -> None:
    """5 batches of 3 prompts, the best of 3 answers against another; then the 7 least certain pairs, voted on in 3 batches."""
    given = {"prompts": PROMPTS[:15], "annotator": prefer, "reward": score}
    chosen = {"best_of": 3, "select": "uncertainty", "max_pairs": 7}
    _run("pairs", pairs, path, PLAIN, given, pairs=chosen, rollout={"response_length": 5, "batch_size": 3})


def run_pairs(path: str, stop_at: int = 0) -> None:
    """5 batches of 3 prompts, 3 answers each, every pair voted on."""
    given = {"prompts": PROMPTS[:15], "annotator": Called(prefer, stop_at)}
    _run("pairs", pairs, path, PLAIN, given, pairs={"num_answers": 3}, rollout={"response_length": 5, "batch_size": 3})


def _ppo(path: str, tuning: str, stop_at: int = 0, **changed: Any) -> None:
    settings = {
        "total_episodes": 32,
        "rollout_batch_size": 8,
        "num_samples_per_prompt": 2,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "micro_batch_size": 4,
        "learning_rate": 0.02,
        "missing_eos_penalty": 0.5,
        **changed,
    }
    given = {"prompts": PROMPTS, "reward": Called(score, stop_at), "judges": {"vowels": vowels}}
    _run("ppo", ppo_lm, path, PLAIN, given, tuning=tuning, ppo=settings, rollout={"response_length": 6, "batch_size": 5})


def run_clip(path: str, **changed: Any) -> None:
    """4 updates with adapters, a running reward scale, and a tether whose coefficient moves."""
    settings = {"reward_scale": "running", "kl_controller": "proportional", "kl_target": 0.2, "kl_horizon": 50, **changed}
    _ppo(path, "lora", critic="adapter", **settings)


def run_penalty(path: str, **changed: Any) -> None:
    """4 updates of every weight, exact KL to the old policy, an adaptive beta, a checkpoint every second update."""
    settings = {"objective": "penalty", "beta_controller": "exponential", "save_every": 2, "critic_warmup_steps": 1, **changed}
    _ppo(path, "full", critic="shared", kl_in="loss", kl_estimator="exact", lr_scheduler="cosine", **settings)


def run_control(path: str, num_seeds: int = 1, **changed: Any) -> None:
    """6 updates in the middle of episodes, every statistic, a beta that moves, evaluations, a checkpoint every second update."""
    control = {"total_timesteps": 360, "num_envs": 3, "num_steps": 20, "batch_size": 20, "hidden_sizes": (8,), "eval_every": 2}
    control |= {"eval_episodes": 3, "normalize_observations": True, "normalize_rewards": True, "env": "CartPole-v1"}
    ppo = {"objective": "penalty", "beta_controller": "exponential", "save_every": 2, "num_ppo_epochs": 2, "learning_rate": 0.01}
    cfg = Config(seed=3, control={**control, **changed}, ppo=ppo)  # type: ignore[arg-type]
    if num_seeds > 1:
        return control_seeds.run(cfg, num_seeds, Path(path), "auto", SilentProgress())
    with RunFolder.open(Path(path), verb="control", cfg=cfg) as folder:
        if not folder.is_done:
            ppo_control.run(cfg, folder, SilentProgress())


def run_control_seeds(path: str) -> None:
    """Three of them side by side."""
    run_control(path, num_seeds=3)


def run_evaluate(path: str, stop_at: int = 0) -> None:
    """4 batches of 5 prompts, two models, best of 2."""
    against = str(Path(os.environ[MODELS]) / WITH_DROPOUT)
    given = {"prompts": PROMPTS[:20], "judges": {"vowels": Called(vowels, stop_at)}, "reward": score}
    sections = {"evaluate": {"against": against, "best_of": 2}, "rollout": {"response_length": 6, "batch_size": 5}}
    _run("evaluate", evaluate, path, PLAIN, given, **sections)


class Look:
    """A task of 24 items whose first loss asks this process to stop."""

    def __len__(self) -> int:
        return 24

    def length(self, item: int) -> int:
        return item

    def weight(self, items: Sequence[int]) -> float:
        return 1.0

    def loss(self, items: Sequence[int]) -> tuple[torch.Tensor, dict[str, float]]:
        return self.called(), {}

    called = Called(lambda: torch.zeros(()), stop_at=1)


def run_features(path: str) -> None:
    """A reward model's features, whose first batch of two answers asks this process to stop."""
    count = 0
    features = RewardScorer.features

    def stopping(scorer: RewardScorer, rows: list[list[int]]) -> torch.Tensor:
        nonlocal count
        print("called", file=sys.stderr, flush=True)
        count += 1
        if count == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return features(scorer, rows)

    RewardScorer.features = stopping  # type: ignore[method-assign]
    given = {"train": PAIRS, "validation": _others(PAIRS[:4])}
    _run("reward", reward, path, PLAIN, given, reward={"micro_batch_size": 1})


def run_look(path: str) -> None:
    """The look at held-out items before the first step."""
    cfg = Config()
    weight = torch.nn.Parameter(torch.zeros(1))
    with RunFolder.open(Path(path), verb="sft", cfg=cfg) as folder:
        settings = cfg.sft.model_copy(update={"micro_batch_size": 1})
        for _ in fit(Look(), [("weight", weight)], settings, seed=0, validation=Look(), folder=folder):
            pass


ALL = (
    run_sft,
    run_reward,
    run_pairs,
    run_chosen_pairs,
    run_clip,
    run_penalty,
    run_control,
    run_control_seeds,
    run_evaluate,
    run_features,
    run_look,
)
JOBS = {job.__name__.removeprefix("run_"): job for job in ALL}


def make_models(folder: Path) -> None:
    tokenizer = tiny_tokenizer(vocabulary_texts()[:200], 300)
    for name, dropout in ((PLAIN, 0.0), (WITH_DROPOUT, 0.5)):
        model = tiny_model(tokenizer, width=16, layers=2, context=64)
        model.config.attention_dropout = dropout
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def warm_up(folder: str) -> None:
    run_sft(f"{folder}/sft", max_steps=1)
    run_pairs(f"{folder}/pairs")
    run_clip(f"{folder}/clip", total_episodes=8)
    run_control(f"{folder}/control", total_timesteps=60)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as models:
        os.environ[MODELS] = models
        make_models(Path(models))
        serve(JOBS, warm_up)
