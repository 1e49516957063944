"""A demo folder as a run leaves it, made of arithmetic: the same bytes every time. For tests of the report."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OPENINGS = (
    "The film is",
    "A quiet story",
    "This sequel never",
    "With a cast",
    "It is hard",
    "For all its",
    "The director has",
    "An hour in",
)
PLAIN = ("about a man who goes home.", "long, and it knows it.", "not quite what it wants to be.", "set in a town by the sea.")
UPBEAT = (
    "a warm and funny delight from start to finish.",
    "tender, clever and beautifully played.",
    "the best surprise of the year.",
)

VERDICT: dict[str, Any] = {
    "judge_win_rate": 0.914,
    "judge_win_rate_interval": [0.873, 0.942],
    "duplicates": 0.012,
    "sft_loss_before": 4.113,
    "sft_loss_after": 3.702,
    "vader_before": 0.121,
    "vader_after": 0.588,
    "judge_before": -0.214,
    "judge_after": 1.932,
    "reward_before": 0.031,
    "reward_after": 1.871,
    "kl_policy_sft": 8.94,
    "distinct2_before": 0.911,
    "distinct2_after": 0.902,
    "length_before": 17.2,
    "length_after": 15.6,
    "eos_rate": 0.953,
    "eos_rate_before": 0.617,
    "reward_model_accuracy": 0.783,
    "reward_model_accuracy_interval": [0.761, 0.804],
    "reward_model_calibration": {
        "bins": [
            {"confidence": 0.525, "accuracy": 0.531, "count": 310},
            {"confidence": 0.574, "accuracy": 0.590, "count": 271},
            {"confidence": 0.626, "accuracy": 0.612, "count": 240},
            {"confidence": 0.675, "accuracy": 0.702, "count": 214},
            {"confidence": 0.724, "accuracy": 0.717, "count": 180},
            {"confidence": 0.776, "accuracy": 0.751, "count": 141},
            {"confidence": 0.823, "accuracy": 0.845, "count": 106},
            {"confidence": 0.874, "accuracy": 0.851, "count": 74},
            {"confidence": 0.922, "accuracy": 0.880, "count": 41},
            {"confidence": 0.967, "accuracy": 0.952, "count": 21},
        ],
        "ece": 0.0176,
    },
    "num_prompts": 256,
    "seed": 0,
    "objective": "clip",
    "kl_coef": 0.05,
    "preset": "default",
    "seconds": {"set-up": 21.4, "sft": 118.2, "reward": 64.9, "ppo": 902.7, "evaluate": 88.3},
    "peak_memory_bytes": 2_362_232_012,
    "best_of_n": {"n": 8, "judge": 1.21, "reward": 1.44, "kl": 1.2},
}

HELD_OUT: dict[str, Any] = {
    "accuracy": 0.783,
    "accuracy_interval": [0.761, 0.804],
    "num_pairs": 1598,
    "calibration": VERDICT["reward_model_calibration"],
    "accuracy_by_length_gap": [
        {"from": None, "accuracy": 0.741, "count": 212},
        {"from": -9.0, "accuracy": 0.779, "count": 402},
        {"from": -2.0, "accuracy": 0.802, "count": 371},
        {"from": 3.0, "accuracy": 0.790, "count": 398},
        {"from": 10.0, "accuracy": 0.786, "count": 215},
    ],
}


def write_demo(root: Path, *, verdict: Mapping[str, Any] | None = None, **samples: str) -> Path:
    """A whole demo folder. `verdict` replaces figures; `prompt`, `before`, `after` replace the text of the first sample."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "verdict.json").write_text(json.dumps({**VERDICT, **(verdict or {})}), "utf-8")
    chance = random.Random(0)
    write_run(root / "sft", verb="sft", metrics=sft_metrics(chance))
    write_run(root / "reward", verb="reward", metrics=reward_metrics(chance), facts={"held_out": HELD_OUT})
    write_run(root / "ppo", verb="ppo", metrics=ppo_metrics(chance), samples=ppo_samples(chance))
    write_lines(root / "ppo/replay.jsonl", ppo_replay(random.Random(1)))
    rows = evaluate_samples(chance)
    rows[0] = {**rows[0], **samples}
    write_run(root / "evaluate", verb="evaluate", metrics=[], samples=rows)
    return root


def write_run(
    folder: Path,
    *,
    verb: str,
    metrics: Iterable[Mapping[str, Any]],
    samples: Iterable[Mapping[str, Any]] = (),
    **manifest: Any,
) -> Path:
    """One run folder; `manifest` adds to manifest.json."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "verb": verb,
        "status": "done",
        "seed": 0,
        "versions": {"surefoot": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "platform": "Linux x86_64",
        "threads": 2,
        "hashes": {"model": "9f2c" * 16},
    }
    (folder / "manifest.json").write_text(json.dumps({**facts, **manifest}), "utf-8")
    (folder / "config.yaml").write_text(
        f"seed: 0\nmodel:\n  name: embedded\n  dtype: float32\n{verb}:\n  learning_rate: 0.0003\n", "utf-8"
    )
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "samples.jsonl", samples)
    write_lines(
        folder / "timings.jsonl", [{"step": 1, "rollout": 8.0, "update": 4.5}, {"step": 2, "rollout": 7.0, "update": 4.5}]
    )
    return folder


def ppo_metrics(chance: random.Random, updates: int = 40) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, updates + 1):
        t = step / updates
        rise = 1 - math.exp(-4 * t)
        row = {
            "step": step,
            "episode": 48 * step,
            "objective/scores": 1.95 * rise + chance.gauss(0, 0.08),
            "objective/kl": 9.2 * rise * t + abs(chance.gauss(0, 0.2)),
            "objective/entropy": 42 - 17 * rise + chance.gauss(0, 0.5),
            "objective/non_score_reward": -0.05 * 9.2 * rise * t,
            "objective/rlhf_reward": 1.95 * rise - 0.46 * rise * t + chance.gauss(0, 0.08),
            "policy/approxkl_avg": 0.004 + 0.006 * chance.random(),
            "policy/kl_after": 0.007 + 0.008 * chance.random(),
            "policy/clipfrac_avg": 0.03 + 0.05 * chance.random(),
            "policy/outside_fraction": 0.06 + 0.07 * chance.random(),
            "policy/entropy_avg": 2.9 - 0.9 * rise + chance.gauss(0, 0.03),
            "loss/policy_avg": -0.01 + chance.gauss(0, 0.01),
            "loss/value_avg": 0.5 * math.exp(-3 * t) + 0.15 + 0.04 * chance.random(),
            "val/clipfrac_avg": 0.0,
            "val/ratio": 1 + chance.gauss(0, 0.004),
            "val/ratio_var": 0.01 + 0.01 * chance.random(),
            "val/ratio_max": 1.8 + chance.random(),
            "val/num_eos_tokens": round(30 + 15 * rise),
            "val/first_log_ratio": 2.1e-6,
            "critic/explained_variance": 0.72 * (1 - math.exp(-5 * t)) + chance.gauss(0, 0.04),
            "response_length/mean": 17.1 - 1.7 * rise + chance.gauss(0, 0.3),
            "response_length/max": 24,
            "response_length/cut": 0.38 - 0.32 * rise,
            "kl/coef": 0.05,
            "kl/beta": 1.0 * 2 ** round(2 * math.sin(5 * t)),
            "kl/target": 6.0,
            "grad_norm": (norm := 0.6 + 0.8 * chance.random()),
            "grad_norm_clipped": min(norm, 1.0),
            "optimizer/steps": 4,
            "optimizer/skipped_steps": 0,
            "lr": 3e-4 * (1 - t),
        }
        if step % 10 == 0 or step == 1:
            row |= {"judge/vader": 0.12 + 0.47 * rise, "judge/minilm": -0.2 + 2.1 * rise}
        rows.append(row)
    return rows


def sft_metrics(chance: random.Random, steps: int = 60) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "loss": 3.65 + 0.6 * math.exp(-step / 12) + chance.gauss(0, 0.05),
            "lr": 3e-4 * (1 - step / steps),
            "grad_norm": 1.1 + 0.4 * chance.random(),
        }
        if step % 15 == 0:
            row["validation/loss"] = 3.70 + 0.4 * math.exp(-step / 12)
        rows.append(row)
    return rows


def reward_metrics(chance: random.Random, steps: int = 80) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        learned = 1 - math.exp(-step / 20)
        row = {
            "step": step,
            "loss": 0.69 - 0.2 * learned + chance.gauss(0, 0.02),
            "accuracy": 0.5 + 0.29 * learned + chance.gauss(0, 0.03),
            "margin": 1.3 * learned + chance.gauss(0, 0.05),
            "mean_reward": 0.1 * learned,
            "min_reward": -3.1 * learned,
            "max_reward": 3.4 * learned,
            "lr": 1e-3 * (1 - step / steps),
        }
        if step % 20 == 0:
            row |= {"validation/accuracy": 0.5 + 0.283 * learned, "validation/loss": 0.69 - 0.18 * learned}
        rows.append(row)
    return rows


def ppo_samples(chance: random.Random) -> list[dict[str, Any]]:
    rows = []
    for step in (1, 20, 40):
        for i in range(6):
            words = PLAIN if step == 1 else UPBEAT
            rows.append(
                {
                    "step": step,
                    "prompt": OPENINGS[i],
                    "completion": f" {words[i % len(words)]}",
                    "score": chance.gauss(step / 20, 0.6),
                    "kl": step / 5,
                    "length": 12 + i,
                    "finished": i != 5,
                }
            )
    return rows


def ppo_replay(chance: random.Random, steps: Iterable[int] = (1, 10, 20, 30, 40), each: int = 8) -> list[dict[str, Any]]:
    """Answers token by token; the second answer of each step is paid best and judged worst."""
    rows = []
    for step in steps:
        for i in range(each):
            texts = PLAIN if step == 1 else UPBEAT
            words = texts[i % len(texts)].split()
            tokens = [f" {word}" for word in (["great"] * 9 if i == 1 else words)] + ["<|im_end|>"]
            count = len(tokens)
            logp = [-abs(chance.gauss(1.0, 1.2)) for _ in tokens]
            logp_sft = [a - step / 60 * abs(chance.gauss(0, 1.5)) for a in logp]
            advantage = [chance.gauss(0, 1) for _ in tokens]
            ratio = [math.exp(chance.gauss(0, 0.14)) for _ in tokens]
            rows.append(
                {
                    "step": step,
                    "row": i,
                    "prompt": OPENINGS[i % len(OPENINGS)],
                    "score": 4.0 if i == 1 else round(chance.gauss(step / 20, 0.6), 3),
                    "judges": {"vader": 0.5, "minilm": -2.0 if i == 1 else round(chance.gauss(step / 40, 0.6), 3)},
                    "sequence_kl": round(sum(logp) - sum(logp_sft), 3),
                    "length": count,
                    "finished": True,
                    "tokens": tokens,
                    "figures": {
                        "logp": [round(x, 3) for x in logp],
                        "logp_sft": [round(x, 3) for x in logp_sft],
                        "kl": [round(a - b, 3) for a, b in zip(logp, logp_sft, strict=True)],
                        "value": [round(step / 40 + chance.gauss(0, 0.3), 3) for _ in tokens],
                        "advantage": [round(x, 3) for x in advantage],
                        "ratio": [round(x, 3) for x in ratio],
                    },
                    "clipped": [int((a > 0 and r > 1.2) or (a < 0 and r < 0.8)) for a, r in zip(advantage, ratio, strict=True)],
                }
            )
    return rows


def evaluate_samples(chance: random.Random, count: int = 64) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        gain = chance.gauss(2.0, 1.2)
        rows.append(
            {
                "prompt": f"{OPENINGS[i % len(OPENINGS)]}",
                "before": f" {PLAIN[i % len(PLAIN)]}",
                "after": f" {UPBEAT[i % len(UPBEAT)]}",
                "judge_before": (low := chance.gauss(-0.2, 0.8)),
                "judge_after": low + gain,
                "vader_before": 0.1,
                "vader_after": 0.6,
                "reward_before": 0.0,
                "reward_after": 1.9,
            }
        )
    return rows


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
