"""The demo over seeds and objectives, as a table: `python benchmarks/demo_table.py --seeds 0 1 2 --out runs/table`.

For each seed the first objective runs the whole demo; the others take its SFT and reward model and differ in PPO alone. With
`--models DIR` the first one too takes them, from the finished demo DIR/clip-SEED: they depend on the seed, not on PPO. The
verdict of every run is kept in benchmarks/results/; a finished run is not repeated, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from surefoot.config_file import load_config
from surefoot.launch import keep_freed_memory, set_threads
from surefoot.progress import make_progress
from surefoot.runs import RunFolder, load_manifest
from surefoot.stages import demo

RESULTS = Path(__file__).parent / "results"
VARIANTS = {
    "clip": (),
    "penalty": ("--ppo.objective", "penalty"),
    "policy_gradient": ("--ppo.objective", "policy_gradient"),
    "untethered": ("--ppo.kl_coef", "0"),
    "no_entropy_bonus": ("--ppo.ent_coef", "0"),
    "float32": ("--model.dtype", "float32"),
    # with 2e-5 the reward had hardly risen after ten rollouts
    "full_float32": (
        *("--model.dtype", "float32", "--model.tuning", "full", "--model.lora_layers", "null"),
        *("--ppo.learning_rate", "1e-4"),
    ),
}
COLUMNS = {
    "win rate": "judge_win_rate",
    "judge": ("judge_before", "judge_after"),
    "VADER": ("vader_before", "vader_after"),
    "reward": ("reward_before", "reward_after"),
    "KL": "kl_policy_sft",
    "distinct-2": ("distinct2_before", "distinct2_after"),
    "length": ("length_before", "length_after"),
    "duplicates": "duplicates",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS)[:3])
    parser.add_argument("--preset", choices=("default", "tiny"), default="default")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--models", type=Path, help="folder of finished demos whose SFT and reward models are taken")
    asked = parser.parse_args()
    set_threads(None)
    keep_freed_memory()
    for seed in asked.seeds:
        for name in asked.variants:
            first = asked.variants[0]
            models = asked.models / f"clip-{seed}" if asked.models else None if name == first else asked.out / f"{first}-{seed}"
            verdict = one_run(asked.out, seed, name, asked.preset, models=models, baseline=name == first)
            manifest = load_manifest(asked.out / f"{name}-{seed}")  # of the run itself: this may be a later look at it
            facts = {
                "command": f"python benchmarks/demo_table.py --seeds {seed} --variants {name} --preset {asked.preset}",
                **{key: manifest[key] for key in ("versions", "platform", "git")},
            }
            path = RESULTS / f"demo-{asked.preset}-{name}-{seed}.json"
            path.write_text(json.dumps({"run": facts, **verdict}, indent=2) + "\n", encoding="utf-8")
    print(table(asked.preset))
    return 0


def one_run(out: Path, seed: int, name: str, preset: str, *, models: Path | None, baseline: bool) -> dict[str, object]:
    """`baseline`: with best-of-n, which knows no objective and is needed once."""
    words = ["--seed", str(seed), *VARIANTS[name], *(() if baseline else ("--evaluate.best_of", "0"))]
    cfg = load_config(None, words, verb="demo", preset=preset)
    path = out / f"{name}-{seed}"
    with RunFolder.open(path, verb="demo", cfg=cfg, resume="auto") as folder:
        if not folder.is_done:
            demo.run(cfg, folder, make_progress(), models=models.resolve() if models else None)
    verdict: dict[str, object] = json.loads((path / "verdict.json").read_text(encoding="utf-8"))
    return verdict


def table(preset: str) -> str:
    """All kept verdicts as a Markdown table, a row a run, and the mean over the seeds of each objective."""
    lines = ["| objective | seed | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in VARIANTS:
        paths = sorted(RESULTS.glob(f"demo-{preset}-{name}-*.json"))
        kept = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        lines += [f"| {name} | {one['seed']} | " + " | ".join(_cells(one)) + " |" for one in kept]
        if len(kept) > 1:
            keys = [key for pair in COLUMNS.values() for key in ([pair] if isinstance(pair, str) else pair)]
            mean = {key: fmean(one[key] for one in kept) for key in keys}
            lines.append(f"| **{name}** | mean | " + " | ".join(f"**{cell}**" for cell in _cells(mean)) + " |")
    return "\n".join(lines)


def _cells(verdict: Mapping[str, float]) -> list[str]:
    return [
        f"{verdict[key]:.2f}" if isinstance(key, str) else f"{verdict[key[0]]:.2f} → {verdict[key[1]]:.2f}"
        for key in COLUMNS.values()
    ]


if __name__ == "__main__":
    sys.exit(main())
