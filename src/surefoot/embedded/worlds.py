"""The demo's data:

sentences, ratings as votes, prompts and judges. Real ones, and a small made-up world for the `tiny` preset.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from surefoot.embedded.named_judges import named_judge

Rows = list[dict[str, Any]]
PROMPT_WORDS = 3
SFT_WORDS = 20  # what fits into 24 tokens: a model that writes longer sentences is cut, and PPO teaches it to stop
PAIRS_PER_SENTENCE = 20
TINY_SENTENCES = 2_000
TINY_PAIRS = 20  # an opening


@dataclass(frozen=True, slots=True)
class DemoWorld:
    """Four disjoint sets, split by the opening words: SFT and reward model; judge; PPO prompts; evaluation prompts.

    `votes` and `held_out_votes` are {prompt, chosen, rejected, tie}; no prompt and no sentence stands in both.
    """

    sentences: Rows  # {prompt, completion}
    votes: Rows
    held_out_votes: Rows
    ppo_prompts: list[str]
    eval_prompts: list[str]
    judges: dict[str, Callable[[Sequence[str]], Sequence[float]]]
    main_judge: str


def real_world(seed: int) -> DemoWorld:
    """Review sentences rated by people (DESIGN:

    the embedded default). `seed` draws which person's rating stands for a sentence.
    """
    from surefoot.embedded.ratings import load_ratings
    from surefoot.embedded.splits import eval_prompts, ppo_prompts, rating_pairs, sft_sentences

    ratings = load_ratings()
    pairs = rating_pairs(ratings, seed=seed, pairs_per_sentence=PAIRS_PER_SENTENCE)
    return DemoWorld(
        sentences=[opened(text) for text in sft_sentences(ratings, max_words=SFT_WORDS)],
        votes=[_vote(pair) for pair in pairs.train],
        held_out_votes=[_vote(pair) for pair in pairs.held_out],
        ppo_prompts=ppo_prompts(ratings),
        eval_prompts=eval_prompts(ratings),
        judges={name: named_judge(name) for name in ("minilm", "vader")},
        main_judge="minilm",
    )


def tiny_world(seed: int) -> DemoWorld:
    """Made-up reviews with made-up raters; nothing is fetched."""
    from surefoot.embedded import tiny_world as tiny

    texts = sorted(set(tiny.sentences(TINY_SENTENCES, seed)))
    sets: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for text in texts:
        sets[tiny.bucket(opened(text)["prompt"])].append(text)
    draw = random.Random(seed)
    votes: Rows = []
    for opening, group in groupby(sets[0], key=lambda text: opened(text)["prompt"]):
        every = list(combinations(group, 2))
        for one, other in draw.sample(every, min(len(every), TINY_PAIRS)):
            (high, won), (low, lost) = sorted(((tiny.rating(text, seed), text) for text in (one, other)), reverse=True)
            chosen, rejected = opened(won)["completion"], opened(lost)["completion"]
            votes.append({"prompt": opening, "chosen": chosen, "rejected": rejected, "tie": high == low})
    openings = sorted({vote["prompt"] for vote in votes})
    held_out = set(openings[::3])
    return DemoWorld(
        sentences=[opened(text) for text in draw.sample(sets[0], len(sets[0]))],
        votes=[vote for vote in votes if vote["prompt"] not in held_out],
        held_out_votes=[vote for vote in votes if vote["prompt"] in held_out],
        ppo_prompts=sorted({opened(text)["prompt"] for text in sets[1]}),
        eval_prompts=sorted({opened(text)["prompt"] for text in sets[2]}),
        judges={name: named_judge(name) for name in ("gold", "vader")},
        main_judge="gold",
    )


def opened(text: str) -> dict[str, Any]:
    """A sentence as its first words and the rest, which keeps its leading space: the border that PPO's prompts have too."""
    words = text.split(" ")
    return {"prompt": " ".join(words[:PROMPT_WORDS]), "completion": " " + " ".join(words[PROMPT_WORDS:])}


def preference_rows(votes: Rows) -> Rows:
    """Votes as rows to learn from, or to be tested on: a tie is a share of one half."""
    return [
        {"prompt": v["prompt"], "chosen": v["chosen"], "rejected": v["rejected"], "target": 0.5 if v["tie"] else 1.0}
        for v in votes
    ]


def store_votes(path: Path, votes: Rows) -> str:
    """Puts ratings as votes into a preference store, each pair once; returns the digest of the votes."""
    from surefoot.preferences.store import PreferenceStore

    with PreferenceStore.open(path) as store, store.batch():
        if not store.counts().votes:
            for i, vote in enumerate(votes):
                prompt = store.add_prompt(vote["prompt"])
                chosen, rejected = (store.add_answer(prompt, vote[side], model="reviewers") for side in ("chosen", "rejected"))
                if chosen != rejected:
                    pair = store.add_pair(prompt, chosen, rejected, reason="same opening words")
                    store.vote(pair, "tie" if vote["tie"] else "a", source="ratings", idempotency_key=f"rating-{i}")
    with PreferenceStore.open(path) as store:
        return store.digest()


def _vote(pair: Any) -> dict[str, Any]:
    return {key: pair[key] for key in ("prompt", "chosen", "rejected", "tie")}
