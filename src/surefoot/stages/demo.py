"""The whole loop of 8.3.5 in one run: SFT, votes, reward model, PPO, evaluation by judges that were never trained on, report.

Each stage is a run folder of its own inside the demo's, so an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surefoot.config import Config
from surefoot.diagnostics.report import verdict_words, write_report
from surefoot.embedded.worlds import preference_rows, real_world, store_votes, tiny_world
from surefoot.progress import Progress
from surefoot.runs import RunFolder, load_manifest, read_jsonl
from surefoot.stages import evaluate, ppo_lm, reward, sft
from surefoot.stages.chain import on_model, run_stage, sft_config

NUM_SENTENCES = 3_000  # more than SFT reads, with a tenth held out


def run(cfg: Config, folder: RunFolder, progress: Progress, *, models: Path | None = None) -> None:
    """`models` is a finished demo's folder: its SFT and reward model are taken in place of new ones, to compare PPO alone."""
    tiny = cfg.model.name == "tiny"
    progress.say("data: " + ("made-up reviews and raters" if tiny else "film-review sentences, each rated by about 18 people"))
    world = tiny_world(cfg.seed) if tiny else real_world(cfg.seed)
    root = folder.path
    trained = models or root
    digest = store_votes(trained / "preferences.db", world.votes)
    stages: list[tuple[str, Callable[..., None], Config, Mapping[str, Any]]] = [
        ("sft", sft.run, sft_config(cfg), {"train": world.sentences[:NUM_SENTENCES]}),
        (
            "reward",
            reward.run,
            on_model(cfg, root / "sft/final", reward={"store": str(root / "preferences.db")}),
            {"validation": preference_rows(world.held_out_votes)},
        ),
        ("ppo", ppo_lm.run, _ppo_config(cfg, trained), {"prompts": world.ppo_prompts, "judges": world.judges}),
        (
            "evaluate",
            evaluate.run,
            _evaluate_config(cfg, root, trained),
            {"prompts": world.eval_prompts, "judges": world.judges},
        ),
    ]
    for name, stage, stage_cfg, given in stages if models is None else stages[2:]:
        run_stage(folder, name, name, stage, stage_cfg, given, progress)
    verdict = _verdict(cfg, root, trained, world.main_judge)
    folder.write("verdict.json", json.dumps(verdict, indent=2) + "\n")
    report = write_report(root)
    folder.finish(votes=digest)
    for line in verdict["verdict"]:
        progress.say(line)
    progress.say(f"report: {report}")


def _ppo_config(cfg: Config, root: Path) -> Config:
    return on_model(cfg, root / "sft/final", reward_source={"source": str(root / "reward/final")})


def _evaluate_config(cfg: Config, root: Path, trained: Path) -> Config:
    source, against = str(trained / "reward/final"), str(trained / "sft/final")
    return on_model(cfg, root / "ppo/final", reward_source={"source": source}, evaluate={"against": against})


def _verdict(cfg: Config, root: Path, trained: Path, judge: str) -> dict[str, Any]:
    """The figures of the whole run, and what they mean in words."""
    figures = json.loads((root / "evaluate/evaluation.json").read_text(encoding="utf-8"))
    losses = [row["validation/loss"] for row in read_jsonl(trained / "sft/metrics.jsonl") if "validation/loss" in row]
    held_out = load_manifest(trained / "reward")["facts"]["held_out"]
    main = figures["win_rates"][judge]
    seconds: dict[str, float] = {}
    for row in read_jsonl(root / "stages.jsonl"):
        seconds[row["stage"]] = round(seconds.get(row["stage"], 0.0) + row["seconds"], 2)
    verdict: dict[str, Any] = {
        "judge": judge,
        "judge_win_rate": main["win_rate"],
        "judge_win_rate_interval": main["interval"],
        "vader_win_rate": figures["win_rates"]["vader"]["win_rate"],
        "duplicates": figures["duplicates_after"],
        "duplicates_before": figures["duplicates_before"],
        "sft_loss_before": losses[0],
        "sft_loss_after": losses[-1],
    }
    for name, column in (
        ("vader", "vader"),
        ("judge", judge),
        ("reward", "reward"),
        ("distinct2", "distinct2"),
        ("length", "length"),
    ):
        verdict |= {f"{name}_{side}": figures[f"{column}_{side}"] for side in ("before", "after")}
    verdict |= {
        "kl_policy_sft": figures["kl_policy_sft"],
        "eos_rate": figures["eos_rate_after"],
        "eos_rate_before": figures["eos_rate_before"],
        "reward_model_accuracy": held_out["accuracy"],
        "reward_model_accuracy_interval": held_out["accuracy_interval"],
        "reward_model_calibration": held_out["calibration"],
        "num_prompts": figures["num_prompts"],
        "seed": cfg.seed,
        "objective": cfg.ppo.objective,
        "kl_coef": cfg.ppo.kl_coef,
        "preset": "tiny" if cfg.model.name == "tiny" else "default",
        "seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    if "best_of_n" in figures:  # evaluate.best_of 0 asks for none
        verdict["best_of_n"] = {("judge" if key == judge else key): value for key, value in figures["best_of_n"].items()}
    return verdict | {"verdict": verdict_words(verdict)}
