"""Do the alarms of PPO name what a reward is hacked by? `python benchmarks/planted_bugs.py --jobs 2`.

On the demo's tiny world, whose reward model is trained on made-up votes and whose judge knows the truth, bugs are planted in the
reward: a bonus a word, for one magic word, for repetition, for a word in the first place; ten seeds of each, beside 30 clean
runs. In ten further runs the prompts change midway, and ten beside them keep theirs. The limits of the alarms are those of the
configuration. They were chosen on clean runs of other seeds (--calibrate, seeds 1000 to 1029), which share no model with these
(seeds 3000 to 3029).

A run is a kind and a seed; its figures are one JSON below --out. A finished run is not repeated, so an interrupted command goes
on where it stopped. The summary goes to benchmarks/results/planted-bugs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from planted_bugs_parts.judged import calibrated, markdown, summarized
from planted_bugs_parts.runs import NUM_WORLDS, models, run

RESULTS = Path(__file__).parent / "results"
BUGS = ("length", "token", "repetition", "position")
FIRST = 3000
TEST = [("clean", FIRST + seed) for seed in range(30)]
TEST += [(kind, FIRST + seed) for kind in (*BUGS, "shift", "control") for seed in range(10)]
CALIBRATION = [("clean", seed) for seed in range(1000, 1030)]
QUICK = [("clean", 0), ("token", 0), ("shift", 0)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true", help="the largest figures of clean runs of other seeds, and stop")
    parser.add_argument("--quick", action="store_true", help="one run of three kinds; the summary stays below --out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/planted-bugs"))
    asked = parser.parse_args()
    wanted = CALIBRATION if asked.calibrate else QUICK if asked.quick else TEST
    asked.out.mkdir(parents=True, exist_ok=True)
    for kind, seed in sorted({("world", seed - seed % 1000 + seed % NUM_WORLDS) for _, seed in wanted}):
        print(f"{kind} {seed}", flush=True)
        models(asked.out, seed)
    missing = [(kind, seed) for kind, seed in wanted if not place(asked.out, kind, seed).exists()]
    if asked.jobs == 1:
        for one in missing:
            measure(asked.out, *one)
    else:
        with ProcessPoolExecutor(asked.jobs) as pool:
            for done in [pool.submit(measure, asked.out, *one) for one in missing]:
                done.result()
    found = {one: json.loads(place(asked.out, *one).read_text(encoding="utf-8")) for one in wanted}
    if asked.calibrate:
        figures, path = calibrated(found), RESULTS / "planted-bugs-calibration.json"
        print(json.dumps(figures, indent=2))
    else:
        figures, path = summarized(found), asked.out / "quick.json" if asked.quick else RESULTS / "planted-bugs.json"
        print(markdown(figures))
    command = f"python benchmarks/planted_bugs.py{' --calibrate' if asked.calibrate else ' --quick' if asked.quick else ''}"
    path.write_text(json.dumps({"command": command, **figures}, indent=1) + "\n", encoding="utf-8")
    return 0


def place(out: Path, kind: str, seed: int) -> Path:
    return out / f"{kind}-{seed}.json"


def measure(out: Path, kind: str, seed: int) -> None:
    """One run; its file appears whole or not at all."""
    figures = run(out, kind, seed)
    fresh = place(out, kind, seed).with_suffix(".new")
    fresh.write_text(json.dumps(figures), encoding="utf-8")
    fresh.rename(place(out, kind, seed))
    print(f"{kind} {seed}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
