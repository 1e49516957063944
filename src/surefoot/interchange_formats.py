"""The formats that preferences are exported in. Each writes one file from one snapshot of a store and returns how many rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, BinaryIO

from surefoot.content import Content, Message
from surefoot.errors import DataError
from surefoot.preferences.store import Pair, PreferenceStore
from surefoot.preferences.votes import Preference, Vote, counting

Writer = Callable[[PreferenceStore, BinaryIO], int]


def _trl(store: PreferenceStore, file: BinaryIO) -> int:
    """One JSON object a line, {prompt, chosen, rejected}, with `margin` where stated.

    Where voters disagree, `target` is the share of votes for chosen: TRL does not read it, Surefoot does.
    """
    count = 0
    for preference in store.preferences():
        file.write(json.dumps(_row(preference), ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


def _row(preference: Preference) -> dict[str, Any]:
    row = {"prompt": preference.prompt, "chosen": preference.chosen, "rejected": preference.rejected}
    stated = {name: value for name, value in (("margin", preference.margin), ("target", preference.target)) if value is not None}
    return {**row, **stated}


def _parquet(store: PreferenceStore, file: BinaryIO) -> int:
    """The rows of `_trl` as a table. A column has one type, so where any content is messages, plain text becomes messages too.

    Raises:
        DataError: the extra `datasets` is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("exporting Parquet needs pyarrow. Install it with `pip install 'surefoot[datasets]'`.") from None
    rows = [_row(preference) for preference in store.preferences()]
    text = pyarrow.string()
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    if any(isinstance(row[name], list) for row in rows for name in roles):
        text = pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()}))
        rows = [{**row, **{name: _messages(row[name], role) for name, role in roles.items()}} for row in rows]
    columns = [(name, text) for name in roles] + [(name, pyarrow.float64()) for name in ("margin", "target")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(columns)), file)
    return len(rows)


def _messages(content: Content, role: str) -> list[Message]:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _label_studio(store: PreferenceStore, file: BinaryIO) -> int:
    """Tasks of Label Studio's Pairwise template, an annotation a vote. Its answers have no strength, and none is written."""
    picks = {"a": "left", "b": "right", "tie": "tie", "both_bad": "neither"}

    def task(pair: Pair, votes: list[Vote]) -> dict[str, Any]:
        given = [
            {
                "completed_by": vote.source,
                "lead_time": vote.seconds,
                "result": [
                    {
                        "type": "pairwise",
                        "from_name": "preference",
                        "to_name": "answers",
                        "value": {"selected": picks[vote.choice]},
                    }
                ],
            }
            for vote in votes
        ]
        texts = {"prompt": pair.prompt, "answer1": pair.a, "answer2": pair.b}
        return {"id": pair.id, "data": texts, "annotations": given}

    return _write_array(file, (task(pair, votes) for pair, votes in _voted(store)))


def _argilla(store: PreferenceStore, file: BinaryIO) -> int:
    """Records of Argilla with the question `preference`, a response a vote."""
    picks = {"a": "response1", "b": "response2", "tie": "tie", "both_bad": "neither"}

    def record(pair: Pair, votes: list[Vote]) -> dict[str, Any]:
        said = [{"value": picks[vote.choice], "user_id": vote.source, "status": "submitted"} for vote in votes]
        texts = {"prompt": pair.prompt, "response1": pair.a, "response2": pair.b}
        return {"id": str(pair.id), "fields": texts, "responses": {"preference": said}, "metadata": {"reason": pair.reason}}

    return _write_array(file, (record(pair, votes) for pair, votes in _voted(store)))


def _votes(store: PreferenceStore, file: BinaryIO) -> int:
    """One JSON object a vote that stands, with all that was recorded of it: for those who study the votes, not to train on.

    `kind` tells hidden repeats and adjudications from votes; `left` is the answer that stood on the left.
    """
    count = 0
    for pair, _, votes in store.judged():
        compared = {"pair": pair.id, "prompt": pair.prompt, "a": pair.a, "b": pair.b, "reason": pair.reason}
        for vote in votes:
            told = {field.name: getattr(vote, field.name) for field in fields(vote) if field.name not in ("id", "pair")}
            file.write(json.dumps(compared | told, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def _voted(store: PreferenceStore) -> Iterator[tuple[Pair, list[Vote]]]:
    for pair, _, votes in store.judged():
        told = [vote for vote in counting(votes) if vote.choice != "skip"]
        if told:
            yield pair, told


def _write_array(file: BinaryIO, records: Iterator[dict[str, Any]]) -> int:
    count = 0
    for record in records:
        file.write((b",\n" if count else b"[\n") + json.dumps(record, ensure_ascii=False).encode())
        count += 1
    file.write(b"\n]\n" if count else b"[]\n")
    return count


WRITERS: dict[str, Writer] = {
    "trl": _trl,
    "parquet": _parquet,
    "label-studio": _label_studio,
    "argilla": _argilla,
    "votes": _votes,
}
