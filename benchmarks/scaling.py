"""How cost grows: `python benchmarks/scaling.py`, one PPO iteration at 1x, 2x and 4x prompt, response, batch, model, vocabulary.

Each point is a process of its own, so that its peak memory is its own. A row of the table is an axis; an exponent is the slope of
the logarithm of a cost over the logarithm of the factor: 1 is linear, 0 is no growth. Memory is what a process needs beyond the
loaded model. The minibatch is not cut (micro-batches as large as the batch), so that memory shows how it grows with tokens.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from control_parts.jobs import into_page, write
from ppo_iteration_parts.work import Work
from turn_parts.models import Shape, save_made
from turn_parts.parent import BENCHMARKS, PAGE, Side, run_facts

RESULTS = BENCHMARKS / "results" / "scaling.json"
AXES = ("prompt", "response", "batch", "layers", "vocabulary")
FACTORS = (1, 2, 4)
# SmolLM2's width in fewer blocks and a smaller vocabulary, so that 4x of each still fits a laptop
BASES = {
    "smollm2": (Work(rows=16, response=32, micro_batch=16, shortest=32, longest=32), Shape(576, 1536, 8, 9, 3, 12_288)),
    "tiny": (Work(rows=2, response=2, micro_batch=2, shortest=2, longest=2), Shape(32, 64, 1, 4, 2, 512)),
}
COSTS = ("rollout", "evaluate", "update", "seconds", "memory_gib")


def scaled(axis: str, factor: int, work: Work, shape: Shape) -> tuple[Work, Shape]:
    """The base with one axis `factor` times as long."""
    match axis:
        case "prompt":
            return replace(work, shortest=work.shortest * factor, longest=work.longest * factor), shape
        case "response":
            return replace(work, response=work.response * factor), shape
        case "batch":
            return replace(work, rows=work.rows * factor, micro_batch=work.micro_batch * factor), shape
        case "layers":
            return work, replace(shape, num_hidden_layers=shape.num_hidden_layers * factor)
        case _:
            return work, replace(shape, vocab_size=shape.vocab_size * factor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=BASES, default="smollm2")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--tuning", choices=("lora", "full"), default="lora")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    base = BASES[asked.base]
    first, axes = point(*base, asked), {}
    for axis in asked.axes:
        points = [first, *(point(*scaled(axis, factor, *base), asked) for factor in FACTORS[1:])]
        axes[axis] = {"points": points, "exponents": {cost: slope([p[cost] for p in points]) for cost in COSTS}}
        print(f"{axis}: {axes[axis]['exponents']}", file=sys.stderr, flush=True)
    facts = run_facts(asked.device) | {
        "threads": first["threads"],
        "tuning": asked.tuning,
        "dtype": asked.dtype,
        "work": asdict(base[0]),
        "shape": asdict(base[1]),
        "factors": FACTORS,
    }
    write(asked.out, {"run": facts, "axes": axes})
    print(text := table(facts, axes))
    if asked.out == RESULTS:
        into_page(PAGE, "scaling", text)
    return 0


def point(work: Work, shape: Shape, asked: argparse.Namespace) -> dict[str, Any]:
    """Medians of one iteration's stages, and the peak of memory beyond the loaded model."""
    facts = {"work": asdict(work), "tuning": asked.tuning, "dtype": asked.dtype, "lora_layers": None}
    facts |= {"old_logprobs": "recomputed", "threads": asked.threads, "device": asked.device, "reward_layer": None}
    with tempfile.TemporaryDirectory() as folder:
        save_made(shape, Path(folder), getattr(torch, asked.dtype))
        side = Side("scaling", [sys.executable, "-m", "ppo_iteration_parts.ours"], facts | {"model": folder})
    runs = [side.turn() for _ in range(asked.repetitions + 1)]
    side.close()

    def median(*stages: str) -> float:
        return statistics.median(sum(run["stages"][stage] for stage in stages) for run in runs[1:])

    return {
        "rollout": median("rollout"),
        "evaluate": median("evaluate"),
        "update": median("forward", "backward", "optimiser"),
        "seconds": statistics.median(run["seconds"] for run in runs[1:]),
        "memory_gib": max(max(run["peak_gib"] for run in runs) - side.ready["held_gib"], 0.0),
        "loaded_gib": side.ready["held_gib"],
        "threads": side.ready["threads"],
        "foreign_cores": max(run["foreign_cores"] for run in runs[1:]),
    }


def slope(costs: Sequence[float]) -> float | None:
    """The least-squares slope of log cost over log factor; None where a cost is too small to be seen."""
    if min(costs) <= 0:
        return None
    return round(statistics.linear_regression([math.log(f) for f in FACTORS], [math.log(cost) for cost in costs]).slope, 3)


def table(facts: Mapping[str, Any], axes: Mapping[str, Mapping[str, Any]]) -> str:
    """As Markdown: memory and time at each factor, and the exponents of all costs."""
    foreign = max(p["foreign_cores"] for axis in axes.values() for p in axis["points"])
    lines = [
        f"`{facts['command']}` on {facts['machine']} ({facts['device']}), {facts['threads']} threads, {facts['tuning']}, "
        f"{facts['dtype']}; other processes kept up to {foreign:.1f} cores busy.",
        "",
        "| axis | s at 1x, 2x, 4x | MiB beyond the model at 1x, 2x, 4x | exponents: rollout | evaluate | update | all | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, axis in axes.items():
        seconds = ", ".join(f"{p['seconds']:.2f}" for p in axis["points"])
        memory = ", ".join(f"{p['memory_gib'] * 1024:.0f}" for p in axis["points"])
        exponents = " | ".join("" if axis["exponents"][cost] is None else f"{axis['exponents'][cost]:.2f}" for cost in COSTS)
        lines.append(f"| {name} | {seconds} | {memory} | {exponents} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
