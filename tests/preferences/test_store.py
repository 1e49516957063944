"""The store: what goes in comes out, votes count once, nothing is ever changed or deleted."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import surefoot
from surefoot.content import content_key
from surefoot.errors import DataError
from surefoot.preferences import Counts, Preference, PreferenceStore

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.sampled_from(
        ["👩‍👩‍👧 family", "שלום עולם", "نص عربي", "a\x00b", "\u202eright to left", "tab\tand\r\nlines", "long" * 20_000]
    ),
).filter(str.strip)
messages = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "user", "assistant"]), texts),
    min_size=1,
    max_size=3,
)
contents = st.one_of(texts, messages)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=contents, a=contents, b=contents)
def test_any_text_comes_back_as_it_went_in(tmp_path_factory, prompt, a, b):
    if a == b:
        b = "another answer"
    with PreferenceStore.open(tmp_path_factory.mktemp("store") / "p.db") as store:
        number = store.add_prompt(prompt)
        pair = store.add_pair(number, store.add_answer(number, a), store.add_answer(number, b))
        store.vote(pair, "b", source="ratings")
        assert list(store.preferences()) == [Preference(prompt, b, a, None, None, ("ratings",), content_key(prompt))]


def test_a_new_store_syncs_every_commit_in_a_write_ahead_log(store):
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # 2 is FULL
    assert store._connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_the_same_prompt_and_the_same_answer_are_kept_once(store):
    prompts = {store.add_prompt("Hi"), store.add_prompt("Hi")}
    assert len(prompts) == 1
    prompt = prompts.pop()
    assert store.add_answer(prompt, "x", model="m") == store.add_answer(prompt, "x", model="m")


def test_answers_differ_by_who_wrote_them_and_how(store):
    prompt = store.add_prompt("Hi")
    written = {
        store.add_answer(prompt, "x", model="m"),
        store.add_answer(prompt, "x", model="n"),
        store.add_answer(prompt, "x", model="m", model_hash="1f"),
        store.add_answer(prompt, "x", model="m", sampling={"temperature": 0.7}),
        store.add_answer(prompt, "x", model="m", token_ids=[4]),
        store.add_answer(prompt, "x", model="m", token_ids=[2, 3]),
        store.add_answer(store.add_prompt("Ho"), "x", model="m"),
    }
    assert len(written) == 7


def test_a_pair_needs_two_different_answers_to_its_own_prompt(store, pair):
    other = store.add_prompt("Another.")
    elsewhere = store.add_answer(other, "z")
    with pytest.raises(DataError, match="answer 1 cannot be compared with itself"):
        store.add_pair(1, 1, 1)
    with pytest.raises(DataError, match=f"answers 1 and {elsewhere} are not both answers to prompt 1"):
        store.add_pair(1, 1, elsewhere)
    assert store.add_pair(1, 1, 2) == pair


def test_the_same_idempotency_key_is_one_vote_however_often_it_comes(store, pair):
    numbers = {store.vote(pair, "a", source="human:ann", left="b", strength=2, idempotency_key="k1") for _ in range(100)}
    assert len(numbers) == 1
    assert store.counts().votes == 1


def test_a_key_that_belongs_to_another_vote_is_refused(store, pair):
    store.vote(pair, "a", source="human:ann", idempotency_key="k1")
    with pytest.raises(DataError, match=r"key 'k1' belongs to another vote \(1\)\. Use a new key\."):
        store.vote(pair, "b", source="human:ann", idempotency_key="k1")
    assert store.counts().by_choice == {"a": 1}


def test_votes_without_a_key_all_count(store, pair):
    for _ in range(3):
        store.vote(pair, "a", source="human:ann")
    assert store.counts().votes == 3


def test_an_undo_takes_a_vote_out_and_leaves_both_on_record(store, pair):
    kept, taken = (store.vote(pair, choice, source="human:ann") for choice in ("a", "b"))
    event = store.undo(taken, "human:ann")
    assert store.undo(taken, "human:bob") == event  # a second undo changes nothing
    assert [vote.id for vote in store.votes()] == [kept]
    assert [p.chosen for p in store.preferences()] == ["left text"]
    assert store.counts() == Counts(1, 2, 1, 1, 1, {"human:ann": 1}, {"a": 1})
    assert store._connection.execute("SELECT count(*) FROM votes").fetchone() == (2,)


def test_an_undone_key_stays_taken_so_a_late_repeat_does_not_bring_the_vote_back(store, pair):
    store.undo(store.vote(pair, "a", source="human:ann", idempotency_key="k"), "human:ann")
    store.vote(pair, "a", source="human:ann", idempotency_key="k")
    assert store.counts().votes == 0


@pytest.mark.parametrize("table", ["prompts", "answers", "pairs", "votes", "undos"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET id = id + 1"])
def test_no_row_can_be_changed_or_deleted_even_by_hand(store, pair, table, statement):
    store.undo(store.vote(pair, "a", source="ratings"), "ratings")
    with closing(sqlite3.connect(store.path)) as by_hand, pytest.raises(sqlite3.IntegrityError, match=f"only grows: {table}"):
        by_hand.execute(statement.format(table))


def test_pairs_wait_for_each_source_apart_and_a_skip_counts_for_its_own(store, pair):
    third = store.add_answer(1, "third text")
    second_pair = store.add_pair(1, 1, third, reason="uncertain")
    assert [p.id for p in store.pairs_without_votes()] == [pair, second_pair]
    store.vote(pair, "skip", source="human:ann")
    undone = store.vote(second_pair, "b", source="human:bob")
    assert [p.id for p in store.pairs_without_votes("human:ann")] == [second_pair]
    assert [p.id for p in store.pairs_without_votes("human:bob")] == [pair]
    assert [p.id for p in store.pairs_without_votes()] == [pair]  # skipped by one is not judged by anybody
    store.undo(undone, "human:bob")
    waiting = store.pairs_without_votes("human:bob", limit=5)
    assert [(p.id, p.prompt, p.a, p.b, p.reason) for p in waiting] == [
        (pair, "Say something.", "left text", "right text", ""),
        (second_pair, "Say something.", "left text", "third text", "uncertain"),
    ]
    assert [p.id for p in store.pairs_without_votes("human:bob", limit=1)] == [pair]


def test_votes_tell_the_side_shown_and_the_strength(store, pair):
    store.vote(pair, "b", source="human:ann", left="b", strength=3)
    (vote,) = store.votes()
    assert (vote.pair, vote.choice, vote.source, vote.left, vote.strength, vote.margin, vote.share) == (
        pair, "b", "human:ann", "b", 3, None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"choice": "left"}, "choice = 'left' is no vote. Use one of a, b, tie, both_bad, skip."),
        ({"left": "c"}, "left = 'c' names no answer. Use a, b, or None where nobody was shown the pair."),
        ({"strength": 5}, "strength = 5 is out of range. Use 1 (slightly), 2, 3 or 4 (by far), or None."),
        ({"strength": True}, "strength = True is out of range. Use 1 (slightly), 2, 3 or 4 (by far), or None."),
        ({"strength": 2, "margin": 1.0}, "a vote has strength = 2 and margin = 1.0. Give one of them."),
        (
            {"choice": "tie", "strength": 2},
            "strength, margin and share have no meaning with choice = 'tie'. Leave them out, or choose a or b.",
        ),
        ({"margin": float("nan")}, "margin = nan is not finite. Use a number."),
        ({"share": 1.5}, "share = 1.5 is not a share. Use a number from 0 to 1."),
    ],
)
def test_a_vote_that_makes_no_sense_is_refused_and_leaves_nothing(store, pair, given, sentence):
    with pytest.raises(DataError) as caught:
        store.vote(pair, **{"choice": "a", "source": "ratings", **given})
    assert str(caught.value) == sentence
    assert store.counts().votes == 0


def test_numbers_that_are_not_there_are_named(store, pair):
    for call, words in [
        (lambda: store.vote(9, "a", source="ratings"), "there is no pair 9."),
        (lambda: store.undo(9, "ratings"), "there is no vote 9."),
        (lambda: store.add_answer(9, "x"), "there is no prompt 9. Add it with add_prompt first."),
    ]:
        with pytest.raises(DataError) as caught:
            call()
        assert str(caught.value) == f"{store.path}: {words}"


def test_a_batch_is_kept_whole_or_not_at_all(store, pair):
    with pytest.raises(RuntimeError), store.batch():
        store.vote(pair, "a", source="ratings")
        raise RuntimeError("the import failed")
    assert store.counts().votes == 0
    with store.batch():
        store.vote(pair, "a", source="ratings")
        store.vote(pair, "b", source="ratings")
    assert store.counts().votes == 2


def test_preferences_stream_one_snapshot_while_votes_arrive(store, pair):
    more = store.add_pair(1, 1, store.add_answer(1, "third text"))
    for number in (pair, more):
        store.vote(number, "a", source="ratings")
    stream = store.preferences()
    next(stream)
    store.vote(more, "b", source="human:late")
    assert [p.sources for p in stream] == [("ratings",)]


def voted(path: Path, order: list[tuple[str, str]]) -> str:
    """The digest of a store with one pair a prompt, each voted on as told, in the order told."""
    with PreferenceStore.open(path) as store:
        for text, choice in order:
            prompt = store.add_prompt(text)
            pair = store.add_pair(prompt, store.add_answer(prompt, "x"), store.add_answer(prompt, "y"))
            store.vote(pair, choice, source="ratings")
        return store.digest()


def test_equal_votes_have_equal_digests_whatever_the_order_they_came_in(tmp_path):
    one = voted(tmp_path / "1.db", [("p", "a"), ("q", "b"), ("q", "tie")])
    assert one == voted(tmp_path / "2.db", [("q", "tie"), ("q", "b"), ("p", "a")])
    assert one != voted(tmp_path / "3.db", [("p", "a"), ("q", "b")])
    assert one != voted(tmp_path / "4.db", [("p", "b"), ("q", "b"), ("q", "tie")])
    assert len(one) == 64


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_the_documented_hash_of_the_votes(store, pair):
    store.vote(pair, "a", source="human:ann", left="b", strength=3)
    prompt = sha('"Say something."')
    # an answer is the prompt's hash (64 characters), its text as JSON, model, hash of the model, sampling settings, token ids
    a = sha(f'64:{prompt}11:"left text"1:m0:2:{{}}0:')
    b = sha(f'64:{prompt}12:"right text"1:m0:2:{{}}0:')
    vote = hashlib.sha256(f'["{prompt}", "{a}", "{b}", "a", "human:ann", "b", 3, null, null]'.encode()).digest()
    assert store.digest() == hashlib.sha256(vote).hexdigest()


def test_only_votes_change_the_digest(store, pair):
    seen = [store.digest()]
    store.add_answer(store.add_prompt("More."), "an answer")
    assert store.digest() == seen[0]
    vote = store.vote(pair, "a", source="human:ann", left="a", idempotency_key="k")
    seen.append(store.digest())
    store.vote(pair, "a", source="human:ann", left="a", idempotency_key="k")
    assert store.digest() == seen[1]  # the same click again is no vote
    for change in ({"left": "b"}, {"source": "human:bob"}, {"strength": 1}, {"strength": 2}, {"margin": 0.0}, {"share": 0.9}):
        store.vote(pair, "a", **{"source": "human:ann", "left": "a", **change})
        seen.append(store.digest())
    assert len(set(seen)) == len(seen)
    store.undo(vote, "human:ann")
    assert store.digest() not in seen


def test_undoing_every_vote_brings_the_empty_digest_back(store, pair):
    empty = store.digest()
    store.undo(store.vote(pair, "b", source="ratings"), "ratings")
    assert store.digest() == empty


def test_an_annotators_laptop_needs_no_torch():
    code = "import sys, surefoot.preferences; print(sorted(m for m in ('torch', 'transformers', 'numpy') if m in sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"
