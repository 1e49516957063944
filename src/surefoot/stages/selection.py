"""Which pairs are worth a person's time: candidates from answers, and a number for each by which they are ranked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import pstdev
from typing import Any

from torch import Tensor

from surefoot.config import PairsConfig
from surefoot.lm.backbone import Backbone
from surefoot.stages.answers import Author, reread, sequence_kl
from surefoot.types import Completions, RewardSource


@dataclass(frozen=True, slots=True)
class Judgement:
    """What ranks candidates: a reward, a model to measure from; None: not needed."""

    reward: RewardSource | None = None
    against: Backbone | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with what its place in the ranking depends on. `members`: its scores by an ensemble's members."""

    author: int
    text: str
    token_ids: tuple[int, ...]
    score: float
    distance: float
    kl: float
    members: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two answers to the prompt at `place`, not yet queued. The lowest `rank` is queued first."""

    place: int
    a: Answer
    b: Answer
    rank: float

    def as_row(self) -> dict[str, Any]:
        """The form in which samples.jsonl keeps it."""
        row: dict[str, Any] = {"place": self.place, "rank": self.rank}
        return row | {side: _as_row(answer) for side, answer in (("a", self.a), ("b", self.b))}

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Candidate:
        lists = ("token_ids", "members")
        a, b = (Answer(**{**row[side], **{name: tuple(row[side][name]) for name in lists}}) for side in ("a", "b"))
        return cls(int(row["place"]), a, b, float(row["rank"]))


def _as_row(answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(answer, name) for name in Answer.__dataclass_fields__}
    return row | {"token_ids": list(answer.token_ids), "members": list(answer.members)}


def judged_answers(judgement: Judgement, authors: Sequence[Author], who: int, index: range, said: Completions) -> list[Answer]:
    """The answers of one author to the prompts at `index`, each with its score, distance and KL as far as they are needed.

    The reward reads answers in the tokens of the first author, by way of their text where they are another's.
    """
    count = len(index)
    scores, distances, kls = [0.0] * count, [0.0] * count, [0.0] * count
    members: list[tuple[float, ...]] = [()] * count
    reader = authors[0]
    if judgement.reward is not None:
        prompts = reader.take(index)
        read = (
            said
            if reader.backbone.codec.has_ids_of(authors[who].backbone.codec.tokenizer)
            else reread(said, reader.backbone.codec)
        )
        given = judgement.reward.score(prompts, read)
        scores = given.value.masked_fill(~given.valid, float("nan")).tolist()
        members = _by_member(given.parts) or members
        if given.distance is not None:
            distances = given.distance.tolist()
    if judgement.against is not None:
        own = authors[who]
        kls = sequence_kl(own.backbone, judgement.against, own.take(index), said, judgement.temperature)
    ids = [said.ids[row][said.mask[row]].tolist() for row in range(count)]
    return [
        Answer(who, text, tuple(token_ids), score, distance, kl, own)
        for text, token_ids, score, distance, kl, own in zip(said.text, ids, scores, distances, kls, members, strict=True)
    ]


def _by_member(parts: Mapping[str, Tensor]) -> list[tuple[float, ...]]:
    """The scores of each answer by the members of an ensemble; empty where the reward has none."""
    return list(zip(*(column.tolist() for name, column in parts.items() if name.startswith("member_")), strict=True))


def candidates(answers: Sequence[Answer], place: int, cfg: PairsConfig, seed: int) -> list[Candidate]:
    """The pairs that the answers to one prompt make: all of different text, or the reward's best against one of the others.

    Empty answers make none, nor do answers that the reward cannot score where a score is needed.
    """
    different = list({answer.text: answer for answer in reversed(answers) if answer.text.strip()}.values())[::-1]
    if cfg.needs_reward:
        different = [answer for answer in different if answer.score == answer.score]  # not NaN
    if cfg.best_of and len(different) > 1:
        best = max(different, key=lambda answer: answer.score)
        others = [answer for answer in different if answer is not best]
        pairs = [(best, others[int(_chance(seed, place, "other") * len(others))])]
    else:
        pairs = list(combinations(different, 2))
    return [Candidate(place, a, b, _rank(a, b, answers, place, cfg, seed)) for a, b in pairs]


def _rank(a: Answer, b: Answer, answers: Sequence[Answer], place: int, cfg: PairsConfig, seed: int) -> float:
    match cfg.select:
        case "random":
            return _chance(seed, place, a.text, b.text)
        case "uncertainty":
            return abs(a.score - b.score)
        case "disagreement":  # of margins: what a member adds to every score is no opinion
            return -pstdev(one - other for one, other in zip(a.members, b.members, strict=True))
        case "distance":
            return -(a.distance + b.distance) / 2
        case "kl":
            return -sum(answer.kl for answer in answers) / len(answers)  # of the prompt: one answer's is mostly chance


def _chance(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone, whatever batch they come in."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def chosen(every: Sequence[Candidate], count: int) -> list[Candidate]:
    """The `count` candidates of lowest rank, in the order of their prompts; of equal rank the first."""
    order = sorted(range(len(every)), key=lambda i: (every[i].rank, i))
    return [every[i] for i in sorted(order[:count])]
