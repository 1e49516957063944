"""What the runs of the Python face share: settings by dotted names, and steps inside a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from surefoot.config import Config
from surefoot.config_file import load_config
from surefoot.runs import RunFolder

Settings = Mapping[str, Any]


def configuration(verb: str, settings: Settings, *, preset: str | None = None) -> Config:
    """A Config of `verb` from dotted names. Raises ConfigError as the command line does."""
    words = [f"--{key}={json.dumps(str(value) if isinstance(value, Path) else value)}" for key, value in settings.items()]
    return load_config(None, words, verb=verb, preset=preset)


def stepped(
    out: str | Path | None,
    verb: str,
    cfg: Config,
    inputs: Callable[[], Mapping[str, str]],
    steps: Callable[[RunFolder | None], Iterator[Any]],
) -> Iterator[Any]:
    """The stage's steps, inside its run folder where there is one; the folder is closed when they end or are abandoned."""
    if out is None:
        yield from steps(None)
        return
    with RunFolder.open(Path(out), verb=verb, cfg=cfg, resume="auto", extra=inputs()) as folder:
        yield from steps(folder)
        folder.finish()
