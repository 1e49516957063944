"""Waiting for people: how many of a run's pairs have been judged, and what to do until all are."""

from __future__ import annotations

import time
from pathlib import Path

from surefoot.errors import Interrupted
from surefoot.preferences.agreement import is_person
from surefoot.preferences.store import PreferenceStore
from surefoot.progress import Progress
from surefoot.runs import RunFolder

POLL_SECONDS = 2.0


def unjudged(store: PreferenceStore, tag: str) -> int:
    """Pairs whose reason begins with `tag` that the page still has somebody to show to: nobody has judged them.

    A skip leaves a pair to others, on the page and here. It is done with only when everyone who votes on these pairs has skipped
    it: else a single annotator's skip would be waited for without end.
    """
    own = store.pairs_chosen_for(tag)
    looked: dict[int, set[str]] = {pair.id: set() for pair in store.pairs_without_votes() if pair.id in own}
    people: set[str] = set()
    for vote in store.votes():
        if vote.pair in own:
            people |= {vote.source} if is_person(vote.source) else set()
            if vote.pair in looked:
                looked[vote.pair].add(vote.source)
    return sum(not seen or bool(people - seen) for seen in looked.values())


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
