"""What an annotator sees of their own work, counted from votes and moved along between two counts."""

from __future__ import annotations

from surefoot.preferences import PreferenceStore, progress
from surefoot.preferences.progress import Progress, ProgressBoard
from surefoot.preferences.queue import Queue


def fill(store: PreferenceStore) -> None:
    """Six pairs. Ann judges five of them, two of these a second time; Bob three, one of them as she does."""
    for i in range(6):
        prompt = store.add_prompt(f"Number {i}?")
        store.add_pair(prompt, *(store.add_answer(prompt, f"{word} {i}") for word in ("yes", "no")))
    for pair, choice in ((1, "a"), (2, "b"), (3, "tie"), (4, "a"), (5, "skip")):
        store.vote(pair, choice, source="human:ann")
    for pair, choice in ((1, "a"), (2, "a")):
        store.vote(pair, choice, source="human:ann", kind="repeat")
    for pair, choice in ((1, "a"), (2, "a"), (4, "skip"), (5, "a"), (6, "a")):
        store.vote(pair, choice, source="human:bob")
    store.vote(3, "b", source="human:boss", kind="adjudication")
    store.vote(4, "b", source="import:old")  # nobody's opinion: many people's


def test_votes_done_pairs_left_and_agreement_with_oneself_and_others(store):
    """Repeats: pair 1 alike, pair 2 not. Others: pair 1 alike, pair 2 not; skips, decisions and imports are no opinions."""
    fill(store)
    board = ProgressBoard(Queue(store, overlap=3))
    assert board.of("human:ann") == Progress(done=5, left=1, with_self=(1, 2), with_others=(1, 2))
    assert board.of("human:bob") == Progress(done=5, left=1, with_self=(0, 0), with_others=(1, 2))
    assert board.of("human:new") == Progress(done=0, left=6, with_self=(0, 0), with_others=(0, 0))


def test_between_two_counts_votes_are_added_to_the_last_one(store, monkeypatch):
    fill(store)
    board = ProgressBoard(Queue(store, overlap=3))
    board.moved("human:ann", +1)  # before the first count there is nothing to move
    assert board.of("human:ann").done == 5
    store.vote(6, "a", source="human:ann")
    board.moved("human:ann", +1)
    assert (board.of("human:ann").done, board.of("human:ann").left) == (6, 0)
    assert board.of("human:ann").with_others == (1, 2)  # of ten seconds ago
    monkeypatch.setattr(progress, "FRESH_SECONDS", 0.0)
    assert board.of("human:ann") == Progress(done=6, left=0, with_self=(1, 2), with_others=(2, 3))
