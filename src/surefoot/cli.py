"""The verbs. Each turns words into a configuration and a run folder and hands both to its stage.

Starting a verb is `cli_run.py`. Parts are imported inside functions, so that `--help` answers without torch.
"""

from __future__ import annotations

import importlib
import select
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from surefoot import __version__, cli_run, cli_store
from surefoot.cli_words import env_words, split_words
from surefoot.errors import ConfigError, DataError, Interrupted, SurefootError, too_long

USAGE_STATUS = 2
TYPER_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt

SETTINGS_HELP = (
    "A YAML file, and settings that win over it, each with its section: --ppo.cliprange 0.1 or --ppo.cliprange=0.1. "
    "--dry-run prints every setting of the verb with its meaning."
)

app = typer.Typer(
    name="surefoot",
    epilog="Exit status: 0 done, 1 a bug, 2 bad configuration or data, 3 an alarm, 75 interrupted: run it again to go on.",
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback
)

FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}

Words = Annotated[
    list[str] | None, typer.Argument(metavar="RUN.yaml --SECTION.SETTING VALUE", help=SETTINGS_HELP, show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/VERB")]
Resume = Annotated[
    Literal["auto", "never"], typer.Option(help="auto: go on from the newest checkpoint; never: refuse a used folder.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print resolved settings, sizes and memory plan. Writes nothing.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until people have voted, in place of stopping with status 75.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"surefoot {__version__}")
        raise typer.Exit


@app.callback()
def surefoot(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Language models from human preferences with PPO: small, sure steps."""


@app.command(context_settings=FORWARD)
def demo(
    words: Words = None,
    preset: Annotated[
        Literal["default", "tiny"], typer.Option(help="tiny: under a minute, on a model made on the spot.")
    ] = "default",
    out: Out = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> None:
    """The whole loop on a real model and human ratings: SFT, reward model, PPO, report."""
    cli_run.train("demo", words, out, resume, dry_run, preset=preset)


@app.command(context_settings=FORWARD)
def sft(words: Words = None, out: Out = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """Supervised fine-tuning on completions, conversations or plain text."""
    cli_run.train("sft", words, out, resume, dry_run)


@app.command(context_settings=FORWARD)
def pairs(words: Words = None, out: Out = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """Two or more answers to each prompt, into a preference store."""
    cli_run.train("pairs", words, out, resume, dry_run)


@app.command(context_settings=FORWARD)
def reward(words: Words = None, out: Out = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """A reward model from preferences."""
    cli_run.train("reward", words, out, resume, dry_run)


@app.command(context_settings=FORWARD)
def ppo(words: Words = None, out: Out = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """PPO-Clip, PPO-Penalty or plain policy gradient, tethered to the SFT model."""
    cli_run.train("ppo", words, out, resume, dry_run)


@app.command(context_settings=FORWARD)
def control(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="ENV RUN.yaml --SECTION.SETTING VALUE", help=f"A Gymnasium environment. {SETTINGS_HELP}"),
    ] = None,
    out: Out = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    record: Annotated[bool, typer.Option("--record", help="episode.gif at the end of the run.")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Train this many seeds, a run folder each, and tell mean and interval.")
    ] = None,
) -> None:
    """The same PPO in a Gymnasium environment: surefoot control CartPole-v1."""
    named = env_words(words or [])
    cfg, path = cli_run.settled("control", [*named, *(["--control.record=true"] if record else [])], out, preset="default")
    if dry_run:
        cli_run.describe(cfg, "control", path, seeds or 1)
    elif seeds is None:
        cli_run.start(cfg, lambda: cli_run.run_stage("control", cfg, path, resume))
    else:
        cli_run.start(cfg, lambda: cli_run.run_seeds(cfg, seeds, path, resume))


@app.command(context_settings=FORWARD)
def evaluate(words: Words = None, out: Out = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """Win rate, KL, length and diversity on held-out prompts, by judges that were never trained on."""
    cli_run.train("evaluate", words, out, resume, dry_run)


@app.command(context_settings=FORWARD)
def rounds(
    words: Words = None,
    preset: Annotated[
        Literal["default", "tiny"] | None,
        typer.Option(help="default: the demo's film reviews and simulated raters; tiny: a minute, on a model made on the spot."),
    ] = None,
    wait: Wait = False,
    out: Out = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> None:
    """Rounds: the policy's answers are judged, the reward model learns from all votes so far, PPO goes on."""
    cli_run.train("rounds", words, out, resume, dry_run, preset=preset, wait=wait)


@app.command(context_settings=FORWARD)
def overoptimize(
    words: Words = None,
    preset: Annotated[
        Literal["default", "tiny"] | None,
        typer.Option(help="default: the demo's film reviews; tiny: a minute, on a model made on the spot."),
    ] = None,
    out: Out = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> None:
    """How far a reward model can be optimised before judges fall: PPO and best-of-n over sqrt(KL), laws fitted, where to stop."""
    cli_run.train("overoptimize", words, out, resume, dry_run, preset=preset)


@app.command(context_settings=FORWARD)
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run folder, a model folder, or a hub name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to compare it with.")],
    words: Words = None,
    people: Annotated[
        bool, typer.Option("--people", help="Queue the pairs for people, blind; run it again once they voted.")
    ] = False,
    store: Annotated[
        Path | None, typer.Option(help="Preference store of --people.", show_default="preferences.db in the run folder")
    ] = None,
    wait: Wait = False,
    out: Out = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> None:
    """Two models' answers to held-out prompts, by named judges or by people: win rate with interval."""
    if (store is not None or wait) and not people:
        raise ConfigError("command line: --store and --wait have no effect without --people.")
    cfg, path = cli_run.settled("compare", words or [], out, None)
    cfg = importlib.import_module("surefoot.stages.names").between(cfg, a, b)
    if dry_run:
        cli_run.describe(cfg, "compare", path)
    else:
        cli_run.start(cfg, lambda: cli_run.run_stage("compare", cfg, path, resume, people=people, store=store, wait=wait))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    other: Annotated[Path | None, typer.Argument(metavar="OTHER", help="A second one, to see both side by side.")] = None,
) -> None:
    """One self-contained report.html for a run folder, or a page of two runs with their curves on one axis."""
    for folder in (run,) if other is None else (run, other):
        if not folder.is_dir():
            raise DataError(f"no run folder {folder}. Name the folder that a verb wrote, for example runs/demo.")
    if other is not None:
        typer.echo(importlib.import_module("surefoot.diagnostics.side_by_side").write_comparison(run, other))
        return
    told = importlib.import_module("surefoot.stages.votes").moved_on(run)
    typer.echo(importlib.import_module("surefoot.diagnostics.report").write_report(run, notes=told))
    for sentence in told:
        typer.echo(sentence, err=True)


@app.command(context_settings=FORWARD)
def chat(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, a model folder, or a hub name.")],
    words: Words = None,
) -> None:
    """Talk to a model."""
    path, overrides = split_words(words or [])
    if any(word.partition("=")[0] == "--model.name" for word in overrides):
        raise ConfigError("command line: --model.name is given, but chat takes the model as its first word.")
    cfg = cli_run.load("chat", path, overrides)
    importlib.import_module("surefoot.stages.chat").run(model, cfg)


@app.command()
def doctor(
    up_to: Annotated[
        Literal["arithmetic", "bandit", "echo", "demo"],
        typer.Option(
            help="The last rung to climb. arithmetic: core against numbers worked out by hand. bandit: PPO on two arms. echo: a "
            "tiny language model learns to say one token (seconds). demo: the tiny demo (a minute)."
        ),
    ] = "echo",
) -> None:
    """Is everything in place, and does it work here? Checks, then a ladder of known problems up to the first that fails."""
    from surefoot.doctor import examine

    raise typer.Exit(examine(typer.echo, up_to))


for verb in (cli_store.label, cli_store.import_, cli_store.export):
    app.command(verb.__name__.rstrip("_"))(verb)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status. What a user can mend is one line on stderr; a bug leaves as an exception."""
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]  # whichever click typer brings with it
    try:
        status = app(list(arguments) or ["--help"], prog_name="surefoot", standalone_mode=False)
    except SurefootError as problem:
        _complain(type(problem).__name__, str(problem))
        return problem.exit_status
    except OSError as problem:
        if (refusal := too_long(problem)) is None:
            raise
        _complain(type(refusal).__name__, str(refusal))
        return refusal.exit_status
    except KeyboardInterrupt:
        status = TYPER_INTERRUPTED
    except typer.Abort as stop:  # what typer makes of any EOFError, one of a dead worker process too
        raise stop.__cause__ or stop  # noqa: B904 - with the cause that it has
    except usage_error as problem:
        said = str(problem.format_message())  # type: ignore[attr-defined]  # with the option's name, which str() leaves out
        _complain("UsageError", f"{said.rstrip('.')}{'' if said.endswith('?') else '.'} See surefoot --help.")
        return USAGE_STATUS
    except SystemExit as ended:  # what rich makes of `surefoot ... | head`, and typer of any EPIPE
        frame, _ = list(traceback.walk_tb(ended.__traceback__))[-1]
        if isinstance(ended.__context__, BrokenPipeError) and frame.f_globals["__name__"] == "typer.core" and not _reader_left():
            raise ended.__context__  # noqa: B904
        raise
    if status == TYPER_INTERRUPTED:
        _complain("Interrupted", "stopped by the keyboard. Run the same command again to go on from the last checkpoint.")
        return Interrupted.exit_status
    return status if isinstance(status, int) else 0


def _reader_left() -> bool:
    """Whether nobody reads standard output or error any more: `surefoot ... | head`."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in outputs.poll(0))


def _complain(name: str, message: str) -> None:
    for line in message.splitlines() or [""]:
        print(f"{name}: {line}", file=sys.stderr)
