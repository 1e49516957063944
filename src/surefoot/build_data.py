"""Rows to objects: data sets by name or from memory, each as training, evaluation and PPO want them, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from surefoot.config import Config
from surefoot.errors import ConfigError
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PromptSet, prompt_set
from surefoot.lm.data import AnyRow, Dataset, Kind, PreferenceRow, never_trained_on, read_rows, rows_from, split_by_prompt
from surefoot.stages.votes import read_votes

Say = Callable[[str], None]
Rows = str | Path | Iterable[Mapping[str, Any]] | Iterable[str]  # a file, a folder or a hub name, or rows already in memory


def dataset(rows: Rows | None, kind: Kind, setting: str, say: Say) -> Dataset[Any]:
    """Rows of one kind from a file, a hub name or memory; says which format was detected and shows two."""
    if rows is None:
        raise ConfigError(f"{setting} is not set. Name a file, a folder or a hub data set (docs/data.md lists the formats).")
    data = read_rows(rows, kind) if isinstance(rows, (str, Path)) else rows_from(rows, kind)
    say(data.description)
    for line in data.preview(2).splitlines():
        say(f"  {line}")
    return data


def divided(
    cfg: Config, rows: Sequence[AnyRow], given: Rows | None, kind: Literal["completions", "preferences"], say: Say
) -> tuple[Sequence[AnyRow], Sequence[AnyRow]]:
    """(train, validation): a validation set that is given less what was trained on, or a share of the prompts."""
    held_out = given if given is not None else cfg.data.validation
    if held_out is None:
        return split_by_prompt(rows, cfg.data.validation_share, cfg.seed)
    left, said = never_trained_on(dataset(held_out, kind, "data.validation", say).rows, rows)
    if said:
        say(said)
    return rows, left


def preferences(cfg: Config, train: Rows | None, say: Say) -> Sequence[PreferenceRow]:
    """Preferences from memory, from reward.store, or from data.train."""
    if train is None and cfg.reward.store is not None:
        votes = read_votes(Path(cfg.reward.store))
        say(votes.description)
        return rows_from(votes.rows, "preferences").rows
    return dataset(train if train is not None else cfg.data.train, "preferences", "data.train", say).rows


def prompts_of(cfg: Config, backbone: Backbone, rows: Rows | None, setting: str, say: Say) -> PromptSet:
    """Prompts as token rows; says how many passed the context and what became of them."""
    data = dataset(rows, "prompts", setting, say)
    chosen = prompt_set(data.rows, backbone.codec, cfg.rollout.response_length, cfg.data.long_prompts)
    if chosen.num_long:
        say(
            f"prompts: {len(chosen)} kept"
            + and_too_long(chosen.num_long, "dropped" if cfg.data.long_prompts == "drop" else "cut on the left")
        )
    return chosen


def and_too_long(count: int, what: str) -> str:
    return f"; {count} passed the context and were {what}" if count else ""
