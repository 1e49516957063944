"""What the votes of a pair say together. Pure: no database, so that every rule can be checked by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from surefoot.content import Content
from surefoot.errors import DataError

Choice = Literal["a", "b", "tie", "both_bad", "skip"]
Side = Literal["a", "b"]
Kind = Literal["vote", "repeat", "adjudication"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

SOURCE = re.compile(r"human:[a-z0-9._-]{1,64}|ratings|import:[a-z0-9._-]{1,64}|function:[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Vote:
    """One event: `source` chose between the two answers of `pair`. `left` is the answer that stood on the left.

    `strength` runs from 1 (slightly) to 4 (by far). `margin` and `share` are only set by imports, which bring results in place of
    single votes: `share` is then the share of votes for the chosen answer. A `repeat` is a second look at a pair by the same
    person, asked for to see whether they agree with themselves; an `adjudication` settles a pair. `seconds` ran from showing
    the pair to the click; `tags` and `note` are the voter's reasons.
    """

    id: int
    pair: int
    choice: Choice
    source: str
    left: Side | None
    strength: int | None
    margin: float | None
    share: float | None
    created: float
    kind: Kind = "vote"
    seconds: float | None = None
    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """What a reward model learns from: all valid votes of one pair, as one result.

    `target` is the share of votes for `chosen`, ties counting 1/2; None where the votes are of one mind (a share of 1).
    `margin` is the mean strength, less 1, of the votes that agree with the result (0 slightly ... 3 by far), or the imported
    margin; None where nobody stated one, and on a tie. `sources` are sorted; `key` is the prompt's.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    margin: float | None
    target: float | None
    sources: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a pair's votes: which answer is chosen, by what share, with what margin, according to whom."""

    chosen: Side
    margin: float | None
    target: float | None
    sources: tuple[str, ...]


def checked_source(source: str) -> str:
    """`source` if it names who votes.

    Raises:
        DataError: it is none of human:NAME, ratings, function:NAME, import:NAME.
    """
    if SOURCE.fullmatch(source) is None:
        raise DataError(
            f"source = {source!r} does not say who votes. Use human:NAME, ratings, import:NAME (NAME: 1 to 64 of a-z 0-9 . _ -) "
            "or function:MODULE:FUNCTION."
        )
    return source


def share_for_a(vote: Vote) -> float | None:
    """How far a vote speaks for answer a: 1, 0, 1/2 for a tie; None where it states no preference (both bad, skip)."""
    match vote.choice:
        case "a":
            return 1.0 if vote.share is None else vote.share
        case "b":
            return 0.0 if vote.share is None else 1.0 - vote.share
        case "tie":
            return 0.5
    return None


def counting(votes: Sequence[Vote]) -> list[Vote]:
    """Those of a pair's votes that decide it: its adjudications if there are any, else all but the hidden repeats."""
    settled = [vote for vote in votes if vote.kind == "adjudication"]
    return settled or [vote for vote in votes if vote.kind == "vote"]


def outcome(votes: Sequence[Vote]) -> Outcome | None:
    """The pair's result: the mean share decides who is chosen; an even share is a tie with a as `chosen` and a target of 1/2.

    Every vote counts once, whoever cast it; repeats do not count, and where somebody adjudicated, adjudications alone do. None
    where no vote states a preference. The order of the votes does not matter.
    """
    stating = [(vote, share) for vote in counting(votes) if (share := share_for_a(vote)) is not None]
    if not stating:
        return None
    share_a = sum(sorted(share for _, share in stating)) / len(stating)  # sorted: a float sum depends on its order
    chosen: Side = "b" if share_a < 0.5 else "a"
    target = share_a if chosen == "a" else sum(sorted(1.0 - share for _, share in stating)) / len(stating)
    agreeing = sorted(m for vote, _ in stating if vote.choice == chosen and (m := _margin(vote)) is not None)
    return Outcome(
        chosen=chosen,
        margin=sum(agreeing) / len(agreeing) if agreeing and target != 0.5 else None,
        target=None if target == 1.0 else target,
        sources=tuple(sorted({vote.source for vote, _ in stating})),
    )


def _margin(vote: Vote) -> float | None:
    if vote.margin is not None:
        return vote.margin
    return None if vote.strength is None else float(vote.strength - 1)
