"""How far votes can be trusted: agreement between annotators and with oneself, bias of position and length, votes at random.

Pure functions of votes; valid ones (`PreferenceStore.votes`), oldest first. A person's opinion of a pair is the FIRST valid vote
on it; further votes on the same pair are hidden repeats and count for agreement with oneself alone. A skip is no opinion.
Agreement needs people: an import may bring many people's votes under one source, so it is left out where a person is meant.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from surefoot.intervals import Interval, binomial_at_least, binomial_at_most, wilson_interval
from surefoot.preferences.votes import Vote

Level = Literal["nominal", "ordinal"]
Finding = Literal["fine", "inverted", "random", "too few"]

MIN_COMPARED = 10  # pairs on which others agree, below which an annotator's standing is not judged
SIGNIFICANCE = 0.01  # of all annotators' tests together: each gets its share (Bonferroni)


def is_person(source: str) -> bool:
    """Whether one mind stands behind a source: a person, or a function; not ratings or an import, which bring many people's."""
    return source.startswith(("human:", "function:"))


def opinions(votes: Iterable[Vote]) -> dict[str, dict[int, Vote]]:
    """Each annotator's first vote on each pair, skips and adjudications left out: source -> pair -> vote."""
    found: dict[str, dict[int, Vote]] = defaultdict(dict)
    for vote in votes:
        if is_person(vote.source) and vote.choice != "skip" and vote.kind != "adjudication":
            found[vote.source].setdefault(vote.pair, vote)
    return dict(found)


def position(vote: Vote) -> int | None:
    """A vote on the scale from -4 (b, by far) to 4 (a, by far); a tie is 0. A choice without a strength is a slight one.

    None where the vote states no preference (both bad, skip).
    """
    match vote.choice:
        case "a":
            return vote.strength or 1
        case "b":
            return -(vote.strength or 1)
        case "tie":
            return 0
    return None


def side_position(vote: Vote) -> int | None:
    """`position` as the annotator saw it: from 4 (left, by far) to -4 (right, by far); None where nobody saw sides."""
    stated = position(vote)
    if stated is None or vote.left is None:
        return None
    return stated if vote.left == "a" else -stated


def cohen_kappa(first: Mapping[int, Hashable], second: Mapping[int, Hashable]) -> float | None:
    r"""Cohen's kappa of two annotators, kappa = (p_o - p_e) / (1 - p_e) (Cohen 1960), over the pairs that both have labelled.

    p_o is the share of pairs with equal labels, p_e = sum_k p_1(k) p_2(k) the share expected of independent annotators with the
    same habits. 1: always equal; 0: as often as by chance; below 0: less often. None where no pair is shared, or both gave one
    and the same label throughout: chance alone would then agree always, and kappa is 0 / 0.

    `first`, `second`: pair -> label, such as a choice.
    """
    shared = first.keys() & second.keys()
    if not shared:
        return None
    count = len(shared)
    observed = sum(first[pair] == second[pair] for pair in shared) / count
    habits = [Counter(labels[pair] for pair in shared) for labels in (first, second)]
    expected = sum(number * habits[1][label] for label, number in habits[0].items()) / count**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Iterable[Sequence[float | str]], level: Level = "nominal") -> float | None:
    r"""Krippendorff's alpha, 1 - D_o / D_e (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    With the coincidences o_ck = sum_u (ordered pairs c, k within unit u) / (m_u - 1), their margins n_c and n = sum n_c:
    D_o = sum o_ck delta_ck / n and D_e = sum n_c n_k delta_ck / (n (n - 1)). delta is 0 for equal labels; else 1 (nominal), or
    (n_c / 2 + the margins between c and k + n_k / 2)^2 (ordinal; labels are then numbers). Any number of annotators; units
    with fewer than two labels say nothing and are left out. None where no unit is left, or all labels are equal (0 / 0).

    `units`: the labels that one pair was given, in any order.
    """
    told = [list(unit) for unit in units if len(unit) > 1]
    labels = sorted({label for unit in told for label in unit}, key=lambda label: (isinstance(label, str), label))
    if len(labels) < 2:
        return None
    margins = Counter(label for unit in told for label in unit)
    total = sum(margins.values())
    distances = {(c, k): _distance(labels, margins, i, j, level) for i, c in enumerate(labels) for j, k in enumerate(labels)}
    within = 0.0
    for unit in told:
        counts = Counter(unit)
        pairs = sum(n * (m - (c == k)) * distances[c, k] for c, n in counts.items() for k, m in counts.items())
        within += pairs / (len(unit) - 1)
    between = sum(margins[c] * margins[k] * distance for (c, k), distance in distances.items())
    return 1 - (total - 1) * within / between


def _distance(labels: Sequence[float | str], margins: Mapping[float | str, int], i: int, j: int, level: Level) -> float:
    if i == j:
        return 0.0
    if level == "nominal":
        return 1.0
    low, high = sorted((i, j))
    across = sum(margins[label] for label in labels[low : high + 1])
    return (across - (margins[labels[low]] + margins[labels[high]]) / 2) ** 2


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far annotators agree on the pairs that two or more have judged.

    `kappas`: Cohen's, for each two annotators with a shared pair, by their names in alphabetical order. `nominal`: alpha over the
    choices a, b, tie, both bad. `ordinal`: alpha over the scale of `position`, both bad left out. None: not defined.
    """

    num_shared_pairs: int
    kappas: dict[tuple[str, str], float | None]
    nominal: float | None
    ordinal: float | None


def agreement(votes: Iterable[Vote]) -> Agreement:
    """Cohen's kappas and Krippendorff's alphas of all annotators; see `Agreement`."""
    by_source = opinions(votes)
    by_pair: dict[int, list[Vote]] = defaultdict(list)
    for told in by_source.values():
        for pair, vote in told.items():
            by_pair[pair].append(vote)
    kappas = {}
    for one, other in combinations(sorted(by_source), 2):
        if by_source[one].keys() & by_source[other].keys():
            labels = [{pair: vote.choice for pair, vote in by_source[name].items()} for name in (one, other)]
            kappas[one, other] = cohen_kappa(*labels)
    positions = [[p for vote in group if (p := position(vote)) is not None] for group in by_pair.values()]
    return Agreement(
        num_shared_pairs=sum(len(group) > 1 for group in by_pair.values()),
        kappas=kappas,
        nominal=krippendorff_alpha([vote.choice for vote in group] for group in by_pair.values()),
        ordinal=krippendorff_alpha(positions, "ordinal"),
    )


def self_agreement(votes: Iterable[Vote]) -> dict[str, Interval]:
    """The share of hidden repeats in which an annotator chose the same answer again, with Wilson's interval, by source.

    A repeat is a further valid vote of the same person on the same pair, whichever side the answers stand on; each is compared
    with the vote before it. The choice counts, not its strength. Annotators without repeats are left out.
    """
    last: dict[tuple[str, int], Vote] = {}
    same: dict[str, list[bool]] = defaultdict(list)
    for vote in votes:
        if not is_person(vote.source) or vote.choice == "skip":
            continue
        before = last.get((vote.source, vote.pair))
        if before is not None:
            same[vote.source].append(before.choice == vote.choice)
        last[vote.source, vote.pair] = vote
    return {source: wilson_interval(sum(equal), len(equal)) for source, equal in sorted(same.items())}


@dataclass(frozen=True, slots=True)
class Bias:
    """The share of choices that went one way, with Wilson's interval, and the two-sided exact binomial p-value of 1/2."""

    share: Interval
    p_value: float


def _bias(went: Sequence[bool]) -> Bias | None:
    if not went:
        return None
    count, number = len(went), sum(went)
    tail = min(binomial_at_most(number, count), binomial_at_least(number, count))
    return Bias(wilson_interval(number, count), min(1.0, 2 * tail))


def position_bias(votes: Iterable[Vote]) -> Bias | None:
    """The share of left choices among choices of a side. Sides are drawn at random, so without bias it is 1/2.

    Every vote whose sides were seen counts, hidden repeats included; ties, both bad and skips choose no side. None without any.
    """
    return _bias([vote.choice == vote.left for vote in votes if vote.left is not None and vote.choice in ("a", "b")])


def length_bias(votes: Iterable[Vote], lengths: Mapping[int, tuple[float, float]]) -> Bias | None:
    """The share of choices that went to the longer answer, of choices between answers of unequal length.

    A share above 1/2 is no fault by itself: longer answers may be better. It says what a reward model will learn.

    `lengths`: pair -> (length of a, length of b), in any one unit. Pairs that it does not name are left out.
    """
    longer = []
    for vote in votes:
        a, b = lengths.get(vote.pair, (0, 0))
        if vote.choice in ("a", "b") and a != b:
            longer.append((vote.choice == "a") == (a > b))
    return _bias(longer)


@dataclass(frozen=True, slots=True)
class Standing:
    """How an annotator stands to the consensus of the others, over the pairs on which these have a strict majority.

    `p_inverted` = P(X <= agreeing), `p_chance` = P(X >= agreeing), X ~ Binomial(compared, 1/2): small values speak against a coin
    from below and from above. `usual` is the share with which all other annotators agree with their own others.
    """

    source: str
    compared: int
    agreeing: int
    p_inverted: float
    p_chance: float
    usual: float | None
    finding: Finding


def standings(votes: Iterable[Vote]) -> list[Standing]:
    """Every annotator against the consensus of the others, by exact binomial tests; sorted by source.

    On a pair the others' consensus is the answer with more of their choices; pairs with none, or a draw, are not compared.
      inverted: agrees less often than a coin would (P(X <= agreeing) below the level).
      random: a coin explains the votes (P(X >= agreeing) at or above the level), and what is usual among the others does not
        (P(X <= agreeing) below the level, X ~ Binomial(compared, usual)).
      too few: fewer than MIN_COMPARED pairs; fine: everything else, also where too little is known to say more.
    The level is SIGNIFICANCE over the number of annotators judged. A consensus can be wrong: a finding is a reason to look.
    Where two alone share pairs, both of an inverted couple are named: nothing tells which of them is.
    """
    by_source = opinions(votes)
    tallies: dict[int, Counter[str]] = defaultdict(Counter)
    for told in by_source.values():
        for pair, vote in told.items():
            tallies[pair][vote.choice] += vote.choice in ("a", "b")
    counted = {source: _against_others(told, tallies) for source, told in by_source.items()}
    judged = sum(compared >= MIN_COMPARED for compared, _ in counted.values())
    level = SIGNIFICANCE / max(1, judged)
    every = [sum(column) for column in zip(*counted.values(), strict=True)] if counted else [0, 0]
    return [
        _standing(source, *counted[source], every[0] - counted[source][0], every[1] - counted[source][1], level)
        for source in sorted(counted)
    ]


def _against_others(told: Mapping[int, Vote], tallies: Mapping[int, Counter[str]]) -> tuple[int, int]:
    """(pairs compared, of these agreeing) of one annotator."""
    compared = agreeing = 0
    for pair, vote in told.items():
        if vote.choice not in ("a", "b"):
            continue
        for_a, for_b = (tallies[pair][side] - (vote.choice == side) for side in ("a", "b"))
        if for_a != for_b:
            compared += 1
            agreeing += vote.choice == ("a" if for_a > for_b else "b")
    return compared, agreeing


def _standing(source: str, compared: int, agreeing: int, others: int, others_agreeing: int, level: float) -> Standing:
    p_inverted, p_chance = binomial_at_most(agreeing, compared), binomial_at_least(agreeing, compared)
    usual = others_agreeing / others if others else None
    finding: Finding = "fine"
    if compared < MIN_COMPARED:
        finding = "too few"
    elif p_inverted < level:
        finding = "inverted"
    elif p_chance >= level and usual is not None and binomial_at_most(agreeing, compared, usual) < level:
        finding = "random"
    return Standing(source, compared, agreeing, p_inverted, p_chance, usual, finding)
