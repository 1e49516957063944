"""The PPO paper's Table 1 (Schulman et al. 2017) with Surefoot's objectives: `python benchmarks/table1.py`.

No clipping or penalty (the penalty with beta 0: ratio times advantage), PPO-Clip, PPO-Penalty with an adaptive beta (the paper's
doubling rule, the chapter's exponential rule) and with a fixed one, on seven MuJoCo tasks, three seeds, a million steps each: all
of it by default, hours on two cores; --tasks, --settings, --seeds and --steps choose less.

A run is a task and a setting; its seeds train side by side as one batched network. Each run's curves are one JSON below
benchmarks/results/table1-STEPS/, the scores of the runs that were asked for go to benchmarks/results/table1-STEPS.json and into
docs/control.md where it has a place for that many steps, the picture to docs/images/. A finished run is not repeated. A killed
command takes its runs along; started again, they go on from their last checkpoints below --work.

The score of a run is the mean return of its last 100 training episodes. For the table it is scaled task by task: 0 is the return
of uniformly random actions, 1 the best run's; then it is averaged over tasks and seeds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from control_parts import jobs
from control_parts.table import PAPER, as_markdown, summarized
from surefoot.config import Config
from surefoot.config_file import dump_config, load_config
from surefoot.launch import set_threads, usable_cores

RESULTS = jobs.ROOT / "benchmarks" / "results"
RECIPE = jobs.ROOT / "configs" / "control" / "mujoco.yaml"
TASKS = ("HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d")
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"objective": "penalty", "beta": 0},
    **{f"clip-{eps}": {"objective": "clip", "cliprange": eps} for eps in (0.1, 0.2, 0.3)},
    **{
        f"{rule}-{target}": {"objective": "penalty", "beta_controller": rule, "beta_target": target}
        for rule in ("doubling", "exponential")
        for target in (0.003, 0.01, 0.03)
    },
    **{f"fixed-{beta}": {"objective": "penalty", "beta": beta} for beta in (0.3, 1, 3, 10)},
}
# a policy that runs away is a finding here, and no reason to stop
COMMON = ("--threads", "1", "--control.num_envs", "1", "--control.eval_every", "0", "--ppo.max_skipped_steps", "1000000")
RANDOM_EPISODES = 100
MAX_POINTS = 150  # of a curve


def config(task: str, setting: str, steps: int, seed: int) -> Config:
    words = [word for name, value in SETTINGS[setting].items() for word in (f"--ppo.{name}", str(value))]
    sized = ["--control.env", f"{task}-v5", "--control.total_timesteps", str(steps), "--seed", str(seed)]
    return load_config(RECIPE, [*COMMON, *sized, *words], verb="control", preset="default")


def made_with(task: str, setting: str, steps: int) -> dict[str, Any]:
    """Everything but the seed that decides what a run does."""
    read: dict[str, Any] = yaml.safe_load(dump_config(config(task, setting, steps, 0), verb="control"))
    return {section: read[section] for section in ("control", "ppo")}


def kept(path: Path, made: dict[str, Any]) -> dict[str, Any]:
    """The seeds of `path` that were made with these settings."""
    found = jobs.read(path)
    seeds: dict[str, Any] = found["seeds"] if found.get("made_with") == made else {}
    return seeds


def train(task: str, setting: str, steps: int, seeds: list[int], work: Path, path: Path) -> None:
    """Trains the seeds that `path` lacks, side by side, and adds their curves."""
    from surefoot.progress import PlainProgress
    from surefoot.runs import read_jsonl
    from surefoot.stages import control_seeds

    set_threads(1)
    made, start = made_with(task, setting, steps), time.process_time()
    done = kept(path, made)
    missing = [seed for seed in seeds if str(seed) not in done]
    if not missing:  # another command has trained them in the meantime
        return
    folders = [work / f"{task}-{setting}" / f"seed-{seed}" for seed in missing]
    configs = [config(task, setting, steps, seed) for seed in missing]
    control_seeds.train_seeds(configs, folders, "auto", PlainProgress(sys.stdout))
    done |= {str(seed): curve(read_jsonl(folder / "metrics.jsonl")) for seed, folder in zip(missing, folders, strict=True)}
    cpu = round(time.process_time() - start, 1)  # of this process: less than the run took where it was interrupted
    command = ["--tasks", task, "--settings", setting, "--steps", str(steps), "--seeds", *map(str, seeds)]
    about = {"task": task, "setting": setting, "steps": steps, "run": {**jobs.facts(command), "cpu_seconds": cpu}}
    jobs.write(path, {**about, "seeds": done, "made_with": made})


def curve(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The score, the return by the likeliest actions, and both paths: return of the last 100 episodes; KL and beta."""
    last = lines[-1]
    every = math.ceil(len(lines) / MAX_POINTS)
    points = [line for i, line in enumerate(lines) if (i + 1) % every == 0 or i + 1 == len(lines)]
    names = {"steps": "time/total_timesteps", "return": "rollout/ep_rew_mean", "kl": "train/kl_after", "beta": "kl/beta"}
    paths = {
        name: [None if (value := line.get(key)) is None else float(f"{value:.5g}") for line in points]
        for name, key in names.items()
        if key in last
    }
    return {"score": last["rollout/ep_rew_mean"], "likeliest": last.get("eval/mean_reward"), **paths}


def random_return(task: str, path: Path) -> None:
    """The mean return of uniformly random actions, the table's 0."""
    import gymnasium
    import numpy as np

    env = gymnasium.make(f"{task}-v5")
    env.action_space.seed(0)
    returns = []
    for episode in range(RANDOM_EPISODES):
        env.reset(seed=episode)
        total, is_over = 0.0, False
        while not is_over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, is_over = total + float(reward), terminated or truncated
        returns.append(total)
    about = {"task": task, "episodes": RANDOM_EPISODES, "run": jobs.facts(["--tasks", task])}
    jobs.write(path, {**about, "mean": float(np.mean(returns)), "deviation": float(np.std(returns))})


def planned(asked: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The jobs that are not done, by name."""
    todo = {}
    given = ["--steps", str(asked.steps), "--seeds", *map(str, asked.seeds), "--work", str(asked.work), "--out", str(asked.out)]
    for task in asked.tasks:
        if not (folder / f"{task}-random.json").exists():
            todo[f"{task}-random"] = [*given, "--job", task, "random"]
        for setting in asked.settings:
            done = kept(folder / f"{task}-{setting}.json", made_with(task, setting, asked.steps))
            if any(str(seed) not in done for seed in asked.seeds):
                todo[f"{task}-{setting}"] = [*given, "--job", task, setting]
    return todo


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="rows, named as in PAPER's keys")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1_000_000, help="of a run")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="runs at a time, a thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/table1"), help="run folders, with checkpoints")
    parser.add_argument("--out", type=Path, default=RESULTS, help="curves and table")
    parser.add_argument("--only-table", action="store_true", help="train nothing: the table of what is finished")
    parser.add_argument("--job", nargs=2, metavar=("TASK", "SETTING"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    name = f"table1-{asked.steps}"
    folder, work = asked.out / name, asked.work / str(asked.steps)
    if asked.job is not None:
        task, setting = asked.job
        path = folder / f"{task}-{setting}.json"
        if setting == "random":
            return jobs.job(lambda: random_return(task, path))
        return jobs.job(lambda: train(task, setting, asked.steps, asked.seeds, work, path))
    todo = {} if asked.only_table else planned(asked, folder)
    failed = jobs.run_all(Path(__file__).resolve(), todo, work / "logs", asked.workers)
    names = [f"{task}-{setting}" for task in asked.tasks for setting in ("random", *asked.settings)]
    summary = summarized([found for name in names if (found := jobs.read(folder / f"{name}.json"))], asked.settings)
    if not summary["tasks"]:
        jobs.tell("table1: no run has finished, so there is no table")
        return 1
    jobs.write(
        asked.out / f"{name}.json",
        {
            "run": jobs.facts([word for word in sys.argv[1:] if word != "--only-table"]),
            "steps": asked.steps,
            "paper": PAPER,
            **summary,
        },
    )
    print(as_markdown(summary))
    from control_parts.pictures import draw_curves

    images = asked.out
    if asked.out == RESULTS:
        images = jobs.ROOT / "docs" / "images"
        jobs.into_page(jobs.PAGE, name, as_markdown(summary))
    print(draw_curves(folder, summary, images / f"{name}.png"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
