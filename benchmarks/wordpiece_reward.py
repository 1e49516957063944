"""A reward model with word pieces drives PPO of a byte-pair model: `python benchmarks/wordpiece_reward.py [--model SFT_FOLDER]`.

MiniLM, a BERT with a WordPiece vocabulary of its own, learns the human ratings' votes by the ranking loss, is saved as what
AutoModelForSequenceClassification loads, and pays PPO on SmolLM2-135M, whose answers it reads as text. After every rollout each
score is held against the same model loaded by transformers alone, which reads one answer at a time, without padding. What is
reported: the reward model's held-out accuracy, the largest difference of a score, and how the reward and VADER, a word list that
nothing is trained on, move. The figures go to benchmarks/results/wordpiece-reward.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import surefoot
from control_parts import jobs
from surefoot.core import pair_accuracy, ranking_loss
from surefoot.diagnostics.report_card import HeldOut, temperature_figures
from surefoot.embedded.judges import MiniLMJudge, VaderJudge
from surefoot.embedded.worlds import DemoWorld, preference_rows, real_world
from surefoot.intervals import wilson_interval
from surefoot.launch import set_threads
from surefoot.rewards.model import SIDECAR, RewardFacts

RESULT = Path(__file__).parent / "results" / "wordpiece-reward.json"
BATCH, LEARNING_RATE = 32, 5e-5


def train(world: DemoWorld, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Passes over the votes; writes the model, its tokenizer and the unit of its scores. Returns what it learned."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(asked.seed)
    source = MiniLMJudge().encoder_folder
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    rows = preference_rows(world.votes)
    draw = random.Random(asked.seed)
    rows = draw.sample(rows, min(len(rows), asked.max_pairs or len(rows)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    batches = [some for _ in range(asked.epochs) for some in _batches(draw.sample(rows, len(rows)))]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    for some in batches:
        chosen, rejected = _scores_of_pairs(model.train(), tokenizer, some)
        loss = ranking_loss(chosen, rejected, target=torch.tensor([row["target"] for row in some])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    held_out = [row for row in preference_rows(world.held_out_votes) if row["target"] == 1.0][: asked.max_pairs]
    with torch.no_grad():
        parts = [_scores_of_pairs(model, tokenizer, some) for some in _batches(held_out)]
        chosen, rejected = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    right = float(pair_accuracy(chosen, rejected).sum())
    everything = torch.cat((chosen, rejected))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = RewardFacts(mean=float(everything.mean()), deviation=float(everything.std()))
    (folder / SIDECAR).write_text(json.dumps(asdict(facts)) + "\n", encoding="utf-8")
    share = wilson_interval(right, len(held_out))
    zeros = np.zeros(len(held_out))
    prompts = tuple(row["prompt"] for row in held_out)
    pairs = HeldOut(
        chosen.double().numpy(), rejected.double().numpy(), zeros, zeros, zeros, ("ratings",) * len(held_out), prompts
    )
    counts = {"pairs": len(rows), "epochs": asked.epochs, "held_out_pairs": len(held_out)}
    return {**counts, "accuracy": share.value, "interval": share.as_list(), "calibration": temperature_figures(pairs)}


def _batches(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


def _scores_of_pairs(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in rows]
    scores: Tensor = model(**tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")).logits[:, 0]
    return scores[: len(rows)], scores[len(rows) :]


class Alone:
    """The folder as transformers loads it, without a line of Surefoot's: one text at a time, in units of deviation."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.unit = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))

    @torch.no_grad()
    def score(self, text: str) -> float:
        raw = float(self.model(**self.tokenizer(text, return_tensors="pt")).logits[0, 0])
        return (raw - self.unit["mean"]) / self.unit["deviation"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="the policy's start: a finished SFT folder, or the embedded model")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-pairs", type=int, help="fewer votes, for a quick look")
    parser.add_argument("--work", type=Path, default=Path("runs/wordpiece-reward"))
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    set_threads(None)
    world, folder = real_world(asked.seed), asked.work / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    learned = train(world, folder, asked)
    print(json.dumps(learned), flush=True)
    recipe = yaml.safe_load((files("surefoot.presets") / "demo.yaml").read_text(encoding="utf-8"))
    settings = {f"{section}.{key}": value for section in ("rollout", "ppo") for key, value in recipe[section].items()}
    settings |= {"seed": asked.seed, "model.lora_layers": recipe["model"]["lora_layers"]}
    settings["ppo.total_episodes"] = asked.updates * recipe["ppo"]["rollout_batch_size"]
    run = surefoot.PPORun(asked.model, prompts=world.ppo_prompts, reward=folder, settings=settings)
    alone, vader, rows = Alone(folder), VaderJudge(), []
    for step in run:
        texts = [p + c for p, c in zip(step.rollout.prompts.text, step.rollout.completions.text, strict=True)]
        gap = max(abs(alone.score(text) - float(paid)) for text, paid in zip(texts, step.rollout.scores.value, strict=True))
        row = {"update": step.update, "reward": step.metrics["objective/scores"], "kl": step.metrics["objective/kl"]}
        rows.append({**row, "vader": sum(vader.score(texts)) / len(texts), "largest_difference": gap})
        print("  ".join(f"{key} {value:.3g}" for key, value in rows[-1].items()), flush=True)
    words = ["--updates", str(asked.updates), "--epochs", str(asked.epochs), "--seed", str(asked.seed), "--model", "SFT_FOLDER"]
    found = {
        "run": jobs.facts(words, "transformers"),
        "reward_model": learned,
        "largest_difference": max(r["largest_difference"] for r in rows),
    }
    jobs.write(asked.result, {**found, "updates": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
