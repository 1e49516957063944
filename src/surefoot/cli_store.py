"""The verbs of preference stores: the page where people choose, and files in and out.

Parts are imported inside functions, so that `--help` answers without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EXPORTS = {  # by format, the ending of its files
    "trl": "jsonl",
    "parquet": "parquet",
    "label-studio": "json",
    "argilla": "json",
    "votes": "jsonl",
}


def label(
    store: Annotated[Path, typer.Option(help="Preference store (SQLite), as surefoot pairs writes it.")] = Path(
        "runs/pairs/preferences.db"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Where to listen. Any but this machine itself needs accounts.")] = "127.0.0.1",
    address: Annotated[
        list[str] | None, typer.Option(help="By which name others reach the page: https://label.example.org.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Who you are: votes are of human:NAME.", show_default="your login")] = None,
    overlap: Annotated[int, typer.Option(help="How many people judge each pair.")] = 1,
    repeats: Annotated[float, typer.Option(help="Share of pairs that come back hidden, sides swapped.")] = 0.05,
    tags: Annotated[str | None, typer.Option(help="Reasons to choose from, with commas between.")] = None,
    reveal: Annotated[bool, typer.Option(help="Tell after a vote which models wrote the answers.")] = True,
    invite: Annotated[str | None, typer.Option(help="Print a one-time link for NAME (or 'anybody') and stop.")] = None,
    role: Annotated[Literal["annotator", "admin"], typer.Option(help="Of whom you invite.")] = "annotator",
    reward: Annotated[
        Path | None,
        typer.Option(help="YAML of the reward model that the admin's page trains on demand.", show_default="defaults"),
    ] = None,
) -> None:
    """The page where people choose the better of two answers."""
    from surefoot.preferences import serve
    from surefoot.preferences.app import Exchange

    public = tuple(address or ())
    if invite is not None:
        person = None if invite == "anybody" else invite
        typer.echo(serve.invite(store, person, role, host=host, port=port, addresses=public))
        return
    chosen = {} if tags is None else {"tags": tuple(tag.strip() for tag in tags.split(",") if tag.strip())}
    serve.serve(
        store,
        host=host,
        port=port,
        addresses=public,
        owner=name or _login(),
        overlap=overlap,
        repeats=repeats,
        reveal=reveal,
        exchange=Exchange(EXPORTS, _export_file, _import_file),
        reward_words=[] if reward is None else [str(reward)],
        say=lambda line: typer.echo(line),
        **chosen,
    )


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Preferences, in any format of docs/data.md.")],
    store: Annotated[Path, typer.Option(help="Preference store (SQLite); made when missing.")],
    source: Annotated[
        str | None,
        typer.Option(help="Who voted: human:NAME, ratings, function:NAME, or a plain name.", show_default="import:FILE"),
    ] = None,
) -> None:
    """Preferences from a file into a store."""
    from surefoot.interchange import import_file

    typer.echo(import_file(store, file, source))


def export(
    store: Annotated[Path, typer.Option(help="Preference store (SQLite).")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    format: Annotated[
        Literal["trl", "parquet", "label-studio", "argilla", "votes"],
        typer.Option(
            help="trl: JSONL with prompt, chosen, rejected[, margin]; parquet: the same; label-studio, argilla: a response a "
            "vote; votes: JSONL with all that is known of each vote."
        ),
    ] = "trl",
) -> None:
    """Preferences from a store into a file."""
    from surefoot.interchange import export_file

    typer.echo(export_file(store, out, format))


def _login() -> str:
    """The login name as a voter's name."""
    import getpass
    import re

    try:
        login = getpass.getuser().lower()
    except (OSError, KeyError, ImportError):  # an account without a name
        login = ""
    return re.sub(r"[^a-z0-9._-]+", "-", login)[:64].strip("-") or "owner"


def _export_file(store: Path, out: Path, format: str) -> str:
    from surefoot.interchange import export_file

    return export_file(store, out, format)


def _import_file(store: Path, file: Path, source: str) -> str:
    from surefoot.interchange import import_file

    return import_file(store, file, source)
