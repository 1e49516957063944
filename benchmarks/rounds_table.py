"""Two rounds against one of as many labels and PPO episodes: `python benchmarks/rounds_table.py --seeds 0 1 2 --out runs/table`.

For each seed one SFT model serves both. One round asks for all labels at the SFT model's answers; two rounds ask for half of them
there and for the other half at the policy of the first: what differs is where the labels are spent. The figures of every run are
kept in benchmarks/results/; a finished run is not repeated, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from surefoot.config_file import load_config
from surefoot.diagnostics.calibration import win_rate
from surefoot.launch import set_threads
from surefoot.progress import make_progress
from surefoot.runs import RunFolder, load_manifest, read_jsonl
from surefoot.stages import rounds

RESULTS = Path(__file__).parent / "results"
ROUNDS = (1, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", choices=("default", "tiny"), default="default")
    parser.add_argument("--out", type=Path, default=Path("runs/rounds-table"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are kept")
    asked = parser.parse_args()
    set_threads(None)
    asked.results.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        for number in ROUNDS:
            figures = one_run(asked.out, seed, number, asked.preset)
            manifest = load_manifest(folder(asked.out, seed, number))  # of the run itself: this may be a later look at it
            facts = {
                "command": f"python benchmarks/rounds_table.py --seeds {seed} --preset {asked.preset}",
                **{key: manifest[key] for key in ("versions", "platform", "git")},
            }
            kept = asked.results / f"rounds-{asked.preset}-{number}-{seed}.json"
            kept.write_text(json.dumps({"run": facts, **figures}, indent=2) + "\n", encoding="utf-8")
    print(table(asked.results, asked.preset))
    return 0


def folder(out: Path, seed: int, number: int) -> Path:
    return out / f"{number}-rounds-{seed}"


def one_run(out: Path, seed: int, number: int, preset: str) -> dict[str, Any]:
    """One run of `number` rounds. Its labels and episodes in all are those of the preset's rounds together."""
    base = load_config(None, [], verb="rounds", preset=preset)
    labels = base.rounds.num_rounds * base.rounds.prompts_per_round
    episodes = base.rounds.num_rounds * base.ppo.total_episodes
    words = [f"--seed={seed}", f"--rounds.num_rounds={number}", f"--rounds.prompts_per_round={labels // number}"]
    cfg = load_config(None, [*words, f"--ppo.total_episodes={episodes // number}"], verb="rounds", preset=preset)
    path = folder(out, seed, number)
    shared = None if number == ROUNDS[0] else (folder(out, seed, ROUNDS[0]) / "sft/final").resolve()
    with RunFolder.open(path, verb="rounds", cfg=cfg, resume="auto") as opened:
        if not opened.is_done:
            rounds.run(cfg, opened, make_progress(), sft_model=shared)
    rows: list[dict[str, Any]] = json.loads((path / "rounds.json").read_text(encoding="utf-8"))
    return {"seed": seed, "num_rounds": number, "rounds": rows, "answers": answers(path / f"evaluate-{number}")}


def answers(evaluation: Path) -> dict[str, list[float]]:
    """Every judge's numbers of the last policy's answers, prompt by prompt: runs answer the same prompts on the same draws."""
    rows = read_jsonl(evaluation / "samples.jsonl")
    names = [key for key in rows[0] if key.endswith("_after") and key not in ("length_after", "finished_after")]
    return {key.removesuffix("_after"): [float(row[key]) for row in rows] for key in names if key != "reward_after"}


def table(results: Path, preset: str) -> str:
    """All kept figures as a Markdown table, and two rounds against one over the prompts of all seeds together."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob(f"rounds-{preset}-*.json"))]
    judges = list(runs[0]["answers"])
    heads = [
        "rounds",
        "seed",
        "votes",
        *(f"{judge} against SFT" for judge in judges),
        "KL",
        "distinct-2",
        "length",
        "reward accuracy",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += [f"| {run['num_rounds']} | {run['seed']} | " + " | ".join(_cells(run["rounds"][-1], judges)) + " |" for run in runs]
    by_number = {number: [run for run in runs if run["num_rounds"] == number] for number in ROUNDS}
    for number, group in by_number.items():
        rates = ", ".join(f"{judge} {fmean(run['rounds'][-1][f'win_rate/{judge}'] for run in group):.1%}" for judge in judges)
        lines.append(f"\n{number} round{'s' if number > 1 else ''}, mean win rate against SFT over {len(group)} seeds: {rates}")
    pairs = [(one, two) for one in by_number[1] for two in by_number[2] if one["seed"] == two["seed"]]
    for judge in judges:
        before = [number for one, _ in pairs for number in one["answers"][judge]]
        after = [number for _, two in pairs for number in two["answers"][judge]]
        rate = win_rate(after, before)
        lines.append(
            f"Two rounds against one by {judge}: {rate.value:.1%} of {rate.count} answers to held-out prompts "
            f"(95 % interval {rate.low:.1%} to {rate.high:.1%}; {len(pairs)} seeds; ties count half)"
        )
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], judges: Sequence[str]) -> list[str]:
    def rate(judge: str) -> str:
        low, high = row[f"win_rate_interval/{judge}"]
        return f"{row[f'win_rate/{judge}']:.1%} ({low:.0%} to {high:.0%})"

    accuracy = row.get("rounds/reward_accuracy")
    figures = [f"{row[f'rounds/{key}']:.2f}" for key in ("kl", "distinct2", "length")]
    return [str(row["rounds/votes"]), *map(rate, judges), *figures, "" if accuracy is None else f"{accuracy:.3f}"]


if __name__ == "__main__":
    sys.exit(main())
