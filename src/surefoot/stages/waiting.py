"""Waiting for people: how many of a run's pairs have been judged, and what to do until all are."""

from __future__ import annotations

import time
from pathlib import Path

from surefoot.errors import Interrupted
from surefoot.preferences.store import PreferenceStore
from surefoot.progress import Progress
from surefoot.runs import RunFolder

POLL_SECONDS = 2.0


def unjudged(store: PreferenceStore, tag: str) -> int:
    """Pairs whose reason begins with `tag` and at which nobody has looked yet. A skip is a look: nobody asks for it again."""
    looked_at = {vote.pair for vote in store.votes()}
    return sum(pair.reason.startswith(tag) and pair.id not in looked_at for pair in store.pairs_without_votes())


def await_votes(store: Path, tag: str, total: int, folder: RunFolder, progress: Progress, *, wait: bool) -> None:
    """Returns once every pair of `tag` has been judged; `total` is how many they are.

    Raises:
        Interrupted: some have not, and nobody wants to wait, or a stop was asked for.
    """
    with PreferenceStore.open(store, create=False) as opened:
        said = -1
        while left := unjudged(opened, tag):
            line = f"{total - left} of {total} votes; label with surefoot label --store {store}"
            if not wait:
                raise Interrupted(f"{folder.path}: {line}. Then run the same command again, which goes on from here.")
            if total - left != said:
                progress.say(line)
                said = total - left
            folder.check_stop()
            time.sleep(POLL_SECONDS)
