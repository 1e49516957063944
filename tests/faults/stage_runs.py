"""The stages as jobs for the server of tiny_run.py: each a run of a second on a model of a few thousand weights.

Started by conftest.py (`stages`). Settings are chosen so that every kind of state is there: both optimisers' moments, schedules, running
statistics, coefficients that move, several samples a prompt, checkpoints that fall on the end of an epoch and beside it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_run import serve

from surefoot.config import Config
from surefoot.embedded.tiny_world import sentences, vocabulary_texts
from surefoot.embedded.worlds import opened
from surefoot.lm.tiny import tiny_model, tiny_tokenizer
from surefoot.progress import SilentProgress
from surefoot.runs import RunFolder
from surefoot.stages import evaluate, pairs, ppo_lm, reward, sft

ROWS = [opened(text) for text in sentences(24, seed=5)]
PROMPTS = sorted({row["prompt"] for row in ROWS})
PAIRS = [
    {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}
    for one, other in zip(ROWS[:16], ROWS[1:17], strict=True)
]
MODELS = "STAGE_RUNS_MODELS"  # the folder of both models
PLAIN, WITH_DROPOUT = "plain", "dropout"  # the second drops attention weights at random while it is fine-tuned


def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Vowels: a reward that differs between almost any two answers."""
    return [sum(letter in "aeiou" for letter in completion) / 4 for completion in completions]


def prefer(prompt: str, a: str, b: str) -> str:
    return "a" if sorted(a) < sorted(b) else "b"


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
    given = {"train": ROWS, "validation": ROWS[:3]}
    _run("sft", sft, path, model, given, tuning="full", sft=settings, data={"validation_share": 0.1})


def run_reward(path: str, **changed: Any) -> None:
    """8 steps of 2 epochs, head and adapter; the last checkpoint does not fall on save_every."""
    settings = {"method": "adapter", "batch_size": 4, "micro_batch_size": 2, "num_epochs": 2, "save_every": 3, **changed}
    _run("reward", reward, path, PLAIN, {"train": PAIRS, "validation": PAIRS[:4]}, reward=settings)


def run_pairs(path: str) -> None:
    """5 batches of 3 prompts, 3 answers each, every pair voted on."""
    given = {"prompts": PROMPTS[:15], "annotator": prefer}
    _run("pairs", pairs, path, PLAIN, given, pairs={"num_answers": 3}, rollout={"response_length": 5, "batch_size": 3})


def _ppo(path: str, tuning: str, **changed: Any) -> None:
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
    given = {"prompts": PROMPTS, "reward": score, "judges": {"length": lambda texts: [len(text) for text in texts]}}
    _run("ppo", ppo_lm, path, PLAIN, given, tuning=tuning, ppo=settings, rollout={"response_length": 6, "batch_size": 5})


def run_clip(path: str, **changed: Any) -> None:
    """4 updates with adapters, a running reward scale, and a tether whose coefficient moves."""
    settings = {"reward_scale": "running", "kl_controller": "proportional", "kl_target": 0.2, "kl_horizon": 50, **changed}
    _ppo(path, "lora", critic="adapter", **settings)


def run_penalty(path: str, **changed: Any) -> None:
    """4 updates of every weight, exact KL to the old policy, an adaptive beta, a checkpoint every second update."""
    settings = {"objective": "penalty", "beta_controller": "exponential", "save_every": 2, "critic_warmup_steps": 1, **changed}
    _ppo(path, "full", critic="shared", kl_in="loss", kl_estimator="exact", lr_scheduler="cosine", **settings)


def run_evaluate(path: str) -> None:
    """4 batches of 5 prompts, two models, best of 2."""
    against = str(Path(os.environ[MODELS]) / WITH_DROPOUT)
    given = {"prompts": PROMPTS[:20], "judges": {"vowels": lambda texts: score(texts, texts)}, "reward": score}
    sections = {"evaluate": {"against": against, "best_of": 2}, "rollout": {"response_length": 6, "batch_size": 5}}
    _run("evaluate", evaluate, path, PLAIN, given, **sections)


JOBS = {job.__name__.removeprefix("run_"): job for job in (run_sft, run_reward, run_pairs, run_clip, run_penalty, run_evaluate)}


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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as models:
        os.environ[MODELS] = models
        make_models(Path(models))
        serve(JOBS, warm_up)
