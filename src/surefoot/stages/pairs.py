"""Answers for people to choose between (8.3.5, second stage):

a model writes two or more to a prompt, and the store queues them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from surefoot.config import Config
from surefoot.errors import RewardError, told
from surefoot.lm.batches import PromptSet, text_of
from surefoot.preferences import Choice, PreferenceStore
from surefoot.progress import Progress
from surefoot.runs import RunFolder, State
from surefoot.stages.inputs import digest
from surefoot.types import Completions, Prompts, RolloutEngine

Annotator = Callable[[str, str, str], str]  # (prompt, a, b) -> "a", "b" or "tie"


@dataclass(frozen=True, slots=True)
class PairsParts:
    """Who answers, what is asked, and who votes, if anybody does now."""

    engines: Sequence[tuple[str, RolloutEngine]]  # (model name, engine)
    prompts: PromptSet
    pad_id: int
    annotator: tuple[str, Annotator] | None


@dataclass(frozen=True, slots=True)
class PairsStep:
    """The answers to one batch of prompts, and how many pairs and votes they became."""

    done: int
    total: int
    prompts: Prompts
    answers: list[tuple[str, Completions]]  # (model name, one answer a prompt)
    num_pairs: int
    num_votes: int


def total_prompts(parts: PairsParts, cfg: Config) -> int:
    return min(len(parts.prompts), cfg.pairs.max_prompts or len(parts.prompts))


def steps(parts: PairsParts, cfg: Config, store: PreferenceStore, folder: RunFolder | None = None) -> Iterator[PairsStep]:
    """Yields a batch of prompts at a time.

    A batch's chance comes from (seed, first prompt), so a repeated batch is the same one.
    """
    total, size, done = total_prompts(parts, cfg), cfg.rollout.batch_size, 0
    if folder is not None and (state := folder.restore()) is not None:
        done = int(state.values["done"])
    for start in range(done, total, size):
        index = range(start, min(start + size, total))
        prompts = parts.prompts.take(index, parts.pad_id)
        generator = torch.Generator().manual_seed(cfg.seed * 1_000_003 + start)
        answers = []
        for k in range(cfg.pairs.num_answers):
            name, engine = parts.engines[k % len(parts.engines)]
            answers.append((name, engine.generate(prompts, generator)))
            if folder is not None:
                folder.check_stop()  # nothing of this batch is in the store yet
        with store.batch():  # all of a batch or nothing, so a killed run leaves no half of one
            num_pairs, num_votes = _queue(parts, cfg, store, index, answers)
        step = PairsStep(index.stop, total, prompts, answers, num_pairs, num_votes)
        if folder is not None:
            folder.record(index.stop, {"pairs": num_pairs, "votes": num_votes})
            folder.save(index.stop, State(tensors={}, values={"done": index.stop}))
            folder.check_stop()
        yield step


def _queue(
    parts: PairsParts, cfg: Config, store: PreferenceStore, index: range, answers: list[tuple[str, Completions]]
) -> tuple[int, int]:
    num_pairs = num_votes = 0
    sampling = {
        "temperature": cfg.rollout.temperature,
        "top_p": cfg.rollout.top_p,
        "response_length": cfg.rollout.response_length,
    }
    for row, place in enumerate(index):
        prompt_row = parts.prompts.rows[place]
        prompt = store.add_prompt(prompt_row.prompt)
        written: dict[str, int] = {}
        for name, completions in answers:
            text = completions.text[row]
            if text.strip() and text not in written:  # an empty or repeated answer gives nothing to choose between
                ids = completions.ids[row][completions.mask[row]].tolist()
                written[text] = store.add_answer(prompt, text, model=name, sampling=sampling, token_ids=ids)
        for (text_a, a), (text_b, b) in combinations(written.items(), 2):
            pair = store.add_pair(prompt, a, b, reason="random")
            num_pairs += 1
            if parts.annotator is not None:
                name, annotator = parts.annotator
                store.vote(
                    pair,
                    _choice(name, annotator, text_of(prompt_row.prompt), text_a, text_b),
                    source=f"function:{name}",
                    idempotency_key=f"{name}-{pair}",
                )
                num_votes += 1
    return num_pairs, num_votes


def _choice(name: str, annotator: Annotator, prompt: str, a: str, b: str) -> Choice:
    try:
        said: object = annotator(prompt, a, b)
    except (Exception, SystemExit) as error:  # an annotator may be anybody's function
        raise RewardError(f"annotator {name} raised {told(error)}. No vote of this batch of prompts was stored.") from error
    if said not in ("a", "b", "tie", "both_bad", "skip"):
        raise RewardError(f"annotator {name} returned {said!r}; it must return 'a', 'b', 'tie', 'both_bad' or 'skip'.")
    return said


def run(cfg: Config, folder: RunFolder, progress: Progress, **given: Any) -> None:
    from surefoot.build import build_pairs

    parts = build_pairs(cfg, progress.say, **given)
    folder.declare({"prompts": digest(parts.prompts.ids)})
    path = Path(cfg.pairs.store) if cfg.pairs.store else folder.path / "preferences.db"
    progress.start("pairs", total_prompts(parts, cfg), "prompts")
    with PreferenceStore.open(path) as store:
        for step in steps(parts, cfg, store, folder):
            progress.update(step.done, {"pairs": step.num_pairs, "votes": step.num_votes})
        counts = store.counts()
    progress.say(f"{path}: {counts.pairs} pairs, {counts.votes} votes")
    folder.finish(store=str(path))
