"""Rounds of 8.3.5's loop: the policy answers, people choose, the reward model learns from all votes so far, PPO goes on.

Each stage of each round is a run folder of its own (pairs-1, reward-1, ppo-1, evaluate-1, pairs-2, ...), so an interrupted run
goes on where it stopped, between rounds and inside them. The tether of every round is the SFT model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.config import Config
from surefoot.diagnostics.report import write_report
from surefoot.embedded.raters import NAME as RATERS
from surefoot.embedded.raters import simulated_raters
from surefoot.embedded.worlds import Rows, preference_rows, real_world, tiny_world
from surefoot.errors import ConfigError
from surefoot.lm.data import read_rows
from surefoot.progress import Progress
from surefoot.runs import RunFolder, load_manifest
from surefoot.stages import evaluate, pairs, ppo_lm, reward, sft
from surefoot.stages.chain import on_model, run_stage, sft_config
from surefoot.stages.waiting import await_votes

NUM_SENTENCES = 3_000  # for SFT, as in the demo
SEED_STEP = 7_919  # between rounds: each samples and shuffles anew


@dataclass(frozen=True, slots=True)
class Field:
    """What the rounds are played on: prompts, judges, held-out preferences; sentences for SFT where no SFT model is given."""

    prompts: list[Any]
    eval_prompts: Any
    judges: Mapping[str, Callable[..., Any]] | None
    sentences: Rows | None
    held_out: Rows | None


def run(
    cfg: Config,
    folder: RunFolder,
    progress: Progress,
    *,
    wait: bool = False,
    sft_model: Path | None = None,
    annotator: Any = None,
    judges: Any = None,
) -> None:
    """`wait`: stays until people have voted. `sft_model`: a finished SFT model, in place of a new one; others are for tests."""
    field = _field(cfg, judges)
    folder.restore()  # its lines are written anew from what each round has kept
    root, given = folder.path, {"annotator": annotator if annotator is not None else _annotator(cfg)}
    start = _start(cfg, field, folder, progress, sft_model)
    rows: list[dict[str, Any]] = []
    for number in range(1, cfg.rounds.num_rounds + 1):
        progress.say(f"round {number} of {cfg.rounds.num_rounds}")
        _one_round(number, cfg, field, folder, progress, start, given, wait=wait)
        rows.append(round_row(root, number))
        if number == 1:
            folder.record(0, _before(root))
        folder.record(number, {key: value for key, value in rows[-1].items() if isinstance(value, (int, float))})
        folder.write("rounds.json", json.dumps(rows, indent=2) + "\n")
        for line in _said(rows[-1]):
            progress.say(line)
    last = root / f"evaluate-{cfg.rounds.num_rounds}"
    folder.write("evaluation.json", (last / "evaluation.json").read_text(encoding="utf-8"))
    folder.finish(rounds=rows, annotator=cfg.rounds.annotator)
    progress.say(f"report: {write_report(root)}")


def _one_round(
    number: int,
    cfg: Config,
    field: Field,
    folder: RunFolder,
    progress: Progress,
    start: str,
    given: Mapping[str, Any],
    *,
    wait: bool,
) -> None:
    root = folder.path
    store = root / "preferences.db"
    own = cfg.model_copy(update={"seed": cfg.seed + SEED_STEP * (number - 1)})
    before = start if number == 1 else str(root / f"ppo-{number - 1}/final")
    tag = f"round {number}: "
    asked = pairs_config(own, number, before, store, root / f"reward-{number - 1}/final")
    prompts = round_prompts(field.prompts, number, cfg.rounds.prompts_per_round)
    called = "sft" if number == 1 else f"round {number - 1}"  # no path: two runs in two places make equal stores
    asked_of = {**given, "prompts": prompts, "tag": tag, "called": called}
    path = run_stage(folder, f"pairs-{number}", "pairs", pairs.run, asked, asked_of, progress)
    if given["annotator"] is None:
        await_votes(store, tag, load_manifest(path)["facts"]["pairs"], folder, progress, wait=wait)
    learned = on_model(own, start, reward={"store": str(store)})
    run_stage(folder, f"reward-{number}", "reward", reward.run, learned, {"validation": field.held_out}, progress)
    source = {"source": str(root / f"reward-{number}/final")}
    earlier = {} if number == 1 else {"start": str(root / f"ppo-{number - 1}")}
    improved = on_model(own, start, reward_source=source, ppo=earlier)
    asked_of = {"prompts": field.prompts, "judges": field.judges}
    run_stage(folder, f"ppo-{number}", "ppo", ppo_lm.run, improved, asked_of, progress)
    # the seed of the whole: all rounds are compared with SFT on the same draws
    compared = {"against": start, "num_prompts": num_eval_prompts(cfg, number)}
    judged = on_model(cfg, root / f"ppo-{number}/final", reward_source=source, evaluate=compared)
    asked_of = {"prompts": field.eval_prompts, "judges": field.judges}
    run_stage(folder, f"evaluate-{number}", "evaluate", evaluate.run, judged, asked_of, progress)


def _field(cfg: Config, judges: Any) -> Field:
    """The embedded world of model.name where no prompts are named, else the user's own prompts."""
    if cfg.pairs.select == "disagreement" and cfg.reward.ensemble == 1:
        raise ConfigError(
            "pairs.select = disagreement needs reward models of several members, and reward.ensemble = 1. "
            "Set reward.ensemble = 4, or pairs.select = uncertainty."
        )
    if cfg.data.prompts is None:
        if cfg.model.name not in ("embedded", "tiny"):
            raise ConfigError(
                "data.prompts is not set. Name the prompts of the rounds, or play on an embedded world with --preset default."
            )
        world = tiny_world(cfg.seed) if cfg.model.name == "tiny" else real_world(cfg.seed)
        held_out = preference_rows(world.held_out_votes)
        sentences = world.sentences[:NUM_SENTENCES]
        return Field(list(world.ppo_prompts), world.eval_prompts, judges or world.judges, sentences, held_out)
    if cfg.data.eval_prompts is None:
        raise ConfigError(
            "data.eval_prompts is not set. Name held-out prompts, on which each round is compared with the SFT model."
        )
    if cfg.rounds.annotator == "ratings":
        raise ConfigError(
            "rounds.annotator = ratings: raters are simulated for the embedded worlds alone. Use people, or module:function."
        )
    prompts = [{**row.columns, "prompt": row.prompt} for row in read_rows(cfg.data.prompts, "prompts").rows]
    return Field(prompts, None, judges, None, None)


def _annotator(cfg: Config) -> Any:
    """Who votes without being asked on a page; None: people."""
    from surefoot.rewards.function import load_function

    match cfg.rounds.annotator:
        case "people":
            return None
        case "ratings":
            return _Named(RATERS, simulated_raters(cfg.model.name, cfg.seed))
        case name if ":" in name:
            return _Named(name, load_function(name))
        case name:
            raise ConfigError(f"rounds.annotator = {name!r} is nobody. Use people, ratings, or module:function.")


class _Named:
    """A function under the name that the store is to know it by."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.__name__, self._function = name, function

    def __call__(self, prompt: str, a: str, b: str) -> Any:
        return self._function(prompt, a, b)


def _start(cfg: Config, field: Field, folder: RunFolder, progress: Progress, sft_model: Path | None) -> str:
    """The SFT model, from which round 1 begins and to which every round is tethered."""
    if sft_model is not None:
        return str(sft_model)
    if field.sentences is None:
        return cfg.model.name
    return str(run_stage(folder, "sft", "sft", sft.run, sft_config(cfg), {"train": field.sentences}, progress) / "final")


def pairs_config(cfg: Config, number: int, policy: str, store: Path, rated: Path) -> Config:
    """The settings of a round's pairs. Round 1 has no reward model and no policy that moved: its pairs are random."""
    settings: dict[str, Any] = {"store": str(store), "max_prompts": None, "annotator": None, "models": ()}
    source = None
    if number == 1:
        settings |= {"select": "random", "best_of": 0, "against": None}
    elif cfg.pairs.needs_reward:
        source = str(rated)
    return on_model(cfg, policy, pairs=settings, reward_source={"source": source})


def round_prompts(prompts: list[Any], number: int, count: int) -> list[Any]:
    """The next `count` prompts: rounds walk through the list, from its beginning again when it ends."""
    first = (number - 1) * count
    return [prompts[i % len(prompts)] for i in range(first, first + count)]


def num_eval_prompts(cfg: Config, number: int) -> int:
    """Held-out prompts that the evaluation of a round answers: of rounds before the last, fewer where the user wants to save."""
    is_last = number == cfg.rounds.num_rounds
    return cfg.evaluate.num_prompts if is_last else cfg.rounds.num_eval_prompts or cfg.evaluate.num_prompts


def round_row(root: Path, number: int) -> dict[str, Any]:
    """The figures of a finished round, as rounds.json and metrics.jsonl keep them."""
    figures = json.loads((root / f"evaluate-{number}/evaluation.json").read_text(encoding="utf-8"))
    learned = load_manifest(root / f"reward-{number}")["facts"]
    row: dict[str, Any] = {
        "rounds/votes": learned["votes"]["votes"],
        "rounds/pairs": load_manifest(root / f"pairs-{number}")["facts"]["pairs"],
        "rounds/kl": figures["kl_policy_sft"],
        "rounds/distinct2": figures["distinct2_after"],
        "rounds/length": figures["length_after"],
    }
    if "accuracy" in learned["held_out"]:  # without a held-out preference there is none
        row["rounds/reward_accuracy"] = learned["held_out"]["accuracy"]
    for judge, rate in figures["win_rates"].items():
        row[f"judge/{judge}"] = figures[f"{judge}_after"]
        row[f"win_rate/{judge}"] = rate["win_rate"]
        row[f"win_rate_interval/{judge}"] = rate["interval"]
    return row


def _before(root: Path) -> dict[str, float]:
    """The SFT model's own figures, as round 0."""
    figures = json.loads((root / "evaluate-1/evaluation.json").read_text(encoding="utf-8"))
    row = {"rounds/votes": 0, "rounds/kl": 0.0, "rounds/distinct2": figures["distinct2_before"]}
    row |= {"rounds/length": figures["length_before"]}
    for judge in figures["win_rates"]:
        row |= {f"judge/{judge}": figures[f"{judge}_before"], f"win_rate/{judge}": 0.5}
    return row


def _said(row: Mapping[str, Any]) -> Iterator[str]:
    for key, rate in row.items():
        if key.startswith("win_rate/"):
            low, high = row[f"win_rate_interval/{key[9:]}"]
            after = f"{row['rounds/votes']} votes so far; {key[9:]}: {rate:.1%} against SFT"
            yield f"  {after} (95 % interval {low:.0%} to {high:.0%})"
