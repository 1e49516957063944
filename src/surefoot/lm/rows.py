"""The rows of a data set, whatever file they came from: a prompt; a prompt and its answer; a prompt and two answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from surefoot.content import Content

Kind = Literal["prompts", "completions", "preferences"]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt to answer. `key` is its stable identity; `columns` are the fields left over: rewards get them."""

    prompt: Content
    key: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """An answer to learn by heart. A bare text has the prompt "", and the key of the text."""

    prompt: Content
    completion: Content
    key: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """Two answers to one prompt, of which `chosen` is better, by `margin`, according to the share `target` of the votes.

    None: no margin is stated; all votes agree. Prompt and answers are all text or all messages.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    margin: float | None
    target: float | None
    key: str
    columns: Mapping[str, Any] = field(default_factory=dict)


Row = PromptRow | CompletionRow | PreferenceRow
