"""The words of a command: which of them is its YAML file, which are settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from surefoot.errors import ConfigError


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The YAML file, if the words name one, and the overrides."""
    path: Path | None = None
    overrides: list[str] = []
    for word, *value in _settings_and_words(words):
        if word.startswith("--"):
            overrides += [word, *value]
        elif path is None:
            path = Path(word)
        else:
            raise ConfigError(f"command line: two files, {path} and {word}. Name one; write settings as --SECTION.SETTING VALUE.")
    return path, overrides


def env_words(words: Sequence[str]) -> list[str]:
    """The words of `control` with its environment, a bare word that is no YAML file, written as the setting that it is."""
    found: list[str] = []
    for word, *value in _settings_and_words(words):
        is_environment = not word.startswith("--") and not word.endswith((".yaml", ".yml"))
        found += [f"--control.env={word}"] if is_environment else [word, *value]
    return found


def _settings_and_words(words: Sequence[str]) -> Iterator[list[str]]:
    """Each setting with its value, where that is a word of its own (what follows `--name`), and each other word alone."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        takes_next = word.startswith("--") and "=" not in word and rest and not rest[0].startswith("--")
        yield [word, rest.pop(0)] if takes_next else [word]
