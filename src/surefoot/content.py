"""What a prompt and an answer are, for every part: plain text, or a list of messages. Needs no torch.

`preferences` and `lm` may not import each other, and both must agree to the byte on what text is valid and what its key is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from surefoot.errors import DataError

Message = dict[str, str]
Content = str | list[Message]
ROLES = ("system", "user", "assistant", "tool")


def checked_text(value: object, what: str) -> str:
    """`value` if it is text that says something and can be written as UTF-8. `what` names it: "data.jsonl line 3: prompt".

    Raises:
        DataError: not a string, empty, only white space, or half of a surrogate pair (which no tokenizer and no file can hold).
    """
    if not isinstance(value, str):
        raise DataError(f"{what} is {_kind(value)}, not text. Give a string.")
    if not value.strip():
        raise DataError(f"{what} is empty. Give it text, or leave the row out.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"U+{ord(value[error.start]):04X}"
            raise DataError(
                f"{what} holds half a surrogate pair ({half}, character {error.start}). Write the character whole."
            ) from None
    return value


def checked_content(value: object, what: str) -> Content:
    """`value` as text or as messages that hold `role` and `content` alone.

    Raises:
        DataError: neither; or an empty list, an unknown role, a message whose content is not text, a tool call.
    """
    if not isinstance(value, list):
        return checked_text(value, what)
    if not value:
        raise DataError(f"{what} is an empty list. Give at least one message {{role, content}}, or a string.")
    return [_checked_message(message, f"{what}, message {number}") for number, message in enumerate(value, start=1)]


def _checked_message(value: object, what: str) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise DataError(f"{what} is {_kind(value)}, not a message. A message is {{role, content}}.")
    role = value["role"]
    if role not in ROLES:
        raise DataError(f"{what} has the role {role!r}. Allowed: {', '.join(ROLES)}.")
    if value.get("tool_calls"):
        raise DataError(f"{what} calls a tool, which is not supported. Write the call as text, or leave the row out.")
    return {"role": role, "content": checked_text(_joined_parts(value["content"]), f"{what}, content")}


def _joined_parts(content: object) -> object:
    """Content given as parts, [{"type": "text", "text": ...}, ...], as one string where all parts are text."""
    if isinstance(content, list) and content and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    return content


def _kind(value: object) -> str:
    """How an error calls a value: the JSON name of its type, and the keys of an object."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}" if abs(value) < 1e15 or value != value else "a number"
        case str():
            return "text"
        case dict():
            return "an object with " + (", ".join(sorted(map(str, value))[:8]) or "no keys")
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


def canonical(content: Content) -> str:
    """One JSON text for equal content, whoever wrote it: keys in a fixed order, no spaces, characters as they are."""
    plain = content if isinstance(content, str) else [{"role": m["role"], "content": m["content"]} for m in content]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def sha256_of(*parts: str) -> str:
    """Hexadecimal sha256 of texts, each with its length in front, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8")
        digest.update(str(len(raw)).encode() + b":" + raw)
    return digest.hexdigest()


def content_hash(content: Content) -> str:
    """Hexadecimal sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(content).encode("utf-8")).hexdigest()


def content_key(content: Content) -> str:
    """A prompt's stable identity: the first 16 digits of its hash."""
    return content_hash(content)[:16]


def plain_text(content: Content) -> str:
    """Content for a person to read: text as it is, messages as "role: text" paragraphs."""
    if isinstance(content, str):
        return content
    return "\n".join(f"{message['role']}: {message['content']}" for message in content)


def shared_messages(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many leading messages two conversations share."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
