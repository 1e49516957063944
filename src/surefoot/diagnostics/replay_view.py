"""The answers of replay.jsonl as the report's own script reads them: what fits on a page, ranked by reward and by judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surefoot.diagnostics.run_view import Row, RunView, is_number
from surefoot.diagnostics.wording import as_text

MAX_PAGE_TOKENS = 60_000  # about 4 MB of a page; of more, evenly spaced steps are shown

# What a token can be coloured by, and how: name, title, unit, kind of scale, what it says.
FIGURES = (
    ("advantage", "Advantage", "", "around 0", "What the update was told: above 0 make the token likelier, below 0 less likely."),
    ("kl", "KL to the SFT model", "nats", "around 0", "What the token costs the tether: where the policy left the SFT model."),
    ("logp", "Log-prob, policy", "nats", "from 0 down", "How sure the policy was when it sampled the token; 0 is certain."),
    (
        "logp_sft",
        "Log-prob, SFT",
        "nats",
        "from 0 down",
        "How sure the SFT model is of the token. Strong colour: it would hardly say it.",
    ),
    ("value", "Value", "reward", "around 0", "What the critic expected of the answer before the token."),
    (
        "ratio",
        "Ratio",
        "",
        "around 1",
        "pi_theta / pi_old after the update: above 1 the token became likelier. Underlined: clipped.",
    ),
)


def replay_content(run: RunView) -> dict[str, Any] | None:
    """`answers` for the page's script, in the order of the steps, and what is said about them; None where nothing is recorded."""
    rows = [row for row in run.replay if _is_whole(row)]
    if not rows:
        return None
    kept, steps = _thinned(rows)
    judges = list(dict.fromkeys(name for row in kept for name in row["judges"] if is_number(row["judges"][name])))
    answers = [_answer(row) for row in kept]
    judged = [answer for answer in answers if judges and set(judges) <= set(answer["judges"])]
    scores = _ranks([answer["score"] for answer in judged])
    verdicts = zip(*(_ranks([answer["judges"][name] for answer in judged]) for name in judges), strict=True)
    for answer, paid, found in zip(judged, scores, verdicts, strict=True) if judged else ():
        answer |= {"paid": round(paid, 3), "found": round(sum(found) / len(found), 3)}
    figures = [
        {"key": key, "title": title, "unit": unit, "scale": scale, "what": what} for key, title, unit, scale, what in FIGURES
    ]
    return {
        "answers": answers,
        "figures": figures,
        "judge": "the judges" if len(judges) > 1 else "".join(judges),
        "num_steps": len({row["step"] for row in kept}),
        "all_steps": steps,
    }


def _is_whole(row: Row) -> bool:
    """Whether a line holds what the page shows: lists of numbers as long as its tokens. A damaged one is left out."""
    tokens, figures, clipped = row.get("tokens"), row.get("figures"), row.get("clipped")
    if not (is_number(row.get("step")) and is_number(row.get("score")) and isinstance(row.get("judges"), dict)):
        return False
    if not (isinstance(tokens, list) and isinstance(figures, dict) and isinstance(clipped, list) and len(clipped) == len(tokens)):
        return False
    columns = [figures.get(key) for key, *_ in FIGURES]
    return all(isinstance(column, list) and len(column) == len(tokens) for column in columns)


def _thinned(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Rows of evenly spaced steps that fit on a page, the first and the last step among them; and the count of all steps."""
    steps = sorted({row["step"] for row in rows})
    tokens = sum(len(row["tokens"]) for row in rows)
    count = len(steps)
    if tokens > MAX_PAGE_TOKENS:
        count = max(2, int(len(steps) * MAX_PAGE_TOKENS / tokens))
    shown = {steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)}
    return sorted((row for row in rows if row["step"] in shown), key=lambda row: float(row["step"])), len(steps)


def _answer(row: Row) -> dict[str, Any]:
    length = row.get("length")
    return {
        "step": row["step"],
        "prompt": as_text(row.get("prompt", "")),
        "score": row["score"],
        "judges": {name: number for name, number in row["judges"].items() if is_number(number)},
        "kl": row["sequence_kl"] if is_number(row.get("sequence_kl")) else None,
        "left_out": int(length) - len(row["tokens"]) if is_number(length) else 0,
        "is_cut": row.get("finished") is False,
        "tokens": [as_text(token) for token in row["tokens"]],
        "figures": {key: [x if is_number(x) else None for x in row["figures"][key]] for key, *_ in FIGURES},
        "clipped": [bool(x) for x in row["clipped"]],
    }


def _ranks(values: Sequence[float]) -> list[float]:
    """Share of the other values that are smaller, ties counted half: 0 for the least, 1 for the largest."""
    others = max(1, len(values) - 1)
    ordered = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(ordered)))}
    last = {value: place for place, value in enumerate(ordered)}
    return [(first[value] + last[value]) / 2 / others for value in values]
