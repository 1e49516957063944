"""How a verb is started: its settings, its run folder, its stage; or what a dry run prints of them.

Parts are imported inside functions, so that `--help` answers without torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from surefoot.cli_words import split_words

if TYPE_CHECKING:
    from surefoot.config import Config

STAGES = {
    "demo": "surefoot.stages.demo",
    "sft": "surefoot.stages.sft",
    "pairs": "surefoot.stages.pairs",
    "reward": "surefoot.stages.reward",
    "ppo": "surefoot.stages.ppo_lm",
    "control": "surefoot.stages.ppo_control",
    "evaluate": "surefoot.stages.evaluate",
    "rounds": "surefoot.stages.rounds",
    "compare": "surefoot.stages.compare",
    "overoptimize": "surefoot.stages.overoptimize",
}

CHAINS = ("demo", "rounds", "overoptimize")  # write their reports themselves

OPTIONS = ("out", "resume", "dry-run", "help")
VERB_OPTIONS = {
    "demo": ("preset",),
    "control": ("record", "seeds"),
    "rounds": ("preset", "wait"),
    "overoptimize": ("preset",),
    "compare": ("people", "store", "wait"),
}


def load(verb: str, path: Path | None, overrides: Sequence[str], preset: str | None = None) -> Config:
    from surefoot.config_file import load_config

    options = (*OPTIONS, *VERB_OPTIONS.get(verb, ()))
    return load_config(path, overrides, verb=verb, preset=preset, options=options)


def train(
    verb: str,
    words: Sequence[str] | None,
    out: Path | None,
    resume: Literal["auto", "never"],
    dry_run: bool,
    preset: str | None = None,
    **given: Any,
) -> None:
    """What every training verb does: settings, run folder, stage."""
    cfg, path = settled(verb, words or [], out, preset)
    if dry_run:
        describe(cfg, verb, path)
    else:
        start(cfg, lambda: run_stage(verb, cfg, path, resume, **given))


def settled(verb: str, words: Sequence[str], out: Path | None, preset: str | None) -> tuple[Config, Path]:
    """The settings that the words give, and the run folder."""
    path, overrides = split_words(words)
    return load(verb, path, overrides, preset), out if out is not None else Path("runs") / verb


def describe(cfg: Config, verb: str, path: Path, seeds: int = 1) -> None:
    from surefoot import dry_run

    typer.echo(dry_run.describe(cfg, verb, path, seeds))


def start(cfg: Config, body: Callable[[], None]) -> None:
    from surefoot.launch import single

    single(cfg, body)


def run_seeds(cfg: Config, seeds: int, path: Path, resume: Literal["auto", "never"]) -> None:
    from surefoot.progress import make_progress

    progress = make_progress()
    try:
        importlib.import_module("surefoot.stages.control_seeds").run(cfg, seeds, path, resume, progress)
    finally:
        progress.stop()


def run_stage(verb: str, cfg: Config, path: Path, resume: Literal["auto", "never"], **given: Any) -> None:
    from surefoot.dry_run import memory_line
    from surefoot.errors import too_long
    from surefoot.launch import usable_cores
    from surefoot.progress import make_progress
    from surefoot.runs import RunFolder

    stage = importlib.import_module(STAGES[verb])
    progress = make_progress()
    with RunFolder.open(path, verb=verb, cfg=cfg, resume=resume) as folder:
        if folder.is_done:
            progress.say(f"{path} is done; nothing is left to do. For another run, name another folder with --out.")
            if not (path / "report.html").exists():  # a kill came between the end of the run and its report
                progress.say(_reported(path))
            for sentence in importlib.import_module("surefoot.stages.votes").moved_on(path):
                progress.say(sentence)
            return
        progress.say(f"{verb}: run folder {path}; threads: {os.environ['OMP_NUM_THREADS']} of {usable_cores()} cores")
        try:
            progress.say(memory_line(cfg, verb))
            stage.run(cfg, folder, progress, **given)
        except OSError as problem:
            if (refusal := too_long(problem)) is not None:
                raise refusal from problem
            raise
        finally:
            progress.stop()
        if verb not in CHAINS:
            progress.say(_reported(path))
        progress.say(f"{verb}: done, {path}")


def _reported(path: Path) -> str:
    """Writes the run's report.html and says where it is. Plotly is imported then and no earlier."""
    return f"report: {importlib.import_module('surefoot.diagnostics.report').write_report(path)}"
