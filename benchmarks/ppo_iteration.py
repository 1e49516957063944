"""One PPO iteration of a language model, ours beside TRL's: `python benchmarks/ppo_iteration.py [--trl-python PATH]`.

Work W: SmolLM2-135M, 32 prompts of 12 to 24 tokens, 32 new tokens without stop, policy, reference, value and reward model, one
epoch, micro-batches of 8. The sides are processes that take turns in one run, so that their ratio means something on a machine
that others use too. `--trl-python` names the interpreter of an environment with `trl==1.12.0 datasets peft` (the last TRL with
PPO); without it our own configurations are measured alone. The floor is FLOPs over the measured rate of matrix products.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ppo_iteration_parts.floor import flops, matrix_rate
from ppo_iteration_parts.work import Work
from surefoot.config import ModelConfig
from surefoot.launch import set_threads
from surefoot.lm.backbone import load_backbone, resolve

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ppo-iteration.json"
# name: side, tuning, dtype, blocks with adapters (None: all)
CASES: dict[str, tuple[str, str, str, int | None]] = {
    "trl full float32": ("trl", "full", "float32", None),
    "trl lora float32": ("trl", "lora", "float32", None),
    "full float32": ("ours", "full", "float32", None),
    "lora float32": ("ours", "lora", "float32", None),
    "lora bfloat16": ("ours", "lora", "bfloat16", None),
    "upper half lora float32": ("ours", "lora", "float32", -2),
}


class Side:
    """A child process that does iterations when told to."""

    def __init__(self, name: str, work: Work, asked: argparse.Namespace, num_layers: int) -> None:
        side, tuning, dtype, layers = CASES[name]
        self.name = name
        facts = {
            "work": asdict(work),
            "tuning": tuning,
            "dtype": dtype,
            "lora_layers": num_layers // 2 if layers == -2 else layers,
            "threads": asked.threads,
            "device": asked.device,
            "model": asked.model,
            "reward_layer": None,
            "folder": str(resolve(asked.model)),
        }
        if side == "trl":
            command = [str(asked.trl_python), str(HERE / "ppo_iteration_parts" / "theirs.py")]
        else:
            command = [sys.executable, "-m", "ppo_iteration_parts.ours"]
        environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            [*command, json.dumps(facts)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE
        )
        self.ready = self._line()

    def iteration(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        before = busy_seconds()
        line = self._line()
        foreign = busy_seconds() - before - line["cpu"]
        return line | {"foreign_cores": round(max(foreign / line["seconds"], 0.0), 3)}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise SystemExit(f"{self.name}: its process ended with status {self.process.wait()}. What it said stands above.")
        line: dict[str, Any] = json.loads(text)
        return line


def busy_seconds() -> float:
    """CPU seconds that all processes of this machine have used since it started; 0 where that is not told."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all, those of TRL where --trl-python is given")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--trl-python", type=Path)
    parser.add_argument("--model", default="embedded", help="embedded, tiny, or a folder")
    parser.add_argument("--response", type=int, default=32, help="new tokens a prompt")
    parser.add_argument("--rows", type=int, default=32, help="prompts")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    names = asked.cases or [name for name, case in CASES.items() if case[0] == "ours" or asked.trl_python]
    if any(CASES[name][0] == "trl" for name in names) and not asked.trl_python:
        print("TRL runs in an environment of its own: name its interpreter with --trl-python.", file=sys.stderr)
        return 2
    set_threads(asked.threads)
    work = replace(Work(), response=asked.response, rows=asked.rows)
    backbone = load_backbone(ModelConfig(name=asked.model))
    sizes = model_sizes(backbone)
    sides = [Side(name, work, asked, backbone.num_layers) for name in names]
    del backbone
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repetition in range(-1, asked.repetitions):
        for side in sides:
            line = side.iteration()
            print(f"{side.name}: {line['seconds']:.2f} s", file=sys.stderr, flush=True)
            if repetition >= 0:  # the first of each warms up
                kept[side.name].append(line)
    for side in sides:
        side.close()
    rates = {
        dtype: matrix_rate(getattr(torch, dtype), asked.device, sizes["width"], sizes["inner"], work.rows * work.response)
        for dtype in sorted({CASES[name][2] for name in names})
    }
    cases = {name: case_of(name, kept[name], sizes, rates, work) for name in names}
    facts = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": asked.device if asked.device == "cpu" else torch.cuda.get_device_name(),
        "threads": sides[0].ready["threads"],
        "versions": {name: version(name) for name in ("surefoot", "torch", "transformers", "peft")},
        "work": asdict(work),
        "matrix_gflops": {dtype: round(rate / 1e9, 1) for dtype, rate in rates.items()},
    }
    asked.out.write_text(json.dumps({"run": facts, "cases": cases}, indent=2) + "\n", encoding="utf-8")
    print(table(cases))
    return 0


def model_sizes(backbone: Any) -> dict[str, int]:
    """Weights in the matrix products of all blocks and of the head, and the shape of the most frequent product."""
    head = backbone.model.get_output_embeddings()
    linear = [m for m in backbone.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    widest = max(linear, key=lambda m: m.weight.numel())
    return {
        "blocks": sum(m.weight.numel() for m in linear),
        "head": head.weight.numel(),
        "width": backbone.width,
        "inner": max(widest.weight.shape),
    }


def case_of(
    name: str, runs: list[dict[str, Any]], sizes: Mapping[str, int], rates: Mapping[str, float], work: Work
) -> dict[str, Any]:
    _, tuning, dtype, layers = CASES[name]
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
