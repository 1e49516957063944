"""Parts of the annotation server that need no server: texts in both languages, the missing extra, the trainer's child process."""

from __future__ import annotations

import re
import sys
import time
from importlib import resources

import pytest

from surefoot.errors import ConfigError
from surefoot.preferences.accounts import Accounts
from surefoot.preferences.app import Desk, make_app
from surefoot.preferences.overview import overview
from surefoot.preferences.queue import Holder, Queue
from surefoot.preferences.security import Addresses
from surefoot.preferences.training import ChildTrainer
from surefoot.preferences.words import ADMIN_WORDS, WORDS, preferred_language


@pytest.mark.parametrize("words", [WORDS, ADMIN_WORDS])
def test_both_languages_say_the_same_things(words):
    assert words["en"].keys() == words["zh"].keys()
    for key, english in words["en"].items():
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", words["zh"][key])), key


def test_every_word_is_used_and_every_word_used_is_there():
    folder = resources.files("surefoot.preferences")
    pages = [file.read_text("utf-8") for part in ("templates", "static") for file in (folder / part).iterdir()]
    used = set(re.findall(r"words\.(\w+)", " ".join(pages))) - {"get"}
    made = {"strength_", "tag_", "role_", "voted_"}  # with an ending made up on the page
    known = {key for key in WORDS["en"] if not any(key.startswith(start) for start in made)}
    listed = set(re.findall(r'"(key_\w+)"', " ".join(pages)))
    assert known == used | listed
    told = set(re.findall(r"told\.(\w+)", " ".join(pages)))
    assert {key for key in ADMIN_WORDS["en"] if not key.startswith("choice_")} - {"fine", "too few", "random", "inverted"} == told


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        (None, "", "en"),
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        (None, "fr, de;q=0.5, zh-TW;q=0.3", "zh"),
        ("en", "zh-CN", "en"),
        ("<script>", "de", "en"),
    ],
)
def test_a_page_speaks_the_chosen_language_or_the_browsers_or_english(cookie, accepted, language):
    assert preferred_language(cookie, accepted) == language


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_a_missing_extra_is_one_line(store, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    desk = Desk(store, Queue(store), Accounts(store), Addresses("127.0.0.1", 1))
    with pytest.raises(ConfigError) as caught:
        make_app(desk)
    assert str(caught.value) == (
        f"surefoot label needs {missing}, which is not installed. Install it with `pip install 'surefoot[label]'`."
    )


@pytest.mark.parametrize(
    ("bound", "host", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:80", True),
        ("127.0.0.1", "LOCALHOST:80", True),
        ("127.0.0.1", "[::1]:80", True),
        ("127.0.0.1", "192.168.1.5:80", False),
        ("127.0.0.1", "label.example.org", True),
        ("127.0.0.1", "label.example.org.evil", False),
        ("0.0.0.0", "192.168.1.5:80", True),
        ("0.0.0.0", "[fe80::1]:80", True),
        ("0.0.0.0", "rebound.example:80", False),
        ("0.0.0.0", "1.2.3.4.example", False),
        ("0.0.0.0", "", False),
    ],
)
def test_hosts_by_which_the_server_may_be_called(bound, host, allowed):
    assert (Addresses(bound, 80, ("https://label.example.org",)).origin_of(host) is not None) == allowed


def test_the_overview_counts_what_is_there(store, pair):
    more = store.add_pair(1, 1, store.add_answer(1, "third text"))
    for name, choice in (("ann", "a"), ("bob", "b")):
        why = {"tags": ("clear", "kind"), "note": "It says so."} if name == "ann" else {}
        store.vote(pair, choice, source=f"human:{name}", left="a", seconds=3.0, **why)
    store.vote(more, "a", source="human:ann", left="b")
    view = overview(Queue(store, overlap=2), Accounts(store))
    assert (view.num_complete, view.num_asked, view.num_held, view.num_disputed) == (1, 1, 0, 1)
    assert sum(view.by_hour) == 3 and view.by_hour[-1] == 3
    assert [(worker.source, worker.num_votes, worker.median_seconds) for worker in view.workers] == [
        ("human:ann", 2, 3.0),
        ("human:bob", 1, 3.0),
    ]
    (disputed,) = view.disputed
    assert (disputed.a, disputed.said) == ("left text", {"a": ["ann"], "b": ["bob"]})
    assert disputed.reasons == [("ann", "clear, kind. It says so.")]  # bob gave none


def test_the_overview_counts_the_pairs_that_lie_before_somebody_until_their_leases_run_out(store):
    for i in range(3):
        prompt = store.add_prompt(f"Number {i}?")
        store.add_pair(prompt, *(store.add_answer(prompt, f"{word} {i}") for word in ("yes", "no")))
    queue = Queue(store, clock=lambda: 1000.0)
    queue.held(Holder("human:ann", "laptop"), 2)
    assert [overview(queue, Accounts(store), now).num_held for now in (1000.0, 1599.0, 1601.0)] == [2, 2, 0]


def test_who_wrote_the_answers_of_a_blind_comparison_is_not_told_to_who_settles_it_either(store):
    prompt = store.add_prompt("Which?")
    answers = [store.add_answer(prompt, text, model=text) for text in ("first", "second", "third")]
    blind = store.add_pair(prompt, answers[0], answers[1], reason="compare 1a2b3c4d")
    plain = store.add_pair(prompt, answers[0], answers[2], reason="random")
    for name, choice in (("ann", "a"), ("bob", "b")):
        for number in (blind, plain):
            store.vote(number, choice, source=f"human:{name}")
    view = overview(Queue(store), Accounts(store))
    assert {found.pair: found.models for found in view.disputed} == {blind: None, plain: ("first", "third")}


def until_done(trainer: ChildTrainer) -> str:
    assert trainer.start()["is_running"]
    deadline = time.monotonic() + 300
    while trainer.state()["is_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return str(trainer.state()["said"])


def test_the_reward_model_if_it_were_trained_now(store):
    for i in range(24):
        prompt = store.add_prompt(f"Number {i}?")
        pair = store.add_pair(prompt, *(store.add_answer(prompt, f"{word} {i}") for word in ("yes", "no")))
        store.vote(pair, "a", source="human:ann")
    words = ["--model.name", "tiny", "--reward.batch_size", "4"]
    said = until_done(ChildTrainer(store.path, words))
    assert re.fullmatch(r"held-out accuracy [\d.]+ % \(95 % interval \d+ to \d+ %\), 24 votes on 24 pairs", said), said


def test_a_training_that_cannot_be_says_why_in_one_line(store):
    said = until_done(ChildTrainer(store.path, ["--model.name", "tiny"]))
    assert said.startswith("DataError: ") and "\n" not in said
