"""Control: steps a second of Surefoot and of Stable-Baselines3, side by side: `python benchmarks/control_speed.py`.

Both train the same nets with the same hyper-parameters (SB3's defaults) in the same environments with one thread each, taking
turns in one run. Stable-Baselines3 is needed here alone: `pip install -c constraints.txt stable-baselines3==2.9.2` into the same
environment, beside the `control` extra.

Two clocks. Wall time is what a user waits, and means something on a quiet machine; CPU time of the process counts the work
done, whoever else is on the machine. Medians over repetitions, and ratios of medians. The split is of CPU time.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and NumPy are first imported

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from surefoot.build_control import build_control
from surefoot.config import Config
from surefoot.stages import control_course, control_seeds

RESULTS = Path(__file__).parent / "results" / "control-speed.json"
ROLLOUT = 2_048  # steps of all environments of a seed, as SB3's default of one environment
# name: environment, environments a seed, seeds side by side, steps of a seed
CASES = {
    "CartPole-v1, 8 envs": ("CartPole-v1", 8, 1, 16_384),
    "HalfCheetah-v5, 1 env": ("HalfCheetah-v5", 1, 1, 6_144),
    "HalfCheetah-v5, 8 envs": ("HalfCheetah-v5", 8, 1, 6_144),
    "CartPole-v1, 8 envs, 8 seeds": ("CartPole-v1", 8, 8, 16_384),
}


class Clock:
    """Seconds of a run, and of the calls of it that are split off."""

    def __init__(self) -> None:
        self.split = {"env": 0.0, "rollout": 0.0, "update": 0.0}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.split[name] += time.process_time() - start

        return wrapped

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu

    def result(self, steps: int) -> dict[str, Any]:
        env, rollout, update = (self.split[name] for name in ("env", "rollout", "update"))
        split = {"env": env, "inference": rollout - env, "update": update, "rest": self.cpu - rollout - update}
        rates = {"wall_steps_per_second": steps / self.wall, "cpu_steps_per_second": steps / self.cpu}
        return {"steps": steps, "wall_s": self.wall, "cpu_s": self.cpu, **rates, "split_cpu_s": split}


def ours(env: str, num_envs: int, num_seeds: int, timesteps: int, seed: int) -> dict[str, Any]:
    cfg = Config.model_validate(
        {
            "control": {
                "env": env,
                "total_timesteps": timesteps,
                "num_envs": num_envs,
                "num_steps": ROLLOUT // num_envs,
                "batch_size": 64,
                "hidden_sizes": [64, 64],
            },
            "ppo": {
                "num_ppo_epochs": 10,
                "learning_rate": 3e-4,
                "lr_scheduler": "constant",
                "gamma": 0.99,
                "lam": 0.95,
                "cliprange": 0.2,
                "vf_coef": 1.0,  # the loss has the factor 1/2: SB3's 0.5
                "max_grad_norm": 0.5,
            },
        }
    )
    clock, courses = Clock(), []
    for i in range(num_seeds):
        each = cfg.model_copy(update={"seed": seed + i})
        parts = replace(build_control(each, lambda line: None), evaluation=None)
        envs: Any = parts.collector.envs
        envs.step = clock.timed("env", envs.step)
        courses.append(control_course.Course(parts, each))
    control_course._rollouts = clock.timed("rollout", ROLLOUTS)
    control_course._updated = clock.timed("update", UPDATED)
    with clock.running():
        for _ in control_seeds.side_by_side(courses):
            pass
    for course in courses:
        course.parts.collector.envs.close()
    return clock.result(cfg.control.num_updates * ROLLOUT * num_seeds)


ROLLOUTS, UPDATED = control_course._rollouts, control_course._updated


def theirs(env: str, num_envs: int, num_seeds: int, timesteps: int, seed: int) -> dict[str, Any]:
    """One seed, whatever `num_seeds`: SB3 trains seeds one after the other, at the rate of one."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    clock = Clock()
    envs = make_vec_env(env, n_envs=num_envs, seed=seed)
    model = PPO("MlpPolicy", envs, n_steps=ROLLOUT // num_envs, batch_size=64, n_epochs=10, seed=seed, device="cpu")
    envs.step = clock.timed("env", envs.step)
    model.collect_rollouts = clock.timed("rollout", model.collect_rollouts)
    model.train = clock.timed("update", model.train)
    with clock.running():
        model.learn(timesteps)
    envs.close()
    return clock.result(model.num_timesteps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="longer or shorter runs: steps are multiplied by it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    try:
        import stable_baselines3  # noqa: F401
    except ImportError:
        print("This benchmark needs Stable-Baselines3: pip install -c constraints.txt stable-baselines3==2.9.2", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    packages = ("surefoot", "stable-baselines3", "torch", "numpy", "gymnasium", "mujoco")
    facts = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]},
        "nice": os.nice(0),
        "load_before": os.getloadavg(),
    }
    results = {name: measured(name, asked.repetitions, asked.scale) for name in asked.cases}
    facts["load_after"] = os.getloadavg()
    asked.out.write_text(json.dumps({"run": facts, "cases": results}, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return 0


def measured(name: str, repetitions: int, scale: float) -> dict[str, Any]:
    """Both sides in turn, `repetitions` times after one short run of each that nobody counts."""
    env, num_envs, num_seeds, timesteps = CASES[name]
    kept: dict[str, list[dict[str, Any]]] = {"ours": [], "sb3": []}
    for repetition in range(-1, repetitions):
        steps = ROLLOUT if repetition < 0 else max(1, round(timesteps * scale / ROLLOUT)) * ROLLOUT
        for side, run in (("ours", ours), ("sb3", theirs)):
            result = run(env, num_envs, num_seeds, steps, 100 * max(repetition, 0))
            if repetition >= 0:
                kept[side].append(result)
                print(f"{name}: {side} {result['cpu_steps_per_second']:.0f} steps per CPU second", file=sys.stderr, flush=True)
    keys = ("wall_steps_per_second", "cpu_steps_per_second")
    medians = {side: {key: statistics.median(run[key] for run in runs) for key in keys} for side, runs in kept.items()}
    return {
        "environment": env,
        "num_envs": num_envs,
        "seeds": {"ours": num_seeds, "sb3": 1},
        "medians": medians,
        "ratio_wall": medians["ours"][keys[0]] / medians["sb3"][keys[0]],
        "ratio_cpu": medians["ours"][keys[1]] / medians["sb3"][keys[1]],
        "runs": kept,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """As Markdown: steps a second by CPU time, ratios by both clocks, and where the CPU time of a thousand steps goes."""
    lines = [
        "| case | ours, steps/CPU s | SB3 | ratio (CPU) | ratio (wall) | ours: env / inference / update, ms a 1000 steps | SB3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in results.items():
        rates = [f"{case['medians'][side]['cpu_steps_per_second']:,.0f}" for side in ("ours", "sb3")]
        ratios = [f"{case[key]:.1f}" for key in ("ratio_cpu", "ratio_wall")]
        splits = [
            " / ".join(
                f"{statistics.median(run['split_cpu_s'][part] / run['steps'] for run in case['runs'][side]) * 1e6:.0f}"
                for part in ("env", "inference", "update")
            )
            for side in ("ours", "sb3")
        ]
        lines.append(f"| {name} | " + " | ".join([*rates, *ratios, *splits]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
