"""Control: what Surefoot and Stable-Baselines3 learn in equally many steps: `python benchmarks/control_learning.py`.

The same hyper-parameters and environments, five seeds a side: rl-zoo's for CartPole-v1 (`configs/control/cartpole.yaml`, the clip
constant on both sides), SB3's defaults with normalised observations and rewards for MuJoCo (`configs/control/mujoco.yaml`,
`VecNormalize`). The agents are judged alike: episodes by the likeliest actions, statistics frozen, the same start states on both
sides. The criterion is the 95 % interval (Welch) of the difference of the means over seeds, as a share of SB3's mean.

Stable-Baselines3 is needed here and in control_speed.py alone: `pip install -c constraints.txt stable-baselines3==2.9.2`.
What an agent came to is a JSON below --work; a finished agent is not trained again, an interrupted command goes on. The summary
goes to benchmarks/results/control-learning.json, its table into docs/control.md.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np

from control_parts import jobs
from surefoot.config import Config
from surefoot.config_file import load_config
from surefoot.launch import set_threads, usable_cores

RECIPES = jobs.ROOT / "configs" / "control"
RESULT = jobs.ROOT / "benchmarks" / "results" / "control-learning.json"
# name: recipe, steps, whether observations and rewards are normalised
CASES = {
    "CartPole-v1": ("cartpole.yaml", 98_304),
    "Hopper-v5": ("mujoco.yaml", 200_704),
    "HalfCheetah-v5": ("mujoco.yaml", 301_056),
    "Walker2d-v5": ("mujoco.yaml", 301_056),
}
SIDES = ("surefoot", "sb3")
EPISODES = 20  # of a judgement
FIRST_START = 10_000  # the seed of the first of them
SOLVED = {"CartPole-v1": 475.0}
TOLERATED = -0.05  # of SB3's mean

Act = Callable[[np.ndarray], Any]


def config(case: str, steps: int, seed: int) -> Config:
    recipe = RECIPES / CASES[case][0]
    sized = ["--control.env", case, "--control.total_timesteps", str(steps), "--control.eval_every", "0", "--seed", str(seed)]
    return load_config(recipe, [*sized, "--threads", "1"], verb="control", preset="default")


def ours(case: str, steps: int, seeds: list[int], work: Path) -> None:
    """The seeds side by side as one batched network, as `surefoot control --seeds` trains them."""
    import surefoot
    from surefoot.progress import PlainProgress
    from surefoot.runs import read_jsonl
    from surefoot.stages import control_seeds

    configs = [config(case, steps, seed) for seed in seeds]
    folders = [work / f"{case}-surefoot" / f"seed-{seed}" for seed in seeds]
    control_seeds.train_seeds(configs, folders, "auto", PlainProgress(sys.stdout))
    for seed, folder in zip(seeds, folders, strict=True):
        agent, last = surefoot.ControlRun.load(folder / "final"), read_jsonl(folder / "metrics.jsonl")[-1]

        def act(seen: np.ndarray, agent: surefoot.ControlRun = agent) -> Any:
            return agent.predict(seen, deterministic=True)[0]

        keep(work, case, "surefoot", seed, last["time/total_timesteps"], last["rollout/ep_rew_mean"], played(case, act))


def theirs(case: str, steps: int, seeds: list[int], work: Path) -> None:
    """By Stable-Baselines3, from the same recipe."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    for seed in seeds:
        cfg = config(case, steps, seed)
        control, ppo = cfg.control, cfg.ppo
        is_normalized = control.normalize_observations
        envs = make_vec_env(case, n_envs=control.num_envs, seed=seed)
        if is_normalized:
            envs = VecNormalize(envs, gamma=ppo.gamma, clip_obs=control.normalize_clip, clip_reward=control.normalize_clip)
        rate = ppo.learning_rate
        model = PPO(
            "MlpPolicy",
            envs,
            learning_rate=rate if ppo.lr_scheduler == "constant" else lambda left, rate=rate: left * rate,
            n_steps=control.num_steps,
            batch_size=control.batch_size,
            n_epochs=ppo.num_ppo_epochs,
            gamma=ppo.gamma,
            gae_lambda=ppo.lam,
            clip_range=ppo.cliprange,
            ent_coef=ppo.ent_coef,
            vf_coef=ppo.vf_coef / 2,  # its loss has no factor 1/2
            max_grad_norm=ppo.max_grad_norm,
            seed=seed,
            device="cpu",
        )
        model.learn(control.num_updates * control.num_rows)
        returns = [episode["r"] for episode in model.ep_info_buffer]

        def act(seen: np.ndarray, model: PPO = model, envs: Any = envs, is_normalized: bool = is_normalized) -> Any:
            return model.predict(envs.normalize_obs(seen) if is_normalized else seen, deterministic=True)[0]

        keep(work, case, "sb3", seed, model.num_timesteps, fmean(returns), played(case, act))
        envs.close()


def played(case: str, act: Act) -> list[float]:
    """The returns of EPISODES episodes, whose starts are the same for whoever acts."""
    import gymnasium

    env, returns = gymnasium.make(case), []
    for episode in range(EPISODES):
        seen, _ = env.reset(seed=FIRST_START + episode)
        total, is_over = 0.0, False
        while not is_over:
            seen, reward, terminated, truncated, _ = env.step(act(np.asarray(seen)))
            total, is_over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def place(work: Path, case: str, side: str, seed: int) -> Path:
    return work / f"{case}-{side}-{seed}.json"


def keep(work: Path, case: str, side: str, seed: int, steps: float, training: float, returns: list[float]) -> None:
    figures = {"evaluated": fmean(returns), "deviation": stdev(returns), "training": training}
    about = {"case": case, "side": side, "seed": seed, "steps": int(steps), "cpu_seconds": round(time.process_time(), 1)}
    jobs.write(place(work, case, side, seed), {**about, **figures})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scale", type=float, default=1.0, help="shorter runs: steps are multiplied by it")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="jobs at a time, a thread each")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/control-learning"), help="run folders, and what each agent came to"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only-table", action="store_true", help="train nothing: the table of what is finished")
    parser.add_argument("--job", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not jobs.is_installed("stable-baselines3"):
        jobs.tell("This benchmark needs Stable-Baselines3: pip install -c constraints.txt stable-baselines3==2.9.2")
        return 2
    work = asked.work / f"{asked.scale:g}"
    if asked.job is not None:
        warnings.filterwarnings("ignore")
        set_threads(1)
        case, side = asked.job
        run = ours if side == "surefoot" else theirs
        return jobs.job(lambda: run(case, round(CASES[case][1] * asked.scale), asked.seeds, work))
    todo = {} if asked.only_table else planned(asked, work)
    failed = jobs.run_all(Path(__file__).resolve(), todo, work / "logs", asked.workers)
    cases = {}
    for case in asked.cases:
        found = {side: [jobs.read(place(work, case, side, seed)) for seed in asked.seeds] for side in SIDES}
        if all(all(runs) for runs in found.values()):
            cases[case] = compared(case, found)
    if cases:
        words = [word for word in sys.argv[1:] if word != "--only-table"]
        facts = jobs.facts(words, "stable-baselines3", "scipy")
        jobs.write(asked.out, {"run": facts, "episodes": EPISODES, "seeds": asked.seeds, "cases": cases})
        print(as_markdown(cases))
        if asked.out == RESULT:
            jobs.into_page(jobs.PAGE, "control-learning", as_markdown(cases))
    return 1 if failed or not cases else 0


def planned(asked: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    """A job is all missing seeds of ours, or one of SB3's."""
    todo = {}
    given = ["--work", str(asked.work), "--scale", str(asked.scale), "--job"]
    for case in asked.cases:
        missing = {side: [s for s in asked.seeds if not place(work, case, side, s).exists()] for side in SIDES}
        if missing["surefoot"]:
            todo[f"{case}-surefoot"] = ["--seeds", *map(str, missing["surefoot"]), *given, case, "surefoot"]
        for seed in missing["sb3"]:
            todo[f"{case}-sb3-{seed}"] = ["--seeds", str(seed), *given, case, "sb3"]
    return todo


def compared(case: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Both sides' figures by seed, and the difference of the means with its 95 % interval (Welch), as shares of SB3's mean."""
    out: dict[str, Any] = {"steps": {side: runs[0]["steps"] for side, runs in found.items()}}
    for figure in ("evaluated", "training"):
        here, there = ([run[figure] for run in found[side]] for side in SIDES)
        difference, scale = fmean(here) - fmean(there), abs(fmean(there))
        low, high = (difference + sign * half_width(here, there) for sign in (-1, 1))
        out[figure] = {
            "surefoot": here,
            "sb3": there,
            "difference": difference / scale,
            "interval": [low / scale, high / scale],
            "reaches_above_tolerated": high / scale > TOLERATED,
        }
    if case in SOLVED:
        out["is_solved"] = min(out["evaluated"]["surefoot"]) >= SOLVED[case]
    return out


def half_width(here: list[float], there: list[float]) -> float:
    """Of Welch's 95 % interval of a difference of means; 0 where every seed of both sides came to the same."""
    from scipy.stats import t as student

    a, b = variance(here) / len(here), variance(there) / len(there)
    if a + b == 0:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (len(here) - 1) + b**2 / (len(there) - 1))
    return float(student.ppf(0.975, freedom)) * math.sqrt(a + b)


def as_markdown(cases: dict[str, Any]) -> str:
    lines = [
        "| | steps | here, judged | SB3, judged | difference, 95 % interval | here, training | SB3, training | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, both in cases.items():
        cells = [f"{both['steps']['surefoot']:,}"]
        for figure in ("evaluated", "training"):
            one = both[figure]
            cells += [f"{fmean(one[side]):,.0f} ± {stdev(one[side]):,.0f}" for side in SIDES]
            cells.append(f"{one['difference']:+.0%} ({one['interval'][0]:+.0%} to {one['interval'][1]:+.0%})")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
