"""Every format that docs/data.md lists becomes the rows that it says, from a small file made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.content import content_key
from surefoot.lm.data import read_rows, rows_from

U, A = "user", "assistant"


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def preference(record: dict[str, Any]) -> tuple[Any, ...]:
    (row,) = rows_from([record], "preferences")
    return row.prompt, row.chosen, row.rejected, row.margin, row.target


def completion(record: dict[str, Any]) -> tuple[Any, ...]:
    (row,) = rows_from([record], "completions")
    return row.prompt, row.completion


CASES = [
    ("prompts", {"prompt": "Hi"}, "{prompt} (text)", ["Hi"]),
    ("prompts", {"prompt": [message(U, "Hi")]}, "{prompt} (messages)", [[message(U, "Hi")]]),
    ("completions", {"prompt": "Hi", "completion": " there"}, "{prompt, completion} (text)", ["Hi", " there"]),
    (
        "completions",
        {"prompt": [message(U, "Hi")], "completion": [message(A, "Ho")]},
        "{prompt, completion} (messages)",
        [[message(U, "Hi")], [message(A, "Ho")]],
    ),
    (
        "completions",  # an answer as text to a prompt in messages is the assistant's
        {"prompt": [message(U, "Hi")], "completion": "Ho"},
        "{prompt, completion} (messages)",
        [[message(U, "Hi")], [message(A, "Ho")]],
    ),
    ("completions", {"text": "A sentence."}, "{text} (text)", ["", "A sentence."]),
    (
        "completions",
        {"messages": [message("system", "Be kind."), message(U, "Hi"), message(A, "Ho"), message(U, "?"), message(A, "!")]},
        "{messages} (messages)",
        [[message("system", "Be kind."), message(U, "Hi"), message(A, "Ho"), message(U, "?")], [message(A, "!")]],
    ),
    (
        "completions",
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        "Alpaca (messages)",
        [[message(U, "Add.\n\n1 2")], [message(A, "3")]],
    ),
    (
        "completions",
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        "Alpaca (messages)",
        [[message(U, "Say hi.")], [message(A, "hi")]],
    ),
    (
        "completions",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "Be kind."},
        "ShareGPT (messages)",
        [[message("system", "Be kind."), message(U, "Hi")], [message(A, "Ho")]],
    ),
    (
        "preferences",
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 2},
        "{prompt, chosen, rejected} (text)",
        ["Hi", "a", "b", 2.0, None],
    ),
    (
        "preferences",
        {"prompt": [message(U, "Hi")], "chosen": [message(A, "a")], "rejected": [message(A, "b")], "target": 0.75},
        "{prompt, chosen, rejected} (messages)",
        [[message(U, "Hi")], [message(A, "a")], [message(A, "b")], None, 0.75],
    ),
    (
        "preferences",  # whole conversations beside the prompt as text: the prompt stands in them
        {"prompt": "Hi", "chosen": [message(U, "Hi"), message(A, "a")], "rejected": [message(U, "Hi"), message(A, "b")]},
        "{prompt, chosen, rejected} (messages)",
        [[message(U, "Hi")], [message(A, "a")], [message(A, "b")], None, None],
    ),
    (
        "preferences",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        "{chosen, rejected} with an implicit prompt (text)",
        ["The sky is", " blue.", " green.", None, None],
    ),
    (
        "preferences",
        {
            "chosen": [message(U, "Hi"), message(A, "a"), message(U, "?"), message(A, "x")],
            "rejected": [message(U, "Hi"), message(A, "a"), message(U, "?"), message(A, "y")],
        },
        "{chosen, rejected} with an implicit prompt (messages)",
        [[message(U, "Hi"), message(A, "a"), message(U, "?")], [message(A, "x")], [message(A, "y")], None, None],
    ),
    (
        "preferences",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        "ShareGPT pairs (messages)",
        [[message(U, "Hi")], [message(A, "a")], [message(A, "b")], None, None],
    ),
    (
        "preferences",
        {"model_a": "m", "model_b": "n", "winner": "model_b", "prompt": "Hi", "response_a": "a", "response_b": "b"},
        "LMArena (text)",
        ["Hi", "b", "a", None, None],
    ),
    (
        "preferences",
        {
            "model_a": "m", "model_b": "n", "winner": "tie",
            "conversation_a": [message(U, "Hi"), message(A, "a")],
            "conversation_b": [message(U, "Hi"), message(A, "b")],
        },
        "LMArena (messages)",
        [[message(U, "Hi")], [message(A, "a")], [message(A, "b")], None, 0.5],
    ),
    (
        "preferences",
        {
            "id": 7,
            "data": {"prompt": "Hi", "answer1": "a", "answer2": "b"},
            "annotations": [
                {"result": [{"type": "pairwise", "from_name": "pw", "to_name": "answer1,answer2", "value": {"selected": side}}]}
                for side in ("right", "right", "left")
            ],
        },
        "Label Studio Pairwise (text)",
        ["Hi", "b", "a", None, 1 - 1 / 3],
    ),
    (
        "preferences",
        {
            "fields": {"prompt": "Hi", "response1": "a", "response2": "b"},
            "responses": {"preference": [{"value": ["response2", "response1"], "user_id": "u"}]},
        },
        "Argilla (text)",
        ["Hi", "b", "a", None, None],
    ),
    (
        "preferences",
        {
            "fields": {"instruction": "Hi", "response-a": "a", "response-b": "b"},
            "responses": {
                "which": [
                    {"value": [{"value": "response-a", "rank": 1}, {"value": "response-b", "rank": 2}], "status": "submitted"},
                    {"value": [{"value": "response-a", "rank": 1}, {"value": "response-b", "rank": 1}], "status": "submitted"},
                    {"value": [{"value": "response-b", "rank": 1}, {"value": "response-a", "rank": 2}], "status": "draft"},
                ]
            },
        },
        "Argilla (text)",
        ["Hi", "a", "b", None, 0.75],  # (1 + 1/2) / 2; a draft is no vote
    ),
]  # fmt: skip


@pytest.mark.parametrize("kind, record, format, fields", CASES)
def test_each_format_is_detected_by_name_and_becomes_these_fields(tmp_path: Path, kind, record, format, fields):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(record) + "\n")
    from_file, from_list = read_rows(file, kind), rows_from([record], kind)
    assert from_file.rows == from_list.rows  # the notebook and the command line agree
    assert from_file.format == format
    assert format in from_file.description
    (row,) = from_file
    names = {"prompts": ["prompt"], "completions": ["prompt", "completion"]}
    assert [getattr(row, name) for name in names.get(kind, ["prompt", "chosen", "rejected", "margin", "target"])] == fields


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("Q: ab cd\nA: yes", "Q: ab cd\nA: no", "Q: ab cd\nA:"),
        ("one two\nthree", "one two\nfour", "one two\n"),  # a line break stays with the prompt
        ("the grey sky", "the green sky", "the"),  # no word is cut: "gr" is shared
        ("so it is", "so it is not", "so it"),  # something is left of both
        ("\n\nHuman: Hi\n\nAssistant: Hi there", "\n\nHuman: Hi\n\nAssistant: Hi you", "\n\nHuman: Hi\n\nAssistant:"),
        ("\n\nHuman: Hi\n\nAssistant: same", "\n\nHuman: Hi\n\nAssistant: same", "\n\nHuman: Hi\n\nAssistant:"),
    ],
)
def test_the_implicit_prompt_of_texts_ends_at_a_sensible_border(chosen, rejected, prompt):
    found, one, other, *_ = preference({"chosen": chosen, "rejected": rejected})
    assert (found, found + one, found + other) == (prompt, chosen, rejected)


def test_the_implicit_prompt_of_messages_never_ends_with_the_assistant():
    shared = [message(U, "Hi"), message(A, "Ho")]
    found, chosen, _, *_ = preference({"chosen": [*shared, message(U, "x")], "rejected": [*shared, message(U, "y")]})
    assert (found, chosen) == (shared[:1], [message(A, "Ho"), message(U, "x")])


def test_something_is_left_of_a_conversation_that_the_other_contains():
    shorter = [message(U, "Hi"), message(A, "Ho"), message(U, "?")]
    found, chosen, rejected, *_ = preference({"chosen": shorter, "rejected": [*shorter, message(A, "!")]})
    assert (found, chosen, len(rejected)) == (shorter[:1], shorter[1:], 3)


def test_a_share_below_one_half_swaps_the_answers_of_an_annotated_pair():
    votes = [{"value": name} for name in ("response2", "2", "right", "response1")]
    record = {"fields": {"prompt": "p", "response1": "a", "response2": "b"}, "responses": {"preference": votes}}
    assert preference(record) == ("p", "b", "a", None, 0.75)


def test_fields_that_the_format_does_not_use_stay_as_columns():
    row = rows_from([{"prompt": "Hi", "answer": 42, "level": "easy"}], "prompts")[0]
    assert row.columns == {"answer": 42, "level": "easy"}
    arena = {"model_a": "m", "model_b": "n", "winner": "tie", "prompt": "Hi", "response_a": "a", "response_b": "b", "judge": 3}
    assert rows_from([arena], "preferences")[0].columns == {"model_a": "m", "model_b": "n", "winner": "tie", "judge": 3}


def test_a_null_field_counts_as_absent():
    assert completion({"prompt": "Hi", "completion": "Ho", "chosen": None, "rejected": None}) == ("Hi", "Ho")


def test_message_content_in_text_parts_is_joined_and_further_keys_fall_away():
    given = [{"role": U, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"}]
    assert rows_from([{"prompt": given}], "prompts")[0].prompt == [message(U, "ab")]


def test_a_key_is_the_prompts_alone_and_stable():
    one, other = rows_from([{"prompt": "Hi", "id": 1}, {"prompt": "Hi", "id": 2}], "prompts")
    assert one.key == other.key == content_key("Hi") == "fdda60cb3869b17e"  # echo -n '"Hi"' | sha256sum
    assert rows_from([{"prompt": [message(U, "Hi")]}], "prompts")[0].key != one.key
    assert rows_from([{"text": "x"}], "completions")[0].key != rows_from([{"text": "y"}], "completions")[0].key


def test_prompts_of_a_preference_file_are_used_once_each_and_that_is_said():
    rows = [{"prompt": p, "chosen": "a", "rejected": "b", "id": i} for i, p in enumerate(("x", "y", "x"))]
    data = rows_from(rows, "prompts")
    assert [(row.prompt, row.columns) for row in data] == [("x", {"id": 0}), ("y", {"id": 1})]  # the first row's columns
    assert data.description == (
        "the given rows: 2 prompts, format {prompt, chosen, rejected} (text); "
        "its 2 distinct prompts of 3 rows are used, the answers are not"
    )


def test_a_plain_prompt_file_keeps_its_repeated_prompts():
    assert [row.prompt for row in rows_from(["x", "x"], "prompts")] == ["x", "x"]


def test_rows_without_a_preference_are_left_out_with_a_count():
    arena = {"model_a": "m", "model_b": "n", "prompt": "Hi", "response_a": "a", "response_b": "b"}
    data = rows_from([{**arena, "winner": w} for w in ("both_bad", "model_a", "tie (bothbad)")], "preferences")
    assert len(data) == 1
    assert data.description == "the given rows: 1 preference, format LMArena (text); 2 rows left out: both answers bad"
    task = {"data": {"prompt": "p", "text1": "a", "text2": "b"}}
    chosen = {"result": [{"type": "pairwise", "value": {"selected": "left"}}]}
    tasks = [{**task, "annotations": a} for a in ([chosen], [], [{**chosen, "was_cancelled": True}])]
    assert rows_from(tasks, "preferences").notes == ("2 rows left out: no annotator made a choice",)
