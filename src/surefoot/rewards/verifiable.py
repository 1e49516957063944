"""Rewards that can be checked: 1 where an answer holds what is asked, 0 where it does not, None where nothing was asked.

Each is a function `reward(prompts, completions, **columns)` like any other. In settings they are written KIND:ARGUMENT:

regex:PATTERN        the answer matches the regular expression somewhere (Python's `re`)
number:COLUMN        the last number of the answer equals that of the prompt's COLUMN, exactly, as decimals: 1,000 is 1000.0
json_schema:FILE     the answer, without a code fence, is JSON that the schema in FILE allows
length:MIN-MAX       the answer has MIN to MAX words; either may be left out
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError, RewardError

Check = Callable[..., list[float | None]]

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?"  # a sign; in 10-5 it is a minus between two numbers
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?",
    re.ASCII,
)
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_SPAN = re.compile(r"(\d*)-(\d*)")


def verifiable(source: str) -> Check | None:
    """The check that `source` names, or None where it names none of these kinds.

    Raises: ConfigError for an argument that its kind cannot use.
    """
    kind, colon, argument = source.partition(":")
    if kind not in KINDS or not colon:
        return None
    example, made = KINDS[kind]
    if not argument:
        raise ConfigError(f"reward_source: {source!r} names nothing to check. Write {kind}:{example}.")
    return made(argument)


def matching(pattern: str) -> Check:
    """1 where `pattern` is found anywhere in the answer."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"reward_source: {pattern!r} is no regular expression: {error}. Mend the pattern.") from error

    def regex(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        return [float(compiled.search(answer) is not None) for answer in completions]

    return regex


def same_number(column: str) -> Check:
    """1 where the last number of the answer equals that of the prompt's `column`; None for a prompt whose column is empty."""

    def number(prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        if column not in columns:
            known = ", ".join(sorted(columns)) or "none"
            raise RewardError(f"number:{column}: the prompts have no column {column!r}. Their columns: {known}.")
        return [_agrees(answer, truth, column) for answer, truth in zip(completions, columns[column], strict=True)]

    return number


def _agrees(answer: str, truth: Any, column: str) -> float | None:
    if truth is None or truth == "":
        return None
    expected = last_number(str(truth))
    if expected is None:
        raise RewardError(f"number:{column}: {str(truth)[:60]!r} holds no number. Mend the data, or leave the field empty.")
    return float(last_number(answer) == expected)


def last_number(text: str) -> Decimal | None:
    """The last number in `text`, its commas between thousands removed: exact, so that 0.1 + 0.2 would be 0.3."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def valid_json(file: str) -> Check:
    """1 where the answer is JSON that the schema in `file` allows (JSON Schema by the library jsonschema)."""
    try:
        from jsonschema import validators
        from jsonschema.exceptions import SchemaError
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import EMPTY_REGISTRY
    except ImportError as error:
        raise ConfigError(
            f'json_schema:{file} needs the extra verify: pip install "surefoot[verify]" brings jsonschema.'
        ) from error
    try:
        schema = json.loads(Path(file).read_text(encoding="utf-8"))
        kind = validators.validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise ConfigError(f"json_schema:{file}: the file cannot be read ({error.strerror}). Name a JSON schema.") from error
    except (ValueError, TypeError, AttributeError, RecursionError, SchemaError) as error:
        said = error.message if isinstance(error, SchemaError) else error
        raise ConfigError(f"json_schema:{file} is no JSON schema: {said}. Mend the file.") from error
    validator = kind(schema, registry=EMPTY_REGISTRY)  # jsonschema's own would fetch what a $ref names

    def json_schema(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        try:
            return [float(_is_valid(validator, answer)) for answer in completions]
        except Unresolvable as error:
            raise RewardError(
                f"json_schema:{file}: the reference {error.ref!r} is not in the file, and nothing is fetched. Copy it into $defs."
            ) from error

    return json_schema


def _is_valid(validator: Any, answer: str) -> bool:
    fenced = _FENCE.match(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer, parse_constant=_refuse)  # NaN and Infinity are no JSON
    except (ValueError, RecursionError):
        return False
    return bool(validator.is_valid(value))


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def length_within(span: str) -> Check:
    """1 where the answer has between the two numbers of words of `span`, both included: 5-20, 5- or -20."""
    match = _SPAN.fullmatch(span)
    low, high = (int(match[1] or 0), int(match[2]) if match[2] else None) if match else (0, None)
    if match is None or span == "-" or (high is not None and low > high):
        raise ConfigError(f"reward_source: length:{span} is no range of words. Write length:5-20, length:5- or length:-20.")

    def length(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        counts = [len(answer.split()) for answer in completions]
        return [float(low <= count and (high is None or count <= high)) for count in counts]

    return length


KINDS: dict[str, tuple[str, Callable[[str], Check]]] = {
    "regex": ("PATTERN", matching),
    "number": ("COLUMN", same_number),
    "json_schema": ("FILE", valid_json),
    "length": ("MIN-MAX", length_within),
}
