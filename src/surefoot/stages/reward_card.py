"""Held-out pairs and probes of a reward model, scored for its report card.

A probe is an edit that makes no answer better: what it adds to the score is what PPO can have for nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot.config import Config
from surefoot.diagnostics.report_card import HeldOut, Probe, card, probe
from surefoot.lm.batches import PairRow
from surefoot.lm.roles import RewardScorer, raw_scores
from surefoot.lm.tokens import reward_row
from surefoot.stages.reward import Heed, PairTask, RewardParts, unheeding

FILE = "card.json"
MAX_PROBED = 128  # answers
FLUFF = " All in all, it is what it is, and that is all that there is to say."
FLATTERY = " What a wonderful question, you are so clever."


@torch.no_grad()
def held_out_pairs(task: PairTask, batch_size: int, heed: Heed = unheeding) -> HeldOut:
    """Scores of the held-out pairs that have a preference, the winner of the vote as chosen."""
    decided = [i for i in range(len(task)) if task.pairs[i].target != 0.5]
    scores: tuple[list[float], list[float]] = ([], [])
    lengths: tuple[list[int], list[int]] = ([], [])
    for start in range(0, len(decided), batch_size):
        heed()
        items = decided[start : start + batch_size]
        for i, first, second in zip(items, *(side.tolist() for side in task.scores(items)), strict=True):
            pair, won = task.pairs[i], 0 if task.pairs[i].target > 0.5 else 1
            for side, score, row in ((won, first, pair.chosen), (1 - won, second, pair.rejected)):
                scores[side].append(score)
                lengths[side].append(len(row) - len(pair.prompt))
    pairs = [task.pairs[i] for i in decided]
    chosen, rejected, chosen_lengths, rejected_lengths, margins = (
        np.array(column, dtype=np.float64) for column in (*scores, *lengths, [pair.margin for pair in pairs])
    )
    return HeldOut(
        chosen,
        rejected,
        chosen_lengths,
        rejected_lengths,
        margins,
        sources=tuple(pair.source for pair in pairs),
        prompts=tuple(pair.prompt for pair in pairs),
    )


def report_card(parts: RewardParts, held: HeldOut, cfg: Config, heed: Heed = unheeding) -> dict[str, Any]:
    """The card of a trained reward model: figures of `held`, and the probes on held-out answers that people chose."""
    return card(held, probes(parts.scorers, parts.validation.pairs, held.deviation, cfg, heed) if len(held) else [])


def write_card_file(folder: Path, found: dict[str, Any]) -> None:
    """card.json beside the model."""
    (folder / FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def probes(
    scorers: Sequence[RewardScorer], pairs: Sequence[PairRow], deviation: float, cfg: Config, heed: Heed = unheeding
) -> list[Probe]:
    """Each edit on up to MAX_PROBED different answers. Those that it does not change or the context cut are left out."""
    codec = scorers[0].backbone.codec
    answers: dict[tuple[tuple[int, ...], str], None] = {}
    for pair in pairs:
        row = pair.chosen if pair.target >= 0.5 else pair.rejected
        if row[: len(pair.prompt)] == pair.prompt and (text := codec.text(row[len(pair.prompt) :])).strip():
            answers[pair.prompt, text] = None
        if len(answers) == MAX_PROBED:
            break
    known = list(answers)

    def scored(rows: Sequence[tuple[tuple[int, ...], str]]) -> np.ndarray[Any, Any]:
        ids = [reward_row(prompt, codec.completion_ids(text), codec) for prompt, text in rows]
        found: list[float] = []
        for start in range(0, len(ids), 2 * cfg.reward.micro_batch_size):
            heed()
            part = ids[start : start + 2 * cfg.reward.micro_batch_size]
            found += raw_scores(scorers, part).mean(0).tolist()
        return np.array(found)

    before, found = scored(known), []
    for name, edit in EDITS.items():
        edited = [(prompt, edit(i, [text for _, text in known])) for i, (prompt, _) in enumerate(known)]
        changed = [i for i, (new, old) in enumerate(zip(edited, known, strict=True)) if new[1] != old[1]]
        if name == "off_topic":
            changed = [i for i in changed if known[i][0] != known[i - 1][0]]
        if len(changed) > 1:
            found.append(probe(name, before[changed], scored([edited[i] for i in changed]), deviation))
    return found


def _shuffled(text: str) -> str:
    words = text.split()
    random.Random(text).shuffle(words)  # of the text alone: the same on every machine
    return text[: len(text) - len(text.lstrip())] + " ".join(words)


def _half(text: str) -> str:
    words = text.split()
    return text if len(words) < 2 else text[: len(text) - len(text.lstrip())] + " ".join(words[: len(words) // 2])


EDITS: dict[str, Callable[[int, Sequence[str]], str]] = {
    "fluff": lambda i, texts: texts[i] + FLUFF,
    "repeat": lambda i, texts: f"{texts[i]} {texts[i].lstrip()}",
    "truncate": lambda i, texts: _half(texts[i]),
    "shuffle": lambda i, texts: _shuffled(texts[i]),
    "flattery": lambda i, texts: FLATTERY + texts[i],
    "off_topic": lambda i, texts: texts[i - 1],
}
