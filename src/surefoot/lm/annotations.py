"""Exports of annotation tools: which two answers were compared, and which share of the annotators preferred the first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from surefoot.errors import DataError

ANSWER = re.compile(r"(?:responses?|answers?|completions?|generations?|outputs?|texts?|txt)[-_ ]?([12ab])", re.IGNORECASE)
PROMPTS = ("prompt", "instruction", "question", "input", "context")
NO_CHOICE = "no annotator made a choice"
TIES = ("tie", "equal", "same", "both")
NEITHER = ("both_bad", "both bad", "neither", "none")

Annotated = tuple[dict[str, Any], float, dict[str, Any]]


def annotated_share(record: Mapping[str, Any], where: str) -> Annotated | str:
    """(prompt, if there is one, and the two answers, by name and in this order; share of votes for the first; columns).

    Words in their place say why the record states no preference.

    Raises:
        DataError: the record does not compare two answers, or a vote cannot be understood.
    """
    is_argilla = "fields" in record
    given = record["fields"] if is_argilla else record["data"]
    if not isinstance(given, dict):
        raise DataError(f"{where}: {'fields' if is_argilla else 'data'} is not an object.")
    answers = sorted(
        (match.group(1).lower(), name) for name in given if isinstance(name, str) and (match := ANSWER.fullmatch(name))
    )
    if len(answers) != 2:
        raise DataError(
            f"{where}: the two answers cannot be told among the fields {', '.join(sorted(map(str, given))[:12]) or '(none)'}. "
            "Name them response1 and response2, answer1 and answer2, or text1 and text2."
        )
    names = [name for _, name in answers]
    prompt = [name for name in PROMPTS if given.get(name)][:1]
    votes = _argilla_votes(record["responses"], where) if is_argilla else _pairwise_votes(record["annotations"], where)
    shares = [share for vote in votes if (share := _share(vote, answers, where)) is not None]
    if not shares:
        return NO_CHOICE
    columns = {name: value for name, value in given.items() if name not in (*prompt, *names)}
    metadata = record.get("metadata")
    columns |= metadata if isinstance(metadata, dict) else {}
    return {name: given[name] for name in (*prompt, *names)}, sum(shares) / len(shares), columns


def _pairwise_votes(annotations: object, where: str) -> Iterator[object]:
    """Label Studio: each annotation has results; one of type "pairwise" holds value.selected, left or right."""
    if not isinstance(annotations, list):
        raise DataError(f"{where}: annotations is not a list. Export from Label Studio as JSON, not JSON-MIN.")
    for annotation in annotations:
        results = annotation.get("result") if isinstance(annotation, dict) else None
        if not isinstance(results, list):
            raise DataError(f"{where}: an annotation has no list of results. Export from Label Studio as JSON.")
        if annotation.get("was_cancelled"):
            continue
        for result in results:
            if isinstance(result, dict) and result.get("type") == "pairwise":
                value = result.get("value")
                yield value.get("selected") if isinstance(value, dict) else value


def _argilla_votes(responses: object, where: str) -> Iterator[object]:
    """Argilla: {question: [{value, user_id, status}]}; the question is "preference", or the only one."""
    if not isinstance(responses, dict):
        raise DataError(f"{where}: responses is not an object of questions. Export from Argilla with `dataset.records.to_json`.")
    if not responses:
        return
    name = "preference" if "preference" in responses else next(iter(responses))
    if name != "preference" and len(responses) > 1:
        raise DataError(
            f"{where}: which of the questions {', '.join(map(str, responses))} compares the answers? Name it preference."
        )
    given = responses[name]
    if not isinstance(given, list) or not all(isinstance(response, dict) for response in given):
        raise DataError(f"{where}: the responses to {name} are not a list of {{value, user_id}}.")
    for response in given:
        if response.get("status") in (None, "submitted"):
            yield response.get("value")


def _share(vote: object, answers: list[tuple[str, str]], where: str) -> float | None:
    """How far one vote speaks for the first answer: 1, 0, or 1/2; None where it states no preference.

    A vote is an answer's name, its last letter or digit, a side, or a ranking (best first, or with ranks).
    """
    if isinstance(vote, list) and vote:
        return _ranked_share(vote, answers, where)
    word = str(vote).strip().lower() if isinstance(vote, (str, int)) and not isinstance(vote, bool) else ""
    for share, (ending, name), side in ((1.0, answers[0], "left"), (0.0, answers[1], "right")):
        if word in (name.lower(), ending, side):
            return share
    if word in TIES:
        return 0.5
    if word in NEITHER:
        return None
    names = ", ".join(name for _, name in answers)
    raise DataError(
        f"{where}: the vote {str(vote)[:40]!r} is not understood. Allowed: {names}, left, right, {', '.join(TIES + NEITHER)}."
    )


def _ranked_share(ranking: list[Any], answers: list[tuple[str, str]], where: str) -> float:
    ranks: dict[str, float] = {}
    for position, entry in enumerate(ranking, start=1):
        name, rank = (entry.get("value"), entry.get("rank", position)) if isinstance(entry, dict) else (entry, position)
        if isinstance(name, str) and isinstance(rank, (int, float)):
            ranks[name] = rank
    first, second = (ranks.get(name) for _, name in answers)
    if first is None or second is None:
        raise DataError(f"{where}: a ranking does not rank both {answers[0][1]} and {answers[1][1]}.")
    return 0.5 if first == second else float(first < second)
