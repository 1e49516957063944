"""Answers for people to choose between (8.3.5, second stage):

models write two or more to a prompt, pairs of them are chosen, and the store queues them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surefoot.config import Config
from surefoot.errors import RewardError, said, told
from surefoot.lm.batches import text_of
from surefoot.preferences import CHOICES, Choice, PreferenceStore
from surefoot.progress import Progress
from surefoot.runs import RunFolder, State, read_jsonl
from surefoot.stages.answers import Author
from surefoot.stages.inputs import digest, source_digest
from surefoot.stages.selection import Answer, Candidate, Judgement, candidates, chosen, judged_answers

# (prompt, a, b) -> "a", "b", "tie", "both_bad" or "skip"; or ("a" or "b", strength from 1 to 4)
Annotator = Callable[[str, str, str], Any]


@dataclass(frozen=True, slots=True)
class PairsParts:
    """Who answers, by what pairs are ranked, and who votes, if anybody does now. `tag` stands before each pair's reason."""

    authors: Sequence[Author]
    judgement: Judgement
    annotator: tuple[str, Annotator] | None
    tag: str = ""


@dataclass(frozen=True, slots=True)
class PairsStep:
    """A batch of prompts that was answered, or of chosen pairs that was queued: how many pairs and votes the store got."""

    done: int
    total: int
    num_candidates: int
    num_pairs: int
    num_votes: int


def total_prompts(parts: PairsParts, cfg: Config) -> int:
    prompts = len(parts.authors[0].prompts)
    return min(prompts, cfg.pairs.max_prompts or prompts)


def steps(parts: PairsParts, cfg: Config, store: PreferenceStore, folder: RunFolder | None = None) -> Iterator[PairsStep]:
    """Yields a batch of prompts at a time, and where pairs are chosen, then a batch of those.

    A batch's chance comes from (seed, first prompt), so a repeated batch is the same one. Pairs can be chosen only once all are
    there: until then candidates stand in samples.jsonl, not in the store.
    """
    total, size, done, queued = total_prompts(parts, cfg), cfg.rollout.batch_size, 0, 0
    if folder is not None and (state := folder.restore()) is not None:
        done, queued = int(state.values["done"]), int(state.values["queued"])
    every = _earlier(folder) if done else []
    waits = cfg.pairs.max_pairs is not None
    for start in range(done, total, size):
        index = range(start, min(start + size, total))
        found = _answered(parts, cfg, index, folder)
        num_pairs, num_votes = (0, 0) if waits else _queue(parts, cfg, store, found)
        every += found if waits else []
        if folder is not None:
            folder.record(index.stop, {"candidates": len(found), "pairs": num_pairs, "votes": num_votes})
            folder.samples(index.stop, [candidate.as_row() for candidate in found] if waits else [])
            _save(folder, index.stop, done=index.stop, queued=0)
        yield PairsStep(index.stop, total, len(found), num_pairs, num_votes)
    picked = chosen(every, cfg.pairs.max_pairs or 0)
    for start in range(queued, len(picked), size):
        part = picked[start : start + size]
        num_pairs, num_votes = _queue(parts, cfg, store, part)
        step = total + start + len(part)
        if folder is not None:
            folder.record(step, {"candidates": 0, "pairs": num_pairs, "votes": num_votes})
            _save(folder, step, done=total, queued=start + len(part))
        yield PairsStep(step, total + len(picked), 0, num_pairs, num_votes)


def _earlier(folder: RunFolder | None) -> list[Candidate]:
    return [] if folder is None else [Candidate.of_row(row) for row in read_jsonl(folder.path / "samples.jsonl")]


def _save(folder: RunFolder, step: int, *, done: int, queued: int) -> None:
    folder.save(step, State(tensors={}, values={"done": done, "queued": queued}))
    folder.check_stop()


def _answered(parts: PairsParts, cfg: Config, index: range, folder: RunFolder | None) -> list[Candidate]:
    """The candidates that the prompts at `index` give."""
    chance = torch.Generator().manual_seed(cfg.seed * 1_000_003 + index.start)
    answers: list[list[Answer]] = []
    for k in range(cfg.pairs.best_of or cfg.pairs.num_answers):
        who = k % len(parts.authors)
        said = parts.authors[who].answer(index, chance)
        answers.append(judged_answers(parts.judgement, parts.authors, who, index, said))
        if folder is not None:
            folder.check_stop()  # nothing of this batch is in the store yet
    found: list[Candidate] = []
    for row, place in enumerate(index):
        found += candidates([column[row] for column in answers], place, cfg.pairs, cfg.seed)
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and the model that gave it."""

    text: str
    token_ids: tuple[int, ...]
    model: str
    model_hash: str


def sampling_of(cfg: Config) -> dict[str, Any]:
    """The settings under which answers are sampled, as the store keeps them."""
    return {name: getattr(cfg.rollout, name) for name in ("temperature", "top_p", "response_length")}


def queue_pair(store: PreferenceStore, prompt: Any, a: Said, b: Said, sampling: dict[str, Any], reason: str) -> int:
    """Puts two answers to a prompt into the store, for a vote; returns the pair's number."""
    number = store.add_prompt(prompt)
    answers = [
        store.add_answer(
            number, said.text, model=said.model, model_hash=said.model_hash, sampling=sampling, token_ids=said.token_ids
        )
        for said in (a, b)
    ]
    return store.add_pair(number, *answers, reason=reason)


def _queue(parts: PairsParts, cfg: Config, store: PreferenceStore, found: Sequence[Candidate]) -> tuple[int, int]:
    """Puts candidates into the store, with votes where somebody votes now: all of them or none, so no kill leaves a half."""
    reason = parts.tag + (f"best of {cfg.pairs.best_of}, " if cfg.pairs.best_of else "") + cfg.pairs.select
    num_votes = 0

    def said(answer: Answer) -> Said:
        author = parts.authors[answer.author]
        return Said(answer.text, answer.token_ids, author.name, author.backbone.fingerprint)

    with store.batch():
        for candidate in found:
            content = parts.authors[0].prompts.rows[candidate.place].prompt
            pair = queue_pair(store, content, said(candidate.a), said(candidate.b), sampling_of(cfg), reason)
            if parts.annotator is not None:
                name, annotator = parts.annotator
                key = f"{name}-{pair}"
                num_votes += 1
                if store.has_key(key):  # of a batch that was stored before a kill: asked again, it may say something else
                    continue
                choice, strength = said_by(name, annotator, text_of(content), candidate.a.text, candidate.b.text)
                store.vote(pair, choice, source=f"function:{name}", strength=strength, idempotency_key=key)
    return len(found), num_votes


def said_by(name: str, annotator: Annotator, prompt: str, a: str, b: str) -> tuple[Choice, int | None]:
    """The annotator's choice, and its strength where it gives one.

    Raises: RewardError where it raises, or says something else.
    """
    try:
        returned: Any = annotator(prompt, a, b)
    except (Exception, SystemExit) as error:  # an annotator may be anybody's function
        raise RewardError(f"annotator {name} raised {told(error)}. No vote of this batch of prompts was stored.") from error
    choice, strength = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    is_choice = isinstance(choice, str) and choice in CHOICES
    if not is_choice or not (strength is None or (choice in ("a", "b") and type(strength) is int and 1 <= strength <= 4)):
        what = repr(returned) if isinstance(returned, (str, tuple)) else f"{type(returned).__name__} {said(returned)[:60]!r}"
        raise RewardError(
            f"annotator {name} returned {what}; it must return 'a', 'b', 'tie', 'both_bad' or 'skip', or ('a', STRENGTH) or "
            "('b', STRENGTH) with a strength of 1, 2, 3 or 4."
        )
    return choice, strength


def inputs(parts: PairsParts, cfg: Config) -> dict[str, str]:
    """What the run was made from, as hashes for its manifest."""
    models = {author.name: author.backbone.fingerprint for author in parts.authors}
    reward = {"reward": source_digest(cfg.reward_source.every)} if parts.judgement.reward is not None else {}
    return {"prompts": digest(parts.authors[0].prompts.ids), "models": digest(models.items()), **reward}


def run(cfg: Config, folder: RunFolder, progress: Progress, **given: Any) -> None:
    from surefoot.build import build_pairs

    parts = build_pairs(cfg, progress.say, **given)
    folder.declare(inputs(parts, cfg))
    path = Path(cfg.pairs.store) if cfg.pairs.store else folder.path / "preferences.db"
    progress.start("pairs", total_prompts(parts, cfg), "prompts")
    with PreferenceStore.open(path) as store:
        for step in steps(parts, cfg, store, folder):
            progress.update(step.done, {"pairs": step.num_pairs, "votes": step.num_votes})
        counts = store.counts()
    queued = sum(int(row["pairs"]) for row in read_jsonl(folder.path / "metrics.jsonl"))
    progress.say(f"{path}: {queued} pairs of this run; {counts.pairs} pairs and {counts.votes} votes in all")
    folder.finish(store=str(path), pairs=queued)
