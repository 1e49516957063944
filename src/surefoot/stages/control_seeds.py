"""Several seeds of one control run, a run folder each, and what they come to: mean and 95 % interval."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from surefoot.build_control import build_control
from surefoot.config import Config
from surefoot.control import FlatNets
from surefoot.progress import Progress
from surefoot.runs import RunFolder, read_jsonl, write_atomic
from surefoot.stages import ppo_control
from surefoot.stages.control_course import ControlStep, Course, advance

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
    """Brings every run to its end, side by side as one batched network: each is what it would be alone, up to rounding.

    What stops one of them stops all; with the same command they go on, those that are behind first.
    """
    with ExitStack() as opened:
        courses: list[tuple[RunFolder, Course]] = []
        for cfg, path in zip(configs, paths, strict=True):
            folder = opened.enter_context(RunFolder.open(path, verb="control", cfg=cfg, resume=resume))
            if folder.is_done:
                progress.say(f"{path} is done.")
                continue
            progress.say(f"control: run folder {path}")
            parts = build_control(cfg, progress.say)
            folder.declare(ppo_control.inputs(parts))
            courses.append((folder, Course(parts, cfg, folder)))
        if courses:
            progress.start("control", configs[0].control.num_updates, "updates")
            for steps in side_by_side([course for _, course in courses]):
                progress.update(steps[0].update, _mean_metrics(steps))
            progress.stop()
        for folder, course in courses:
            ppo_control.finish(course.parts, course.cfg, folder, progress)


def side_by_side(courses: Sequence[Course]) -> Iterator[list[ControlStep]]:
    """Yields the steps of those that made one, until all are over. Whoever is behind the others catches up first."""
    group: list[Course] = []
    nets: FlatNets | None = None
    while going := [course for course in courses if not course.is_over]:
        least = min(course.at.update for course in going)
        behind = [course for course in going if course.at.update == least]
        if behind != group:
            group = behind
            nets = FlatNets([course.parts.actor_critic for course in group]) if len(group) > 1 else None
        yield advance(group, nets)


def _mean_metrics(steps: Sequence[ControlStep]) -> dict[str, float]:
    """Means over seeds of the figures that all of them have; and the steps a second of all together."""
    lines = [step.metrics for step in steps]
    shared = [key for key in lines[0] if all(key in line for line in lines)]
    means = {key: sum(line[key] for line in lines) / len(lines) for key in shared}
    rows = len(steps) * steps[0].timesteps / steps[0].update
    return {**means, "time/fps": rows / max(sum(steps[0].seconds.values()), 1e-9)}


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
