"""Data that cannot be used is refused in one exact sentence: where, what, what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import DataError
from surefoot.lm.data import read_rows, rows_from


def refusal(rows: list[Any], kind: str = "preferences") -> str:
    with pytest.raises(DataError) as caught:
        rows_from(rows, kind)
    return str(caught.value)


def file_refusal(path: Path, raw: bytes | str, kind: str = "prompts") -> str:
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(DataError) as caught:
        read_rows(path, kind)
    text = str(caught.value)
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Ho"}
ARENA = {"model_a": "m", "model_b": "n", "winner": "tie", "prompt": "p", "response_a": "a", "response_b": "b"}
TASK = {"data": {"prompt": "p", "text1": "a", "text2": "b"}, "annotations": []}
RECORD = {"fields": {"prompt": "p", "response1": "a", "response2": "b"}, "responses": {}}


@pytest.mark.parametrize(
    "record, kind, sentence",
    [
        ({"prompt": ""}, "prompts", "row 1: prompt is empty. Give it text, or leave the row out."),
        ({"prompt": " \n"}, "prompts", "row 1: prompt is empty. Give it text, or leave the row out."),
        ({"prompt": 3}, "prompts", "row 1: prompt is the number 3, not text. Give a string."),
        ({"prompt": {"a": 1}}, "prompts", "row 1: prompt is an object with a, not text. Give a string."),
        (
            {"prompt": "x\ud800"},
            "prompts",
            "row 1: prompt holds half a surrogate pair (U+D800, character 1). Write the character whole.",
        ),
        ({"prompt": []}, "prompts", "row 1: prompt is an empty list. Give at least one message {role, content}, or a string."),
        ({"prompt": ["Hi"]}, "prompts", "row 1: prompt, message 1 is text, not a message. A message is {role, content}."),
        (
            {"prompt": [{"role": "bot", "content": "x"}]},
            "prompts",
            "row 1: prompt, message 1 has the role 'bot'. Allowed: system, user, assistant, tool.",
        ),
        (
            {"prompt": [USER, {"role": "user", "content": None}]},
            "prompts",
            "row 1: prompt, message 2, content is null, not text. Give a string.",
        ),
        (
            {"prompt": [USER, BOT]},
            "prompts",
            "row 1: prompt ends with a message of the assistant, so there is nothing to answer. End it with the user's.",
        ),
        (
            {"messages": [USER, {**BOT, "tool_calls": [1]}]},
            "completions",
            "row 1: messages, message 2 calls a tool, which is not supported. Write the call as text, or leave the row out.",
        ),
        ({"messages": "Hi"}, "completions", "row 1: messages is text. Use a list of {role, content}."),
        (
            {"messages": [USER]},
            "completions",
            "row 1: the conversation has one message. It needs at least a user's message and the assistant's answer to it, last.",
        ),
        (
            {"messages": [BOT, USER]},
            "completions",
            "row 1: the conversation ends with a message of the user. "
            "It needs at least a user's message and the assistant's answer to it, last.",
        ),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            "completions",
            "row 1: conversations, turn 1 is from 'alien'. "
            "Allowed: system, human, user, gpt, assistant, chatgpt, model, tool, function, observation.",
        ),
        ({"conversations": ["Hi"]}, "completions", "row 1: conversations, turn 1 is not {from, value}."),
        ({"conversations": "Hi"}, "completions", "row 1: conversations is not a list of turns {from, value}."),
        (
            {"instruction": "a", "input": 3, "output": "b"},
            "completions",
            "row 1: input is not text. Use a string, or leave it out.",
        ),
        ({**PAIR, "chosen": ""}, "preferences", "row 1: chosen is empty. Give it text, or leave the row out."),
        (
            {**PAIR, "rejected": [BOT]},
            "preferences",
            "row 1: of chosen and rejected, one is text and the other messages. Write both in one way.",
        ),
        ({**PAIR, "margin": "big"}, "preferences", "row 1: margin is 'big'. Use a finite number, or leave it out."),
        ({**PAIR, "margin": True}, "preferences", "row 1: margin is 'True'. Use a finite number, or leave it out."),
        ({**PAIR, "margin": 1e999}, "preferences", "row 1: margin is 'inf'. Use a finite number, or leave it out."),
        ({**PAIR, "target": 1.5}, "preferences", "row 1: target is '1.5'. Use a number from 0 to 1, or leave it out."),
        (
            {**PAIR, "target": 0.25},
            "preferences",
            "row 1: target = 0.25, so most votes are for rejected. Swap the answers and use 0.75.",
        ),
        (
            {**PAIR, "target": 0.5, "margin": 1.0},
            "preferences",
            "row 1: margin = 1 with target = 0.5, and a tie has no margin. Leave one of them out.",
        ),
        (
            {"chosen": "alpha", "rejected": "beta"},
            "preferences",
            "row 1: chosen and rejected share no beginning that could be their prompt. Add a prompt field.",
        ),
        (
            {"chosen": [USER, BOT], "rejected": "x"},
            "preferences",
            "row 1: of chosen and rejected, one is text and the other messages. Write both in one way.",
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: x"},
            "preferences",
            "row 1: chosen is empty after the prompt that both answers share. Leave the row out.",
        ),
        (
            {**ARENA, "winner": "m"},
            "preferences",
            "row 1: winner is 'm'. Allowed: model_a, model_b, tie, tie (bothbad), tie (both bad), bothbad, both_bad.",
        ),
        (
            {**ARENA, "response_b": None},
            "preferences",
            "row 1: an LMArena row needs conversation_a and conversation_b, or prompt, response_a and response_b.",
        ),
        (
            {**TASK, "data": {"prompt": "p", "left": "a", "right": "b"}},
            "preferences",
            "row 1: the two answers cannot be told among the fields left, prompt, right. "
            "Name them response1 and response2, answer1 and answer2, or text1 and text2.",
        ),
        (
            {**TASK, "annotations": {}},
            "preferences",
            "row 1: annotations is not a list. Export from Label Studio as JSON, not JSON-MIN.",
        ),
        (
            {**TASK, "annotations": [3]},
            "preferences",
            "row 1: an annotation has no list of results. Export from Label Studio as JSON.",
        ),
        ({**TASK, "data": "x"}, "preferences", "row 1: data is not an object."),
        ({**RECORD, "fields": "x"}, "preferences", "row 1: fields is not an object."),
        (
            {**RECORD, "responses": []},
            "preferences",
            "row 1: responses is not an object of questions. Export from Argilla with `dataset.records.to_json`.",
        ),
        (
            {**RECORD, "responses": {"a": [], "b": []}},
            "preferences",
            "row 1: which of the questions a, b compares the answers? Name it preference.",
        ),
        (
            {**RECORD, "responses": {"preference": "x"}},
            "preferences",
            "row 1: the responses to preference are not a list of {value, user_id}.",
        ),
        (
            {**RECORD, "responses": {"preference": [{"value": "great"}]}},
            "preferences",
            "row 1: the vote 'great' is not understood. "
            "Allowed: response1, response2, left, right, tie, equal, same, both, both_bad, both bad, neither, none.",
        ),
        (
            {**RECORD, "responses": {"preference": [{"value": ["response1"]}]}},
            "preferences",
            "row 1: a ranking does not rank both response1 and response2.",
        ),
        (
            {**RECORD, "responses": {}},
            "preferences",
            "the given rows holds no rows that can be used. 1 row left out: no annotator made a choice.",
        ),
        (
            {"prompt": "Hi"},
            "completions",
            "row 1 is {prompt} (text). Answers to learn from are needed: {prompt, completion}, {messages} or {text}.",
        ),
        (
            {"prompt": "Hi", "completion": "Ho"},
            "preferences",
            "row 1 is {prompt, completion} (text). Pairs are needed: {prompt, chosen, rejected} or {chosen, rejected}.",
        ),
        ({"text": "Hi"}, "prompts", "row 1 is {text} (text). Prompts are needed: {prompt}, or a format that holds prompts."),
        (
            PAIR,
            "completions",
            "row 1 is {prompt, chosen, rejected} (text). "
            "Answers to learn from are needed: {prompt, completion}, {messages} or {text}.",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_in_this_sentence(record, kind, sentence):
    assert refusal([record], kind) == sentence


def test_an_unknown_format_names_the_keys_found_and_the_formats_known():
    assert refusal([{"question": "x", "response": "y"}]) == (
        "row 1 has an unknown format (keys: question, response). Known are {conversations, chosen, rejected}, "
        "{prompt, chosen, rejected}, "
        "{chosen, rejected}, {model_a, model_b, winner}, {data, annotations}, {fields, responses}, {messages}, {conversations}, "
        "{instruction, output}, {prompt, completion}, {prompt}, {text}."
    )


def test_rows_that_are_no_rows_are_refused():
    assert refusal([]) == "the given rows holds no rows. Give it some."
    assert refusal([3]) == "row 1 is a int. A row is a mapping such as {'prompt': 'Hi'}, or a prompt."
    assert refusal("Hi") == "the data is one string, not rows. Put it into a list."
    assert refusal({"prompt": "Hi"}) == "the data is one mapping, not rows. Put it into a list."


@pytest.mark.parametrize(
    "second, called",
    [
        ({"prompt": "Hi", "completion": "x"}, "{prompt, completion} (text)"),
        ({"prompt": [USER]}, "{prompt} (messages)"),
        ({"text": "x"}, "{text} (text)"),
    ],
)
def test_mixed_formats_are_refused_with_both_lines(tmp_path, second, called):
    path = tmp_path / "d.jsonl"
    raw = '{"prompt": "Hi"}\n{"prompt": "Ho"}\n\n' + json.dumps(second)
    assert file_refusal(path, raw) == (
        f" line 4 is {called}, but {path} line 1 is {{prompt}} (text). A data set has one format: split it in two."
    )


def test_mixed_formats_are_refused_across_the_files_of_a_folder(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"prompt": "Hi"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "Hi"}\n')
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, "completions")
    assert str(caught.value).startswith(
        f"{tmp_path / 'b.jsonl'} line 1 is {{prompt}} (text), but {tmp_path / 'a.jsonl'} line 1 is {{text}}"
    )


@pytest.mark.parametrize(
    "name, raw, sentence",
    [
        ("d.jsonl", "", " holds no rows. Give it some."),
        ("d.jsonl", "\n \n", " holds no rows. Give it some."),
        ("d.csv", "prompt\n", " holds no rows. Give it some."),
        ("d.json", "[]", " holds no rows. Give it some."),
        (
            "d.jsonl",
            '{"prompt": "Hi"}\n{"prompt": ',
            " line 2 is not JSON (Expecting value, column 12). A JSONL file has one object a line.",
        ),
        ("d.jsonl", "{} x", " line 1 is not JSON (Extra data, column 4). A JSONL file has one object a line."),
        ("d.jsonl", '"Hi"', ' line 1 is the value \'Hi\', not an object. A row is an object such as {"prompt": "..."}.'),
        (
            "d.jsonl",
            '{"prompt": "a", "prompt": "b"}',
            " line 1 is not JSON that can be read (the key 'prompt' occurs twice in one object).",
        ),
        ("d.jsonl", '{"a":' + "[" * 100_000, " line 1 is not JSON that can be read (nested too deeply)."),
        (
            "d.jsonl",
            '{"prompt": "Hi", "n": ' + "9" * 5000 + "}",
            " line 1 is not JSON that can be read (a number has thousands of digits).",
        ),
        ("d.jsonl", b'{"prompt": "Hi"}\n{"prompt": "\xe4"}', " line 2 is not UTF-8 (0xE4 at byte 13). Save the file as UTF-8."),
        ("d.jsonl", '{"prompt": "Hi"}'.encode("utf-16"), " is UTF-16. Save it as UTF-8."),
        ("d.json", '[{"prompt": "Hi"},\n{"prompt"}]', " line 2 is not JSON (Expecting ':' delimiter, column 10), in element 2."),
        ("d.json", '[{"prompt": "Hi"}\n{"prompt": "x"}]', " line 2: the list is not closed, or a comma is missing or too many."),
        ("d.json", '[{"prompt": "Hi"}', " line 1: the list is not closed, or a comma is missing or too many."),
        ("d.json", '[,{"prompt": "Hi"}]', " line 1: the list is not closed, or a comma is missing or too many."),
        ("d.json", '[{"prompt": "Hi"}] x', " goes on after the end of its list (line 1)."),
        ("d.json", "[[1]]", ' element 1 is a list, not an object. A row is an object such as {"prompt": "..."}.'),
        ("d.csv", "prompt,n\nHi\n", " line 2 has 1 cells where the header names 2 columns."),
        ("d.csv", "prompt,prompt\nHi,x\n", " line 1: the column names 'prompt', 'prompt' are not all different and non-empty."),
        ("d.csv", 'prompt\n"Hi" x\n', " line 2 is not a readable table row: ',' expected after '\"'."),
        ("d.csv", 'prompt\n"Hi', " line 2 is not a readable table row: unexpected end of data."),
        ("d.csv", "prompt\n\n,\n", " line 3 has 2 cells where the header names 1 columns."),
        ("d.csv", 'prompt,id\n"",1\n', " line 2: prompt is empty. Give it text, or leave the row out."),
        ("d.txt", "Hi", " has the ending .txt. Readable are .jsonl, .ndjson, .json, .csv, .tsv, .parquet."),
        ("data", "Hi", " has the ending (none). Readable are .jsonl, .ndjson, .json, .csv, .tsv, .parquet."),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_this_sentence(tmp_path, name, raw, sentence):
    assert file_refusal(tmp_path / name, raw) == sentence


def missing(name: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(name, "prompts")
    return str(caught.value)


def test_a_missing_file_names_the_nearest_of_its_folder(tmp_path):
    for name in ("train.jsonl", "held-out.jsonl", ".hidden.jsonl", "notes.md"):
        (tmp_path / name).write_text("x")
    asked = tmp_path / "trian.jsonl"
    assert missing(asked) == f"no data at {asked}: the folder {tmp_path} has no trian.jsonl. Did you mean train.jsonl?"
    other = tmp_path / "zzz.csv"
    assert (
        missing(other) == f"no data at {other}: the folder {tmp_path} has no zzz.csv. Did you mean held-out.jsonl or train.jsonl?"
    )


def test_a_missing_folder_and_a_folder_without_data_are_named(tmp_path):
    asked = tmp_path / "no" / "d.jsonl"
    assert missing(asked) == (
        f"no data at {asked}: there is no folder {tmp_path / 'no'}. Name a file, a folder, or a hub data set as OWNER/NAME."
    )
    assert missing(tmp_path) == (
        f"the folder {tmp_path} holds no data file (it holds nothing). "
        "Put .jsonl, .ndjson, .json, .csv, .tsv, .parquet files there."
    )
    (tmp_path / "README.md").write_text("x")
    assert "(it holds README.md)" in missing(tmp_path)
