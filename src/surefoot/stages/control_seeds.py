"""Several seeds of one control run, a run folder each, and what they come to: mean and 95 % interval."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from surefoot.config import Config
from surefoot.progress import Progress
from surefoot.runs import RunFolder, read_jsonl, write_atomic
from surefoot.stages import ppo_control

Resume = Literal["auto", "never"]
FIGURES = ("eval/mean_reward", "rollout/ep_rew_mean")
# 97.5 % quantiles of Student's t by degrees of freedom, 1 to 30; beyond, the normal distribution's
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL = 1.960


def run(cfg: Config, num_seeds: int, path: Path, resume: Resume, progress: Progress) -> None:
    """Trains seeds cfg.seed to cfg.seed + num_seeds - 1 in `path`/seed-N, and writes `path`/seeds.json."""
    configs = [cfg.model_copy(update={"seed": cfg.seed + i}) for i in range(num_seeds)]
    paths = [path / f"seed-{each.seed}" for each in configs]
    train_seeds(configs, paths, resume, progress)
    summary = summarised([read_jsonl(folder / "metrics.jsonl")[-1] for folder in paths], [each.seed for each in configs])
    write_atomic(path / "seeds.json", (json.dumps(summary, indent=1) + "\n").encode())
    for key in FIGURES:
        if (found := summary.get(key)) is not None:
            low, high = found["interval"]
            progress.say(
                f"{key} over {num_seeds} seeds: {found['mean']:.1f}, 95 % interval {low:.1f} to {high:.1f} (Student's t)"
            )


def train_seeds(configs: Sequence[Config], paths: Sequence[Path], resume: Resume, progress: Progress) -> None:
    """Brings every run to its end, one after another. What trains them side by side takes this function's place."""
    for cfg, path in zip(configs, paths, strict=True):
        with RunFolder.open(path, verb="control", cfg=cfg, resume=resume) as folder:
            if folder.is_done:
                progress.say(f"{path} is done.")
                continue
            progress.say(f"control: run folder {path}")
            ppo_control.run(cfg, folder, progress)
            progress.stop()


def summarised(last: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean over seeds with its interval, of each figure that every seed's last line holds."""
    summary: dict[str, Any] = {"seeds": list(seeds)}
    for key in FIGURES:
        values = [row[key] for row in last if row.get(key) is not None]
        if len(values) == len(seeds):
            low, high = interval(values)
            summary[key] = {"mean": sum(values) / len(values), "interval": [low, high], "values": values}
    return summary


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, mean -+ t s / sqrt(n) (Student 1908), for at least two values."""
    count, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / (count - 1))
    quantile = STUDENT[count - 2] if count - 2 < len(STUDENT) else NORMAL
    half = quantile * deviation / math.sqrt(count)
    return mean - half, mean + half
