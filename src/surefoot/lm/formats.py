"""What a record says: the formats people have, told apart by their keys, each turned into a row.

A key whose value is null counts as absent. Fields that a format does not use are kept as columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from surefoot.content import Content, Message, checked_content, checked_text, content_key, shared_messages
from surefoot.errors import DataError
from surefoot.lm.annotations import annotated_share
from surefoot.lm.rows import CompletionRow, PreferenceRow, PromptRow, Row

Record = dict[str, Any]
NO_PREFERENCE = "both answers bad"
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
WINNERS = {
    "model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": None, "tie (both bad)": None, "bothbad": None, "both_bad": None,
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A format: the keys that tell it, how it is called, and how a record becomes a row, or words why it gives none."""

    label: str
    needs: tuple[str, ...]
    convert: Callable[[Record, str], Row | str]


def detect(record: Record, where: str) -> Format:
    """The first format whose keys the record has, the most telling first.

    Raises:
        DataError: none; the line names the keys found and the formats known.
    """
    present = {name for name, value in record.items() if value is not None}
    for found in FORMATS:
        if present.issuperset(found.needs):
            return found
    keys = ", ".join(sorted(map(str, present))[:12]) or "none"
    known = ", ".join("{" + ", ".join(f.needs) + "}" for f in FORMATS)
    raise DataError(f"{where} has an unknown format (keys: {keys}). Known are {known}.")


def convert(found: Format, record: Record, where: str) -> Row | str:
    """The record as a row; or, as words, why it states no preference.

    Raises:
        DataError: a field is empty, of the wrong type, or contradicts another.
    """
    return found.convert(record, where)


def _rest(record: Record, *used: str) -> Record:
    return {name: value for name, value in record.items() if name not in used}


def _field(record: Mapping[str, Any], name: str, where: str) -> Content:
    return checked_content(record[name], f"{where}: {name}")


def _prompt_field(record: Mapping[str, Any], name: str, where: str) -> Content:
    prompt = _field(record, name, where)
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: {name} ends with a message of the assistant, so there is nothing to answer. End it with the user's."
        )
    return prompt


def _number(record: Record, name: str, where: str, low: float = -math.inf, high: float = math.inf) -> float | None:
    value = record.get(name)
    if value is None or value == "":  # an empty cell of a table
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        allowed = "a finite number" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise DataError(f"{where}: {name} is {str(value)[:40]!r}. Use {allowed}, or leave it out.")
    return number


def _messages(content: Content, role: str) -> list[Message]:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _prompts(record: Record, where: str) -> Row:
    prompt = _prompt_field(record, "prompt", where)
    return PromptRow(prompt, content_key(prompt), _rest(record, "prompt"))


def _text(record: Record, where: str) -> Row:
    text = checked_text(record["text"], f"{where}: text")
    return CompletionRow("", text, content_key(text), _rest(record, "text"))


def _completion(record: Record, where: str) -> Row:
    prompt, completion = _prompt_field(record, "prompt", where), _field(record, "completion", where)
    if isinstance(prompt, list) or isinstance(completion, list):
        prompt, completion = _messages(prompt, "user"), _messages(completion, "assistant")
    return CompletionRow(prompt, completion, content_key(prompt), _rest(record, "prompt", "completion"))


def _conversation(messages: list[Message], columns: Record, where: str) -> Row:
    """The assistant's last message answers all before it."""
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        last = f"ends with a message of the {messages[-1]['role']}" if len(messages) > 1 else "has one message"
        raise DataError(
            f"{where}: the conversation {last}. It needs at least a user's message and the assistant's answer to it, last."
        )
    return CompletionRow(messages[:-1], messages[-1:], content_key(messages[:-1]), columns)


def _chat(record: Record, where: str) -> Row:
    messages = _field(record, "messages", where)
    if isinstance(messages, str):
        raise DataError(f"{where}: messages is text. Use a list of {{role, content}}.")
    return _conversation(messages, _rest(record, "messages"), where)


def _turns(value: object, what: str) -> list[Message]:
    """ShareGPT's {from, value} as messages; one turn alone counts as a list of one."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{what} is not a list of turns {{from, value}}.")
    messages: list[Any] = []
    for number, turn in enumerate(turns, start=1):
        if isinstance(turn, dict) and "role" in turn and "content" in turn:
            messages.append(turn)
        elif not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise DataError(f"{what}, turn {number} is not {{from, value}}.")
        elif not isinstance(turn["from"], str) or turn["from"] not in SHAREGPT_ROLES:
            raise DataError(f"{what}, turn {number} is from {str(turn['from'])[:40]!r}. Allowed: {', '.join(SHAREGPT_ROLES)}.")
        else:
            messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]})
    checked = checked_content(messages, what)
    assert isinstance(checked, list)
    return checked


def _sharegpt(record: Record, where: str) -> Row:
    messages = _turns(record["conversations"], f"{where}: conversations")
    system = record.get("system")
    if isinstance(system, str) and system.strip():
        messages = [{"role": "system", "content": checked_text(system, f"{where}: system")}, *messages]
    return _conversation(messages, _rest(record, "conversations", "system"), where)


def _sharegpt_pair(record: Record, where: str) -> Row:
    prompt = _turns(record["conversations"], f"{where}: conversations")
    answers = [_turns(record[name], f"{where}: {name}") for name in ("chosen", "rejected")]
    return _pair(
        prompt, answers[0], answers[1], record, _rest(record, "conversations", "chosen", "rejected", "margin", "target"), where
    )


def _alpaca(record: Record, where: str) -> Row:
    instruction = checked_text(record["instruction"], f"{where}: instruction")
    given = record.get("input")
    if isinstance(given, str) and given.strip():
        instruction += "\n\n" + checked_text(given, f"{where}: input")
    elif given not in (None, ""):
        raise DataError(f"{where}: input is not text. Use a string, or leave it out.")
    output = checked_text(record["output"], f"{where}: output")
    messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": output}]
    return _conversation(messages, _rest(record, "instruction", "input", "output"), where)


def _preference(record: Record, where: str) -> Row:
    answers = [_field(record, name, where) for name in ("chosen", "rejected")]
    columns = _rest(record, "prompt", "chosen", "rejected", "margin", "target")
    prompt = _prompt_field(record, "prompt", where)
    asked = _messages(prompt, "user")
    if all(
        isinstance(answer, list) and _repeats(asked, answer) for answer in answers
    ):  # whole conversations: the prompt is in them
        return _implicit(answers[0], answers[1], record, columns, where)
    return _pair(prompt, answers[0], answers[1], record, columns, where)


def _repeats(asked: list[Message], answer: list[Message]) -> bool:
    """Whether an answer repeats the prompt at its start, perhaps after a system message."""
    start = answer[1:] if answer[0]["role"] == "system" and asked[0]["role"] != "system" else answer
    return len(start) > len(asked) and start[: len(asked)] == asked


def _implicit_pair(record: Record, where: str) -> Row:
    answers = [_field(record, name, where) for name in ("chosen", "rejected")]
    return _implicit(answers[0], answers[1], record, _rest(record, "prompt", "chosen", "rejected", "margin", "target"), where)


def _implicit(chosen: Content, rejected: Content, record: Record, columns: Record, where: str) -> Row:
    """The shared beginning of both answers is the prompt."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = shared_text(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        cut = min(shared_messages(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        while cut and chosen[cut - 1]["role"] == "assistant":  # a prompt is something to answer
            cut -= 1
    else:
        raise DataError(f"{where}: of chosen and rejected, one is text and the other messages. Write both in one way.")
    if cut == 0:
        raise DataError(f"{where}: chosen and rejected share no beginning that could be their prompt. Add a prompt field.")
    return _pair(chosen[:cut], chosen[cut:], rejected[cut:], record, columns, where)


def shared_text(chosen: str, rejected: str) -> int:
    """Where the implicit prompt of two texts ends, in characters; 0 where there is none.

    After the last "\\n\\nAssistant:" that both share; otherwise at the last white space that both share, so that no word is cut:
    a line break stays with the prompt, a space goes to the answers, as tokenizers like it. Something is left of both answers.
    """
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    marker = "\n\nAssistant:"
    at = chosen.rfind(marker, 0, shared)
    if at > 0:
        return at + len(marker)
    while shared:
        last = max((i for i in range(shared - 1, -1, -1) if chosen[i].isspace()), default=-1)
        if last < 0:
            return 0
        cut = last + 1 if chosen[last] == "\n" else last
        if chosen[:cut].strip() and chosen[cut:].strip() and rejected[cut:].strip():
            return cut
        shared = last
    return 0


def _pair(prompt: Content, chosen: Content, rejected: Content, record: Record, columns: Record, where: str) -> Row:
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise DataError(f"{where}: of chosen and rejected, one is text and the other messages. Write both in one way.")
    if isinstance(prompt, list) or isinstance(chosen, list):
        prompt, chosen, rejected = _messages(prompt, "user"), _messages(chosen, "assistant"), _messages(rejected, "assistant")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not plain_enough(answer):
            raise DataError(f"{where}: {name} is empty after the prompt that both answers share. Leave the row out.")
    margin, target = _number(record, "margin", where), _number(record, "target", where, low=0.0, high=1.0)
    if target == 0.5 and margin:
        raise DataError(f"{where}: margin = {margin:g} with target = 0.5, and a tie has no margin. Leave one of them out.")
    if target is not None and target < 0.5:
        raise DataError(f"{where}: target = {target:g}, so most votes are for rejected. Swap the answers and use {1 - target:g}.")
    if target == 0.5:
        margin = None
    return PreferenceRow(prompt, chosen, rejected, margin, None if target == 1.0 else target, content_key(prompt), columns)


def plain_enough(answer: Content) -> bool:
    return bool(answer.strip() if isinstance(answer, str) else answer)


def _judged(prompt: Content | None, first: Content, second: Content, share: float, columns: Record, where: str) -> Row:
    """A pair whose result is the share of votes for the first answer."""
    chosen, rejected = (second, first) if share < 0.5 else (first, second)
    result: Record = {"target": max(share, 1.0 - share)}
    return (
        _implicit(chosen, rejected, result, columns, where)
        if prompt is None
        else _pair(prompt, chosen, rejected, result, columns, where)
    )


def _lmarena(record: Record, where: str) -> Row | str:
    winner = record["winner"]
    if not isinstance(winner, str) or winner not in WINNERS:
        raise DataError(f"{where}: winner is {str(winner)[:40]!r}. Allowed: {', '.join(WINNERS)}.")
    share = WINNERS[winner]
    if share is None:
        return NO_PREFERENCE
    if record.get("conversation_a") is not None and record.get("conversation_b") is not None:
        used: tuple[str, ...] = ("conversation_a", "conversation_b")
        prompt = None
    elif all(record.get(name) is not None for name in ("prompt", "response_a", "response_b")):
        used = ("prompt", "response_a", "response_b")
        prompt = _prompt_field(record, "prompt", where)
    else:
        raise DataError(f"{where}: an LMArena row needs conversation_a and conversation_b, or prompt, response_a and response_b.")
    first, second = (_field(record, name, where) for name in used[-2:])
    return _judged(prompt, first, second, share, _rest(record, *used), where)


def _annotated(record: Record, where: str) -> Row | str:
    """A task of Label Studio or a record of Argilla, with the votes of its annotators."""
    found = annotated_share(record, where)
    if isinstance(found, str):
        return found
    contents, share, columns = found
    *asked, first, second = (_field(contents, name, where) for name in contents)
    prompt = asked[0] if asked else None
    if isinstance(prompt, list):
        prompt = _prompt_field(contents, next(iter(contents)), where)
    return _judged(prompt, first, second, share, columns, where)


FORMATS = (
    Format("ShareGPT pairs", ("conversations", "chosen", "rejected"), _sharegpt_pair),
    Format("{prompt, chosen, rejected}", ("prompt", "chosen", "rejected"), _preference),
    Format("{chosen, rejected} with an implicit prompt", ("chosen", "rejected"), _implicit_pair),
    Format("LMArena", ("model_a", "model_b", "winner"), _lmarena),
    Format("Label Studio Pairwise", ("data", "annotations"), _annotated),
    Format("Argilla", ("fields", "responses"), _annotated),
    Format("{messages}", ("messages",), _chat),
    Format("ShareGPT", ("conversations",), _sharegpt),
    Format("Alpaca", ("instruction", "output"), _alpaca),
    Format("{prompt, completion}", ("prompt", "completion"), _completion),
    Format("{prompt}", ("prompt",), _prompts),
    Format("{text}", ("text",), _text),
)
