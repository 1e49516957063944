"""Two rounds against one of as many labels and PPO episodes: `python benchmarks/rounds_table.py --seeds 0 1 2 --out runs/table`.

For each seed one SFT model serves both: that of the first run, or with `--models DIR` of the finished demo DIR/clip-SEED, which
trains the same. One round asks for all labels at the SFT model's answers; two rounds ask for half of them there and for the
other half at the policy of the first: what differs is where the labels are spent. The figures of every run are kept in
benchmarks/results/; a finished run is not repeated, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from surefoot.config import Config
from surefoot.config_file import load_config
from surefoot.diagnostics.calibration import win_rate
from surefoot.launch import keep_freed_memory, set_threads
from surefoot.progress import make_progress
from surefoot.runs import RunFolder, load_manifest, read_jsonl
from surefoot.stages import rounds

RESULTS = Path(__file__).parent / "results"
ROUNDS = (1, 2)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a run as a whole, however many rounds it has. `between`: held-out prompts of the rounds before the last."""

    labels: int
    episodes: int
    eval_prompts: int
    between: int


# the default one is smaller than its preset, so that a run takes minutes and not half an hour
SIZES = {"default": Sizes(480, 768, 192, 48), "tiny": Sizes(600, 1536, 32, 16)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", choices=tuple(SIZES), default="default")
    parser.add_argument("--models", type=Path, help="folder of finished demos (clip-SEED) whose SFT models are taken")
    parser.add_argument("--out", type=Path, default=Path("runs/rounds-table"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are kept")
    for name in Sizes.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="in place of the preset's own size")
    asked = parser.parse_args()
    given = {name: getattr(asked, name) for name in Sizes.__dataclass_fields__ if getattr(asked, name) is not None}
    sizes = replace(SIZES[asked.preset], **given)
    taken = {seed: asked.models.resolve() / f"clip-{seed}/sft/final" for seed in asked.seeds if asked.models}
    for path in taken.values():
        if not path.is_dir():
            parser.error(f"no SFT model at {path}. Run `surefoot demo` there first, or leave --models out.")
    set_threads(None)
    keep_freed_memory()
    asked.results.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        for number in ROUNDS:
            figures = one_run(asked.out, seed, number, asked.preset, sizes, taken.get(seed))
            manifest = load_manifest(folder(asked.out, seed, number))  # of the run itself: this may be a later look at it
            words = [f"--seeds {seed} --preset {asked.preset}", *(f"--{name.replace('_', '-')} {n}" for name, n in given.items())]
            facts = {
                "command": f"python benchmarks/rounds_table.py {' '.join(words)}",
                **{key: manifest[key] for key in ("versions", "platform", "git")},
            }
            kept = asked.results / f"rounds-{asked.preset}-{number}-{seed}.json"
            kept.write_text(json.dumps({"run": facts, "sizes": asdict(sizes), **figures}, indent=2) + "\n", encoding="utf-8")
    print(table(kept_runs(asked.results, asked.preset, sizes)))
    return 0


def folder(out: Path, seed: int, number: int) -> Path:
    return out / f"{number}-rounds-{seed}"


def settings(seed: int, number: int, preset: str, sizes: Sizes) -> Config:
    """A run of `number` rounds, of which each has its share of the labels and of the episodes."""
    words = [f"--seed={seed}", f"--rounds.num_rounds={number}", f"--rounds.prompts_per_round={sizes.labels // number}"]
    words += [f"--ppo.total_episodes={sizes.episodes // number}", f"--evaluate.num_prompts={sizes.eval_prompts}"]
    if number > 1:
        words.append(f"--rounds.num_eval_prompts={sizes.between}")
    return load_config(None, words, verb="rounds", preset=preset)


def one_run(out: Path, seed: int, number: int, preset: str, sizes: Sizes, sft_model: Path | None) -> dict[str, Any]:
    """The figures of a finished run of `number` rounds, which is run where it is not finished."""
    path = folder(out, seed, number)
    if sft_model is None and number != ROUNDS[0]:
        sft_model = (folder(out, seed, ROUNDS[0]) / "sft/final").resolve()
    cfg = settings(seed, number, preset, sizes)
    with RunFolder.open(path, verb="rounds", cfg=cfg, resume="auto") as opened:
        if not opened.is_done:
            rounds.run(cfg, opened, make_progress(), sft_model=sft_model)
    rows: list[dict[str, Any]] = json.loads((path / "rounds.json").read_text(encoding="utf-8"))
    seconds = sum(row["seconds"] for row in read_jsonl(path / "stages.jsonl") if row["stage"] != "sft")
    last = answers(path / f"evaluate-{number}")
    return {"seed": seed, "num_rounds": number, "seconds_without_sft": round(seconds), "rounds": rows, "answers": last}


def answers(evaluation: Path) -> dict[str, list[float]]:
    """Every judge's numbers of the last policy's answers, prompt by prompt: runs answer the same prompts on the same draws."""
    rows = read_jsonl(evaluation / "samples.jsonl")
    names = [key for key in rows[0] if key.endswith("_after") and key not in ("length_after", "finished_after")]
    return {key.removesuffix("_after"): [float(row[key]) for row in rows] for key in names if key != "reward_after"}


def kept_runs(results: Path, preset: str, sizes: Sizes) -> list[dict[str, Any]]:
    """The figures that are kept of runs of these sizes: others cannot be compared with them."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob(f"rounds-{preset}-*.json"))]
    return [run for run in runs if run["sizes"] == asdict(sizes)]


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Runs as a Markdown table, and two rounds against one over the prompts of each seed and of all together."""
    judges = list(runs[0]["answers"])
    heads = ["rounds", "seed", "votes", *(f"{judge} against SFT" for judge in judges)]
    heads += ["KL", "distinct-2", "length", "reward accuracy"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += [f"| {run['num_rounds']} | {run['seed']} | " + " | ".join(_cells(run["rounds"][-1], judges)) + " |" for run in runs]
    by_number = {number: [run for run in runs if run["num_rounds"] == number] for number in ROUNDS}
    for number, group in by_number.items():
        rates = ", ".join(f"{judge} {fmean(run['rounds'][-1][f'win_rate/{judge}'] for run in group):.1%}" for judge in judges)
        seeds = ", ".join(str(run["seed"]) for run in group)
        lines.append(f"\n{number} round{'s' if number > 1 else ''}, mean win rate against SFT of seeds {seeds}: {rates}")
    pairs = [(one, two) for one in by_number[1] for two in by_number[2] if one["seed"] == two["seed"]]
    for judge in judges:
        each = [win_rate(two["answers"][judge], one["answers"][judge]) for one, two in pairs]
        before = [number for one, _ in pairs for number in one["answers"][judge]]
        after = [number for _, two in pairs for number in two["answers"][judge]]
        rate = win_rate(after, before)
        lines.append(
            f"Two rounds against one by {judge}: {rate.value:.1%} of {rate.count} answers to held-out prompts "
            f"(95 % interval {rate.low:.1%} to {rate.high:.1%}; ties count half); by seed "
            + ", ".join(f"{one.value:.1%}" for one in each)
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
