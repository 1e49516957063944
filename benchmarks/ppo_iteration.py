"""One PPO iteration of a language model, ours beside TRL's: `python benchmarks/ppo_iteration.py [--trl-python PATH]`.

Work W: SmolLM2-135M, 32 prompts of 12 to 24 tokens, 32 new tokens without stop, policy, reference, value and reward model, one
epoch, micro-batches of 8. The sides are processes that take turns in one run, so that their ratio means something on a machine
that others use too. `--trl-python` names the interpreter of an environment with `trl==1.12.0 datasets peft` (the last TRL with
PPO); without it our own configurations are measured alone. The floor is FLOPs over the measured rate of matrix products.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from control_parts.jobs import into_page, write
from ppo_iteration_parts.floor import flops, matrix_rate
from ppo_iteration_parts.work import Work
from surefoot.launch import set_threads
from turn_parts.models import model_folder
from turn_parts.parent import PAGE, Side, run_facts

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ppo-iteration.json"
ALONE = RESULTS.with_name("ppo-iteration-alone.json")  # a run without TRL takes nothing from the page
WARM_UP = 2  # turns of each side: memory is taken from the system in both, and little of it later
# name: side, tuning, dtype, blocks with adapters (None: all), ppo.old_logprobs. TRL takes log-probs from its sampler's logits.
CASES: dict[str, tuple[str, str, str, int | None, str]] = {
    "trl full float32": ("trl", "full", "float32", None, ""),
    "trl lora float32": ("trl", "lora", "float32", None, ""),
    "full float32": ("ours", "full", "float32", None, "sampled"),
    "lora float32": ("ours", "lora", "float32", None, "sampled"),
    "lora float32, recomputed": ("ours", "lora", "float32", None, "recomputed"),
    "lora bfloat16": ("ours", "lora", "bfloat16", None, "sampled"),
    "lora bfloat16, compiled": ("ours", "lora", "bfloat16", None, "sampled"),  # the blocks under torch.compile
    "upper half lora float32": ("ours", "lora", "float32", -2, "sampled"),
    "upper half lora bfloat16": ("ours", "lora", "bfloat16", -2, "sampled"),
}


def side(name: str, work: Work, asked: argparse.Namespace, folder: Path, num_layers: int) -> Side:
    who, tuning, dtype, layers, old_logprobs = CASES[name]
    facts = {
        "work": asdict(work),
        "tuning": tuning,
        "dtype": dtype,
        "lora_layers": num_layers // 2 if layers == -2 else layers,
        "old_logprobs": old_logprobs,
        "compiled": name.endswith("compiled"),
        "threads": asked.threads,
        "device": asked.device,
        "reward_layer": None,
        "model": str(folder),
    }
    theirs = [str(asked.trl_python), str(HERE / "ppo_iteration_parts" / "theirs.py")]
    return Side(name, theirs if who == "trl" else [sys.executable, "-m", "ppo_iteration_parts.ours"], facts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, help="default: all but the compiled one, those of TRL where --trl-python is given"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--trl-python", type=Path)
    parser.add_argument("--model", default="embedded", help="embedded, tiny, made-0.5b, made-1.5b, or a folder")
    parser.add_argument("--response", type=int, default=32, help="new tokens a prompt")
    parser.add_argument("--rows", type=int, default=32, help="prompts")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name}, or {ALONE.name} without --trl-python")
    asked = parser.parse_args()
    names = asked.cases or [
        name for name, case in CASES.items() if (case[0] == "ours" or asked.trl_python) and not name.endswith("compiled")
    ]
    if any(CASES[name][0] == "trl" for name in names) and not asked.trl_python:
        print("TRL runs in an environment of its own: name its interpreter with --trl-python.", file=sys.stderr)
        return 2
    set_threads(asked.threads)
    work = replace(Work(), response=asked.response, rows=asked.rows)
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with model_folder(asked.model) as folder:
        sizes = model_sizes(folder)
        sides = [side(name, work, asked, folder, sizes["layers"]) for name in names]
    for repetition in range(-WARM_UP, asked.repetitions):
        for each in sides:
            line = each.turn()
            print(f"{each.name}: {line['seconds']:.2f} s", file=sys.stderr, flush=True)
            if repetition >= 0:
                kept[each.name].append(line)
    for each in sides:
        each.close()
    rates = {
        dtype: matrix_rate(getattr(torch, dtype), asked.device, sizes["width"], sizes["inner"], work.rows * work.response)
        for dtype in sorted({CASES[name][2] for name in names})
    }
    cases = {name: case_of(name, kept[name], sizes, rates, work) for name in names}
    facts = run_facts(asked.device) | {
        "model": asked.model,
        "threads": sides[0].ready["threads"],
        "work": asdict(work),
        "matrix_gflops": {dtype: round(rate / 1e9, 1) for dtype, rate in rates.items()},
    }
    out = asked.out or (RESULTS if asked.trl_python else ALONE)
    write(out, {"run": facts, "cases": cases})
    print(table(cases))
    if out == RESULTS:
        into_page(PAGE, "ppo-iteration", f"{run_line(facts, cases)}\n\n{table(cases)}")
    return 0


def run_line(facts: Mapping[str, Any], cases: Mapping[str, Mapping[str, Any]]) -> str:
    """On what, and beside what, a table's figures were measured."""
    foreign = max(case["foreign_cores"] for case in cases.values())
    return (
        f"`{facts['command']}` on {facts['machine']} ({facts['device']}), {facts['threads']} threads; other processes kept up to "
        f"{foreign:.1f} cores busy."
    )


def model_sizes(folder: Path) -> dict[str, int]:
    """Blocks, weights in their matrix products and in the head's, and the shape of the most frequent product."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    widest = max(linear, key=lambda m: m.weight.numel())
    return {
        "blocks": sum(m.weight.numel() for m in linear),
        "layers": config.num_hidden_layers,
        "head": head.weight.numel(),
        "width": config.hidden_size,
        "inner": max(widest.weight.shape),
    }


def case_of(
    name: str, runs: list[dict[str, Any]], sizes: Mapping[str, int], rates: Mapping[str, float], work: Work
) -> dict[str, Any]:
    _, tuning, dtype, layers, _ = CASES[name]
    need = flops(
        work, blocks=sizes["blocks"], head=sizes["head"], full=tuning == "full", shared=0.5 if layers == -2 else 0.0, reward=1.0
    )
    seconds = statistics.median(run["seconds"] for run in runs)
    floor = {stage: need[stage] / rates[dtype] for stage in need}
    out = {
        "seconds": seconds,
        "tokens_per_second": runs[0]["tokens"] / seconds,
        "peak_gib": max(run["peak_gib"] for run in runs),
        "floor_seconds": sum(floor.values()),
        "over_floor": seconds / sum(floor.values()),
        "foreign_cores": statistics.median(run["foreign_cores"] for run in runs),
        "floor_stages": floor,
        "runs": runs,
    }
    if "stages" in runs[0]:
        out["stages"] = {stage: statistics.median(run["stages"][stage] for run in runs) for stage in runs[0]["stages"]}
    return out


def table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """As Markdown: seconds an iteration, against TRL's full fine-tuning, over the floor of its own arithmetic, and by stage."""
    stages = ("rollout", "reward", "evaluate", "forward", "backward", "optimiser", "other")
    base = cases.get("trl full float32")
    lines = [
        "| | s an iteration | TRL's over it | over its floor | peak GiB | tokens/s | " + " | ".join(stages) + " |",
        "|---" * (len(stages) + 6) + "|",
    ]
    for name, case in cases.items():
        split = [f"{case['stages'][stage]:.2f}" if "stages" in case else "" for stage in stages]
        ratio = f"{base['seconds'] / case['seconds']:.2f}" if base else ""
        lines.append(
            f"| {name} | {case['seconds']:.1f} | {ratio} | {case['over_floor']:.2f} | {case['peak_gib']:.1f} "
            f"| {case['tokens_per_second']:.0f} | " + " | ".join(split) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
