"""Why PPO takes small steps (8.3.1), measured: `python benchmarks/why_ppo.py`.

On CartPole-v1 and on a language of 8 words whose J is a finite sum, the policy gradient, PPO-Clip, PPO-Penalty with a fixed
beta and PPO-Penalty with the chapter's exponential rule make 1, 4, 10 and 20 epochs over each batch. Around every update stand
J before and after, the exact KL(pi_old || pi_theta), and the ratio on fresh samples of pi_old. Beside it the error and the cost
of exact KL and of k1, k2, k3 over a vocabulary.

A run is a task, an objective, a number of epochs and a seed; its figures are one JSON below --out. A finished run with the same
sizes is not repeated, so an interrupted command goes on where it stopped. The summary goes to benchmarks/results/why-ppo.json,
the pictures to docs/images/; with --quick, a smoke run of seconds, both stay below --out.

Pictures are drawn by matplotlib (in the `dev` extra). The report's charts are plotly's, but plotly writes a static image only
through kaleido and a Chrome that it drives, which is more to install than the picture is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from surefoot.config import PPOConfig
from surefoot.core import exponential_rule
from surefoot.optim import make_optimizer
from surefoot.ppo import ppo_update
from surefoot.runtime import SingleRuntime
from why_ppo_parts.cartpole import CartPoleTask
from why_ppo_parts.kl import kl_figures
from why_ppo_parts.measure import Task
from why_ppo_parts.pictures import draw_all
from why_ppo_parts.summary import markdown, summarize
from why_ppo_parts.tokens import TokenTask

HERE = Path(__file__).resolve().parent

OBJECTIVES: dict[str, dict[str, Any]] = {
    "policy_gradient": {"objective": "policy_gradient"},
    "clip": {"objective": "clip", "cliprange": 0.2},
    "penalty": {"objective": "penalty", "beta": 1.0},
    "adaptive": {"objective": "penalty", "beta": 1.0, "beta_controller": "exponential", "beta_target": 0.01, "beta_rate": 20.0},
}
EPOCHS = (1, 4, 10, 20)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. `fresh_*` are episodes (CartPole, before and after an update) and answers (tokens, for the ratio)."""

    cartpole_updates: int
    num_envs: int
    num_steps: int
    fresh_episodes: int
    token_updates: int
    token_rows: int
    fresh_answers: int
    kl_tokens: int
    kl_repeats: int
    vocabularies: tuple[int, ...]


FULL = Sizes(12, 8, 128, 96, 25, 128, 1_000, 32, 5, (512, 2_048, 8_192, 49_152))
QUICK = Sizes(2, 8, 32, 32, 3, 64, 2_000, 4, 2, (64, 512))


@dataclass(frozen=True, slots=True)
class Run:
    task: str
    objective: str
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.objective}-{self.epochs}-{self.seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/why-ppo"), help="one JSON a run")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2; with --quick: 0")
    parser.add_argument("--quick", action="store_true", help="seconds: tiny sizes, 1 and 20 epochs")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sizes, epochs = (QUICK, (1, 20)) if asked.quick else (FULL, EPOCHS)
    seeds = asked.seeds or ([0] if asked.quick else [0, 1, 2])
    results, images = (asked.out, asked.out) if asked.quick else (HERE / "results", HERE.parent / "docs" / "images")
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = [Run(task, name, n, seed) for seed in seeds for task in ("tokens", "cartpole") for n in epochs for name in OBJECTIVES]
    kept = [kept_or_made(asked.out / f"{run.name}.json", run, sizes) for run in progress(runs)]
    estimators = kept_or_made(asked.out / "kl.json", None, sizes)
    summary = {"run": facts(sizes, seeds, [*kept, estimators]), **summarize(kept), "kl": estimators["figures"]}
    write(results / "why-ppo.json", summary)
    for task in ("tokens", "cartpole"):
        print(f"{task}\n{markdown(summary['settings'], task)}\n")
    for path in draw_all(kept, summary, images):
        print(path)
    return 0


def progress(runs: list[Run]) -> Iterator[Run]:
    for i, run in enumerate(runs):
        print(f"{i + 1}/{len(runs)} {run.name}", file=sys.stderr, flush=True)
        yield run


def kept_or_made(path: Path, run: Run | None, sizes: Sizes) -> dict[str, Any]:
    """What `path` holds if it was made with these sizes and settings; else it is measured now. None is the KL estimators."""
    made_with = json.loads(json.dumps({"sizes": asdict(sizes), "ppo": run and settings(run).model_dump(mode="json")}))
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["made_with"] == made_with:
            return kept
    start = time.process_time()
    if run is None:
        content: dict[str, Any] = {
            "figures": kl_figures(tokens=sizes.kl_tokens, repeats=sizes.kl_repeats, vocabularies=sizes.vocabularies)
        }
    else:
        content = {**asdict(run), "updates": list(updates(run, sizes))}
    content |= {"cpu_seconds": round(time.process_time() - start, 2), "made_with": made_with}
    write(path, content)
    return content


def settings(run: Run) -> PPOConfig:
    sizes = {"rollout_batch_size": 1024, "num_mini_batches": 2, "micro_batch_size": 1024, "num_ppo_epochs": run.epochs}
    rates = {"learning_rate": 2e-3 if run.task == "cartpole" else 6e-3, "max_grad_norm": 0.5}
    goes_on = {"max_skipped_steps": 1_000_000}  # a policy that ran away is a finding here, and no reason to stop
    return PPOConfig(**{**sizes, **rates, **goes_on, **OBJECTIVES[run.objective]})


def make_task(run: Run, sizes: Sizes) -> Task:
    if run.task == "cartpole":
        return CartPoleTask(run.seed, num_envs=sizes.num_envs, num_steps=sizes.num_steps, fresh=sizes.fresh_episodes)
    return TokenTask(run.seed, rows=sizes.token_rows, fresh=sizes.fresh_answers)


def updates(run: Run, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Trains, and yields the figures of each update: those of `Outcome`, and PPO's own."""
    cfg, task = settings(run), make_task(run, sizes)
    optimizer, generator = make_optimizer(task.actor_critic, cfg), torch.Generator().manual_seed(run.seed)
    beta = cfg.beta
    for update in range(sizes.cartpole_updates if run.task == "cartpole" else sizes.token_updates):
        before, batch = task.before(), task.rollout()
        given = {"optimizer": optimizer, "runtime": SingleRuntime(), "generator": generator, "beta": beta, "kl_coef": 0.0}
        stats = ppo_update(task.actor_critic, batch, cfg, **given)
        own = {"clip_fraction": stats.clip_fraction, "outside_fraction": stats.outside_fraction, "entropy": stats.entropy}
        yield {"update": update, "beta": beta, **asdict(before.after()), **own, "skipped": stats.skipped}
        if cfg.beta_controller == "exponential":
            beta = exponential_rule(beta, stats.kl_after, target=cfg.beta_target, rate=cfg.beta_rate)


def facts(sizes: Sizes, seeds: list[int], kept: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", *sys.argv]),
        "seeds": seeds,
        "sizes": asdict(sizes),
        "cpu_minutes": round(sum(one["cpu_seconds"] for one in kept) / 60, 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("surefoot", "torch", "numpy", "gymnasium", "matplotlib")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """A whole file or none: an interrupted command leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main())
