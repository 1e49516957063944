"""The queue: no slot twice, no vote twice, leases run out, repeats swap sides, undo goes back fifty votes."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from surefoot.preferences import PreferenceStore
from surefoot.preferences.overview import settle, take_out
from surefoot.preferences.queue import Ballot, Holder, Item, Queue, Refused

ANN, BOB = Holder("human:ann", "browser-1"), Holder("human:bob", "browser-2")


def fill(store: PreferenceStore, num_pairs: int) -> None:
    with store.batch():
        for i in range(num_pairs):
            prompt = store.add_prompt(f"Number {i}?")
            a, b = (store.add_answer(prompt, f"{word} {i}", model=word) for word in ("yes", "no"))
            store.add_pair(prompt, a, b)


def queue_of(store: PreferenceStore, num_pairs: int, **settings: object) -> Queue:
    fill(store, num_pairs)
    return Queue(store, rng=random.Random(0), **settings)  # type: ignore[arg-type]


def cast(queue: Queue, holder: Holder, number: int, pick: str = "left") -> str:
    """One vote on what `holder` sees first; returns its key."""
    key = f"{holder.session}-{number:06d}"
    queue.cast(holder, Ballot(key, queue.held(holder, 1)[0].view, pick), 1)  # type: ignore[arg-type]
    return key


def test_two_browsers_never_hold_the_same_pair_and_slot(store):
    queue = queue_of(store, 30, overlap=2)
    people = [Holder(f"human:p{i}", f"browser-{i}") for i in range(6)]
    held: list[Item] = []

    def work(holder: Holder) -> None:
        while len(held) < 60:
            items = queue.held(holder, 2)
            if items:  # none: the others hold the rest
                queue.cast(holder, Ballot(f"{holder.session}-{items[0].view:05d}", items[0].view, "tie"), 2)
            with queue.store.batch() as db:
                rows = db.execute("SELECT pair, slot FROM leases").fetchall()
            assert len(set(rows)) == len(rows)
            held.extend(items[:1])

    threads = [threading.Thread(target=work, args=(holder,)) for holder in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = list(store.votes())
    assert len(votes) == 60
    assert set(Counter(vote.pair for vote in votes).values()) == {2}  # 60 votes on 30 pairs: each has its two
    assert max(Counter((vote.pair, vote.source) for vote in votes).values()) == 1


def test_one_person_in_two_browsers_does_not_get_the_same_pair_twice(store):
    queue = queue_of(store, 2, overlap=2)
    here, there = Holder("human:ann", "laptop"), Holder("human:ann", "phone")
    first, second = queue.held(here, 1), queue.held(there, 1)
    assert first[0].prompt != second[0].prompt
    assert queue.held(Holder("human:ann", "tablet"), 1) == []


def test_a_lease_runs_out_after_ten_minutes_and_a_late_vote_is_kept(store):
    now = [1000.0]
    queue = queue_of(store, 1, clock=lambda: now[0])
    item = queue.held(ANN, 1)[0]
    now[0] += 599
    assert queue.held(BOB, 1) == []
    now[0] += 2
    assert [other.prompt for other in queue.held(BOB, 1)] == [item.prompt]
    queue.cast(ANN, Ballot("late-0000", item.view, "tie"), 1)
    queue.cast(BOB, Ballot("next-0000", queue.held(BOB, 1)[0].view, "tie"), 1)
    assert [vote.source for vote in store.votes()] == ["human:ann", "human:bob"]


def test_what_a_browser_holds_is_renewed_when_it_asks_again(store):
    now = [0.0]
    queue = queue_of(store, 1, clock=lambda: now[0])
    first = queue.held(ANN, 1)[0]
    for _ in range(5):
        now[0] += 400
        again = queue.held(ANN, 1)[0]
        assert again.view == first.view and again.expires == now[0] + 600


def test_a_ballot_sent_a_hundred_times_is_one_vote_and_another_key_for_its_view_is_refused(store):
    queue = queue_of(store, 3)
    item = queue.held(ANN, 1)[0]
    results = {queue.vote(ANN, Ballot("click-001", item.view, "left", strength=2)) for _ in range(100)}
    assert len(results) == 1 and store.counts().votes == 1
    with pytest.raises(Refused, match="has its vote already"):
        queue.vote(ANN, Ballot("click-002", item.view, "right"))
    with pytest.raises(Refused, match="belongs to another vote"):
        queue.vote(ANN, Ballot("click-001", item.view, "right"))
    with pytest.raises(Refused, match="was not shown to human:bob"):
        queue.vote(BOB, Ballot("click-003", item.view, "right"))
    assert store.counts().votes == 1


def test_left_and_right_mean_the_answers_that_stood_there(store):
    queue = queue_of(store, 40)
    for n in range(40):
        item = queue.held(ANN, 1)[0]
        queue.cast(ANN, Ballot(f"click-{n:04d}", item.view, "left" if n % 2 else "right"), 1)
        vote = list(store.votes())[-1]
        chosen = item.left if n % 2 else item.right
        assert str(chosen).startswith("yes" if vote.choice == "a" else "no")
        assert str(item.left).startswith("yes" if vote.left == "a" else "no")
    assert 8 <= sum(vote.left == "a" for vote in store.votes()) <= 32  # 20 +- 12 is four standard deviations


def test_hidden_repeats_swap_sides_and_count_nowhere_else(store):
    queue = queue_of(store, 60, repeats=0.3)
    for n in range(50):
        cast(queue, ANN, n)
    votes = list(store.votes())
    repeats = [vote for vote in votes if vote.kind == "repeat"]
    assert 5 <= len(repeats) <= 25
    first = {vote.pair: vote for vote in votes if vote.kind == "vote"}
    assert len(first) == len(votes) - len(repeats)
    for repeat in repeats:
        assert repeat.left != first[repeat.pair].left
        assert repeat.id > first[repeat.pair].id + 10  # others lay in between
    assert len(list(store.preferences())) == len(first)
    before = store.digest()
    store.undo(repeats[0].id, "human:ann")
    assert store.digest() == before


def test_fifty_votes_can_be_taken_back_one_by_one_and_no_more(store):
    queue = queue_of(store, 60)
    keys = [cast(queue, ANN, n) for n in range(55)]
    for key in reversed(keys[5:]):
        item = queue.undo(ANN, key)
        assert item is not None and item.view in {held.view for held in queue.held(ANN, 0)}
    assert store.counts().votes == 5 and store.counts().undone == 50
    for n in range(55, 105):
        cast(queue, ANN, n)
    with pytest.raises(Refused, match="only the last 50 votes"):
        queue.undo(ANN, keys[0])
    with pytest.raises(Refused, match="there is no vote"):
        queue.undo(BOB, f"{ANN.session}-{60:06d}")


def test_an_undo_sent_again_changes_nothing_and_shows_the_same_pair(store):
    queue = queue_of(store, 3)
    key = cast(queue, ANN, 0)
    first, second = queue.undo(ANN, key), queue.undo(ANN, key)
    assert first is not None and second is not None and first.view == second.view
    assert store.counts().undone == 1
    queue.cast(ANN, Ballot("again-000", first.view, "tie"), 1)
    assert queue.undo(ANN, key) is None  # judged anew: the old undo has nothing to show
    assert store.counts().votes == 1


def test_an_undone_pair_is_open_again_to_others(store):
    queue = queue_of(store, 1)
    key = cast(queue, ANN, 0)
    assert queue.held(BOB, 1) == []
    queue.undo(ANN, key)
    queue.release(ANN.session)
    assert len(queue.held(BOB, 1)) == 1


def test_a_skipped_pair_is_left_to_others_and_does_not_come_back(store):
    queue = queue_of(store, 1)
    cast(queue, ANN, 0, "skip")
    assert queue.held(ANN, 1) == [] and queue.left(ANN.source) == 0
    assert len(queue.held(BOB, 1)) == 1


def test_votes_of_one_annotator_go_out_and_come_back_whole(store):
    queue = queue_of(store, 10)
    for n in range(5):
        cast(queue, ANN, n)
    whole = store.digest()
    take_out(store, ANN.source, "human:boss", out=True)
    assert store.counts().votes == 0 and list(store.preferences()) == []
    queue.forget_places()
    assert len(queue.held(BOB, 9)) == 9  # others are asked instead
    assert queue.left(ANN.source) == 5  # and she is not asked the same again
    take_out(store, ANN.source, "human:boss", out=False)
    assert store.digest() == whole and store.counts().votes == 5


def test_an_adjudication_counts_in_place_of_the_votes_until_it_is_taken_back(store):
    fill(store, 1)
    for name in ("ann", "bob"):
        store.vote(1, "a", source=f"human:{name}")
    settle(store, 1, "b", "human:boss", "settle-01")
    assert [p.chosen for p in store.preferences()] == ["no 0"]
    settle(store, 1, "tie", "human:boss", "settle-02")
    assert [p.target for p in store.preferences()] == [0.5]
    settle(store, 1, None, "human:boss", "settle-03")
    assert [p.chosen for p in store.preferences()] == ["yes 0"]


def test_a_store_of_version_1_opens_with_all_that_is_in_it(tmp_path):
    old = Path(__file__).parent / "data" / "store-v1.db"
    path = tmp_path / "old.db"
    path.write_bytes(old.read_bytes())
    with PreferenceStore.open(path) as store:
        # as the release that wrote it said
        assert store.digest() == "4b3e18aa2c9173f06de5bbe8f00e39116aa02e5450b4e5197e245fa644c0ec84"
        assert dict(store.counts().by_source) == {"human:ann": 2, "human:bob": 1, "import:old": 1}
        queue = Queue(store, overlap=5, rng=random.Random(0))
        item = queue.held(Holder("human:mei", "b"), 1)[0]
        queue.cast(Holder("human:mei", "b"), Ballot("first-new", item.view, "tie", note="new"), 1)
        assert [(vote.kind, vote.note) for vote in store.votes()][-1] == ("vote", "new")
    with PreferenceStore.open(tmp_path / "new.db") as new, PreferenceStore.open(path) as store:
        query = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
        assert store._connection.execute(query).fetchall() == new._connection.execute(query).fetchall()


def test_who_wrote_the_answers_of_a_blind_comparison_is_never_told(store):
    prompt = store.add_prompt("Which?")
    answers = [store.add_answer(prompt, text, model=text) for text in ("first", "second", "third")]
    store.add_pair(prompt, answers[0], answers[1], reason="compare 1a2b3c4d")
    store.add_pair(prompt, answers[0], answers[2], reason="uncertainty")
    queue = Queue(store, rng=random.Random(0))
    blind, plain = queue.held(ANN, 2)
    assert queue.models(blind.view) == (None, None)
    assert set(queue.models(plain.view)) == {"first", "third"}
