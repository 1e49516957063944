"""`surefoot label`: the annotation server as a process. Prints the address, serves until it is stopped."""

from __future__ import annotations

import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from surefoot.errors import ConfigError
from surefoot.preferences.accounts import Accounts, Role, checked_name
from surefoot.preferences.app import MAX_TAG, MAX_TAGS, TAGS, Desk, Exchange, make_app
from surefoot.preferences.queue import Queue
from surefoot.preferences.security import Addresses, is_loopback
from surefoot.preferences.store import PreferenceStore
from surefoot.preferences.training import ChildTrainer

if TYPE_CHECKING:
    from uvicorn import Config

STOP_SECONDS = 3  # for answers under way when the server is stopped


def serve(
    store: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    addresses: tuple[str, ...] = (),
    owner: str = "owner",
    overlap: int = 1,
    repeats: float = 0.05,
    tags: tuple[str, ...] = TAGS,
    reveal: bool = True,
    exchange: Exchange | None = None,
    reward_words: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serves the page on the store until SIGINT or SIGTERM. On loopback a one-time token signs `owner` in as an admin.

    Raises:
        ConfigError: the port is taken, another host without accounts, a value out of range, or the extra is missing.
        DataError: the store cannot be opened.
    """
    checked_name(owner)
    if overlap < 1:
        raise ConfigError(f"--overlap = {overlap} asks for no votes. Use 1 or more.")
    if not 0 <= repeats <= 0.5:
        raise ConfigError(f"--repeats = {repeats} is out of range. Use 0 to 0.5, such as 0.05.")
    if bad := [tag for tag in tags if not 0 < len(tag) <= MAX_TAG] or tags[MAX_TAGS:]:
        raise ConfigError(f"--tags: {bad[0][:100]!r} is too much. Give up to {MAX_TAGS} reasons of 1 to {MAX_TAG} characters.")
    with PreferenceStore.open(store, create=False) as opened:
        accounts = Accounts(opened)
        if not is_loopback(host) and not accounts.num_accounts():
            raise ConfigError(
                f"--host {host} can be reached by others, and {store} has no accounts. "
                f"Make one with `surefoot label --store {store} --invite NAME --role admin` first."
            )
        listener = _listen(host, port)
        port = listener.getsockname()[1]
        queue = Queue(opened, overlap=overlap, repeats=repeats)
        token = secrets.token_urlsafe(24) if is_loopback(host) else None
        names = Addresses(host, port, addresses)
        trainer = None if reward_words is None else ChildTrainer(store, reward_words)
        desk = Desk(opened, queue, accounts, names, f"surefoot-{port}", owner, token, tags, reveal, exchange, trainer)
        app = make_app(desk)
        counts = opened.counts()
        say(f"label: {store}: {counts.pairs:,} pairs, {counts.votes:,} votes")
        at = f"http://{_in_address(host)}:{port}"
        say(f"label: open {at}/enter?token={token}" if token else f"label: listening at {at}, for invited people")
        say("label: stop with Ctrl-C; every vote is on the disk before it is acknowledged")
        try:
            _run(app, listener)
        finally:
            if trainer is not None:
                trainer.stop()
        say(f"label: stopped, {opened.counts().votes:,} votes in {store}")


def invite(
    store: Path, name: str | None, role: Role, *, host: str = "127.0.0.1", port: int = 8765, addresses: tuple[str, ...] = ()
) -> str:
    """Puts an invitation into the store and returns its one-time link.

    Raises:
        ConfigError: an address is none.
        DataError: no such store, or the name is not allowed.
    """
    Addresses(host, port, addresses)  # before the store keeps an invitation whose link nobody can follow
    with PreferenceStore.open(store, create=False) as opened:
        token = Accounts(opened).invite(role, name)
    start = addresses[0].rstrip("/") if addresses else f"http://{_in_address(host)}:{port}"
    return f"{start}/join/{token}"


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {host} port {port}: {reason}. Choose another with --port, or --port 0 for any free one."
        ) from None


def _run(app: object, listener: socket.socket) -> None:
    """Serves until a signal; SIGTERM ends it like Ctrl-C, since all there is to save is saved."""
    import uvicorn

    config: Config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
    )

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
