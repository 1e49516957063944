"""The exact votes that a reward model learns from: read once, kept beside the run, compared with the store later.

A store goes on growing while a reward model is trained and afterwards: votes are added, others are taken back. So a run reads
the store once, writes what it read into votes.jsonl and pins the sha256 of the votes in its manifest. A resumed run reads
votes.jsonl, not the store, and `moved_on` says how the store differs from what a finished run has seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.errors import DataError, RunError
from surefoot.preferences.store import Counts, PreferenceStore
from surefoot.runs import RunFolder, load_manifest, read_jsonl

FILE = "votes.jsonl"
READS = 100  # of a store that changes while it is read, until two looks agree


@dataclass(frozen=True, slots=True)
class Votes:
    """The preferences of a store at one moment, as rows {prompt, chosen, rejected[, margin][, target]}.

    `sha256` is the store's digest of all its valid votes, of every choice, whatever their order. `choices` counts them: ties
    count half in a row's `target`; `both_bad` and `skip` state no preference and make no row.
    """

    store: str
    sha256: str
    choices: Mapping[str, int]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def num_votes(self) -> int:
        return sum(self.choices.values())

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        choices = dict(self.choices)
        return {"store": self.store, "sha256": self.sha256, "votes": self.num_votes, "pairs": len(self.rows), "choices": choices}

    @property
    def description(self) -> str:
        """One line: how many pairs and votes, and what became of those that state no preference."""
        silent = [f"{self.choices[name]} {words}" for name, words in _SILENT if self.choices.get(name)]
        left = f"; left out: {' and '.join(silent)}" if silent else ""
        ties = f" ({self.choices['tie']} ties, half a vote for each answer)" if self.choices.get("tie") else ""
        return f"{self.store}: {len(self.rows)} pairs with {self.num_votes} votes{ties}{left}"


_SILENT = (("both_bad", "votes that both are bad"), ("skip", "skips"))


def read_votes(store: Path) -> Votes:
    """The votes of the store at `store` as they are now, all of one moment.

    Raises:
        DataError: no store there, or none of its votes states a preference.
    """
    with PreferenceStore.open(store, create=False) as opened:
        for _ in range(READS):
            before = _state(opened)
            rows = tuple(
                {
                    "prompt": p.prompt,
                    "chosen": p.chosen,
                    "rejected": p.rejected,
                    "source": " + ".join(p.sources),
                    **_stated(p.margin, p.target),
                }
                for p in opened.preferences()
            )
            if _state(opened) == before:  # nobody voted in between: digest and rows are of one moment
                break
        else:
            raise DataError(
                f"{store} changes all the time and cannot be read at one moment. Stop what writes to it for a second."
            )
    digest, counts = before
    if not rows:
        raise DataError(
            f"reward.store = {str(store)!r} holds no preferences ({counts.pairs:,} pairs, {counts.votes:,} votes). "
            "Collect votes first."
        )
    return Votes(str(store), digest, counts.by_choice, rows)


def _state(store: PreferenceStore) -> tuple[str, Counts]:
    return store.digest(), store.counts()


def _stated(margin: float | None, target: float | None) -> dict[str, float]:
    return {name: value for name, value in (("margin", margin), ("target", target)) if value is not None}


def frozen_votes(folder: RunFolder, store: Path, *, has_begun: bool) -> Votes:
    """The votes that the run in `folder` learns from: those it began with, else those of the store, which it then keeps."""
    path = folder.path / FILE
    if has_begun and path.exists():
        head, *rows = read_jsonl(path)
        votes = Votes(head["store"], head["sha256"], head["choices"], tuple(rows))
        if said := _difference(votes.facts):
            folder.note(f"{said}; this run goes on with the votes that it began with")
        return votes
    votes = read_votes(store)
    lines = [votes.facts, *votes.rows]
    folder.write(FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return votes


def moved_on(run: Path) -> list[str]:
    """A sentence for each reward model in the folder `run` (of one run, or of several) whose store holds other votes by now.

    Of rounds the last one's counts: those before it were meant to see fewer votes.
    """
    rounds = sorted(run.glob("reward-*"), key=lambda folder: (len(folder.name), folder.name))
    told = []
    for folder in (run, run / "reward", *rounds[-1:]):
        if not (folder / "manifest.json").is_file():
            continue
        try:
            seen = load_manifest(folder)["facts"].get("votes")
        except RunError:  # a damaged manifest is said elsewhere
            continue
        if isinstance(seen, dict) and (said := _difference(seen)):
            told.append(f"{folder.name}: {said}. Train a new reward model to learn from the votes as they are now.")
    return told


def _difference(seen: Mapping[str, Any]) -> str:
    """How the store differs from the votes that were seen, in words; "" where it does not, or is no longer there."""
    path = Path(str(seen.get("store")))
    if not path.is_file():
        return ""
    try:
        with PreferenceStore.open(path, create=False) as store:
            digest, counts = _state(store)
    except DataError as problem:
        return f"the store that the votes are from cannot be read ({problem})"
    if digest == seen.get("sha256"):
        return ""
    then, now = int(seen.get("votes", 0)), counts.votes
    how = f"{then} votes then, {now} now" if then != now else f"{now} votes then and now, but not the same ones"
    return f"{path} has moved on since the reward model read it: {how}"
