"""A run waits for the pairs that the page still has somebody to show to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from surefoot.preferences import PreferenceStore
from surefoot.stages.waiting import unjudged


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PreferenceStore]:
    """Two pairs of this round, and one of another."""
    with PreferenceStore.open(tmp_path / "preferences.db") as opened:
        for number, reason in ((1, "round 1: random"), (2, "round 1: random"), (3, "round 2: random")):
            prompt = opened.add_prompt(f"prompt {number}")
            opened.add_pair(prompt, opened.add_answer(prompt, "one"), opened.add_answer(prompt, "other"), reason=reason)
        yield opened


def test_a_pair_that_one_skipped_is_waited_for_while_another_votes(store: PreferenceStore) -> None:
    assert unjudged(store, "round 1") == 2
    store.vote(1, "a", source="human:ann")
    store.vote(2, "skip", source="human:ann")
    assert unjudged(store, "round 1") == 0  # ann is the only one who votes: the page has nobody to show it to
    store.vote(1, "b", source="human:bob")
    assert unjudged(store, "round 1") == 1 and [p.id for p in store.pairs_without_votes("human:bob")] == [2, 3]
    skipped = store.vote(2, "skip", source="human:bob")
    assert unjudged(store, "round 1") == 0
    store.undo(skipped, "human:bob")
    store.vote(2, "tie", source="human:bob")
    assert unjudged(store, "round 1") == 0 and unjudged(store, "round 2") == 1


def test_votes_of_another_round_and_of_no_person_keep_no_skipped_pair_open(store: PreferenceStore) -> None:
    store.vote(1, "skip", source="human:ann")
    store.vote(2, "a", source="ratings")
    store.vote(3, "a", source="human:bob")
    assert unjudged(store, "round 1") == 0
