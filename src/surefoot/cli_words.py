"""The words of a command: which of them is its YAML file, which are settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surefoot.errors import ConfigError


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The YAML file, if the words name one, and the overrides: a word that follows `--name` is its value."""
    path: Path | None = None
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            overrides.append(word)
            if "=" not in word and rest and not rest[0].startswith("--"):
                overrides.append(rest.pop(0))
        elif path is None:
            path = Path(word)
        else:
            raise ConfigError(f"command line: two files, {path} and {word}. Name one; write settings as --SECTION.SETTING VALUE.")
    return path, overrides


def env_words(words: Sequence[str]) -> list[str]:
    """The words of `control` with its environment, a bare word that is no YAML file, written as the setting that it is."""
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            found.append(word)
            if "=" not in word and rest and not rest[0].startswith("--"):
                found.append(rest.pop(0))
        elif word.endswith((".yaml", ".yml")):
            found.append(word)
        else:
            found.append(f"--control.env={word}")
    return found
