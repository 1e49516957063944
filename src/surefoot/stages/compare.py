"""Two models' answers to the same held-out prompts: by judges at once, or by people who do not know whose answer is whose.

The models may have different tokenizers. What is compared is text; a KL, which needs common tokens, is `evaluate`'s affair.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surefoot.config import Config
from surefoot.diagnostics.calibration import win_rate
from surefoot.intervals import wilson_interval
from surefoot.preferences.agreement import agreement, position_bias
from surefoot.preferences.store import PreferenceStore
from surefoot.preferences.votes import Vote, outcome
from surefoot.progress import Progress
from surefoot.runs import RunFolder, State, read_jsonl
from surefoot.stages.answers import Author
from surefoot.stages.inputs import digest
from surefoot.stages.judging import Judge, verdicts
from surefoot.stages.waiting import await_votes
from surefoot.types import Completions

SIDES = ("a", "b")


@dataclass(frozen=True, slots=True)
class CompareParts:
    """Two models, and who judges their answers."""

    authors: tuple[Author, Author]
    judges: Mapping[str, Judge]


@dataclass(frozen=True, slots=True)
class CompareStep:
    """One batch of prompts, answered by both: a row a prompt, with every judge's numbers."""

    done: int
    total: int
    rows: list[dict[str, Any]]


def total_prompts(parts: CompareParts, cfg: Config) -> int:
    return min(cfg.evaluate.num_prompts, len(parts.authors[0].prompts))


def steps(parts: CompareParts, cfg: Config, folder: RunFolder | None = None) -> Iterator[CompareStep]:
    """Yields a batch of prompts at a time. Both models draw with the same uniform numbers, from (seed, first prompt)."""
    total, size, done = total_prompts(parts, cfg), cfg.rollout.batch_size, 0
    if folder is not None and (state := folder.restore()) is not None:
        done = int(state.values["done"])
    for start in range(done, total, size):
        index = range(start, min(start + size, total))
        said = []
        for author in parts.authors:
            said.append(author.answer(index, torch.Generator().manual_seed(cfg.seed * 7919 + start)))
            if folder is not None:
                folder.check_stop()
        rows = list(_rows(parts, index, said))
        if folder is not None:
            folder.samples(index.stop, rows)
            done = index.stop
            folder.save(done, State(tensors={}, values={"done": done}))
            folder.check_stop()
        yield CompareStep(index.stop, total, rows)


def _rows(parts: CompareParts, index: range, said: Sequence[Completions]) -> Iterator[dict[str, Any]]:
    prompts = parts.authors[0].take(index).text
    judged = {
        f"{name}_{side}": verdicts(judge, name, prompts, answers.text)
        for name, judge in parts.judges.items()
        for side, answers in zip(SIDES, said, strict=True)
    }
    for row, place in enumerate(index):
        told: dict[str, Any] = {"place": place, "prompt": prompts[row]}
        for side, answers in zip(SIDES, said, strict=True):
            ids = answers.ids[row][answers.mask[row]].tolist()
            told |= {side: answers.text[row], f"length_{side}": len(ids), f"finished_{side}": bool(answers.finished[row])}
        yield told | {name: numbers[row] for name, numbers in judged.items()}


def summary(rows: Sequence[Mapping[str, Any]], judges: Sequence[str]) -> dict[str, Any]:
    """Means of both sides and each judge's win rate of A over B with Wilson's interval; ties count half."""

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    means = {f"{name}_{side}": sum(column(f"{name}_{side}")) / len(rows) for name in ("length", *judges) for side in SIDES}
    equal = sum(row["a"] == row["b"] for row in rows)
    rates = {judge: win_rate(column(f"{judge}_a"), column(f"{judge}_b")) for judge in judges}
    told = {judge: {"win_rate": rate.value, "interval": rate.as_list()} for judge, rate in rates.items()}
    return {"num_prompts": len(rows), "num_equal": equal, **means, "win_rates": told}


def queue(parts: CompareParts, store: PreferenceStore, rows: Sequence[Mapping[str, Any]], tag: str) -> dict[int, int]:
    """Queues every prompt's two answers where they differ: pair -> place of the prompt. Answer a is always the first model's.

    The page draws the sides of each view and hides the models until the vote; the tag names neither. Queued again, a pair is the
    same pair.
    """
    found = {}
    with store.batch():
        for row in rows:
            if row["a"].strip() and row["b"].strip() and row["a"] != row["b"]:
                prompt = store.add_prompt(parts.authors[0].prompts.rows[row["place"]].prompt)
                numbers = [
                    store.add_answer(prompt, row[side], model=author.name, model_hash=author.backbone.fingerprint)
                    for side, author in zip(SIDES, parts.authors, strict=True)
                ]
                found[store.add_pair(prompt, *numbers, reason=tag)] = row["place"]
    return found


def people(votes: Sequence[Vote], pairs: Mapping[int, int], num_equal: int) -> dict[str, Any]:
    """What people said of the pairs: the win rate of A over prompts, with Wilson's interval, and how far they agree.

    A pair counts with the share of its votes for A; a pair that all found bad on both sides counts half, as do the `num_equal`
    prompts whose two answers are one. Pairs that were only skipped are left out.
    """
    own = [vote for vote in votes if vote.pair in pairs]
    by_pair: dict[int, list[Vote]] = defaultdict(list)
    for vote in own:
        by_pair[vote.pair].append(vote)
    shares = [0.5] * num_equal
    num_bad = 0
    for cast in by_pair.values():
        result = outcome(cast)
        if result is not None:
            share = 1.0 if result.target is None else result.target
            shares.append(share if result.chosen == "a" else 1 - share)
        elif any(vote.choice == "both_bad" for vote in cast):
            shares.append(0.5)
            num_bad += 1
    told: dict[str, Any] = {"prompts": len(shares), "votes": len(own), "equal": num_equal, "both_bad": num_bad}
    if shares:
        rate = wilson_interval(sum(shares), len(shares))
        told |= {"win_rate": rate.value, "interval": rate.as_list()}
    found = agreement(own)
    told["kappas"] = [{"annotators": list(pair), "kappa": kappa} for pair, kappa in found.kappas.items()]
    told |= {"alpha": found.nominal, "alpha_ordinal": found.ordinal, "pairs_of_several": found.num_shared_pairs}
    if (bias := position_bias(own)) is not None:
        told["left_share"] = {"share": bias.share.value, "interval": bias.share.as_list(), "p_value": bias.p_value}
    return told


def run(
    cfg: Config,
    folder: RunFolder,
    progress: Progress,
    *,
    people: bool = False,
    store: Path | None = None,
    wait: bool = False,
    **given: Any,
) -> None:
    """`people`: queues the pairs in `store` and reports people's choices once all pairs were judged."""
    from surefoot.build import build_compare

    parts = build_compare(cfg, progress.say, asks_people=people, **given)
    models = digest([(author.name, author.backbone.fingerprint) for author in parts.authors])
    prompts = digest(parts.authors[0].prompts.ids)
    folder.declare({"models": models, "prompts": prompts})
    progress.start("compare", total_prompts(parts, cfg), "prompts")
    for step in steps(parts, cfg, folder):
        progress.update(step.done, {})
    rows = read_jsonl(folder.path / "samples.jsonl")
    figures = summary(rows, tuple(parts.judges)) | {"a": parts.authors[0].name, "b": parts.authors[1].name}
    for judge, rate in figures["win_rates"].items():
        progress.say(f"{judge}: {_said(rate, len(rows))}")
    folder.write("compare.json", json.dumps(figures, indent=2) + "\n")
    if people:
        figures["people"] = _ask(parts, rows, folder, progress, store, f"compare {digest([models, prompts])[:8]}", wait=wait)
        folder.write("compare.json", json.dumps(figures, indent=2) + "\n")
    folder.record(len(rows), _numbers(figures))
    folder.finish(compare=figures)


def _ask(
    parts: CompareParts,
    rows: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    progress: Progress,
    store: Path | None,
    tag: str,
    *,
    wait: bool,
) -> dict[str, Any]:
    """Queues the pairs, waits for their votes and says what people chose."""
    path = store if store is not None else folder.path / "preferences.db"
    with PreferenceStore.open(path) as opened:
        pairs = queue(parts, opened, rows, tag)
    await_votes(path, tag, len(pairs), folder, progress, wait=wait)
    with PreferenceStore.open(path) as opened:
        told = people(list(opened.votes()), pairs, sum(row["a"] == row["b"] for row in rows))
    if "win_rate" in told:
        alpha = "" if told["alpha"] is None else f"; Krippendorff's alpha {told['alpha']:.2f}"
        progress.say(f"people: {_said(told, told['prompts'])}{alpha}")
    return told


def _said(rate: Mapping[str, Any], count: int) -> str:
    low, high = rate["interval"]
    return f"A wins on {rate['win_rate']:.1%} of {count} prompts (95 % interval {low:.0%} to {high:.0%}; ties count half)"


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    told = {f"win_rate/{judge}": rate["win_rate"] for judge, rate in figures["win_rates"].items()}
    asked = figures.get("people", {})
    return told | {f"people/{key}": asked[key] for key in ("win_rate", "prompts") if key in asked}
