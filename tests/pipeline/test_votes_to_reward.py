"""Votes to reward model: what each vote becomes, and that a store which moves on changes nothing silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import run
from surefoot.errors import DataError
from surefoot.preferences import Choice, PreferenceStore
from surefoot.runs import load_manifest, read_jsonl
from surefoot.stages.votes import read_votes

WORDS = ("reward", "--model.name=tiny", "--reward.store=votes.db", "--reward.batch_size=4", "--reward.save_every=1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(path: str, count: int = 12) -> None:
    """`count` pairs, one vote of ann on each."""
    with PreferenceStore.open(path) as store:
        for i in range(count):
            add(store, i, "a")


def add(store: PreferenceStore, number: int, *choices: Choice, **more: Any) -> int:
    """A pair with the votes `choices`, each of another person; returns the last vote."""
    prompt = store.add_prompt(f"the plot {number}")
    a, b = (store.add_answer(prompt, f" was {word} .", model="m") for word in ("good", "bad"))
    pair, vote = store.add_pair(prompt, a, b), 0
    for k, choice in enumerate(choices):
        vote = store.vote(pair, choice, source=f"human:p{k}", **more)
    return vote


def test_strength_becomes_the_margin_ties_count_half_and_several_votes_a_share() -> None:
    with PreferenceStore.open("votes.db") as store:
        add(store, 0, "b", strength=3)
        add(store, 1, "tie")
        add(store, 2, "a", "a", "b")
        add(store, 3, "both_bad")
        add(store, 4, "skip", "a")
        add(store, 5, "a", "tie")
    votes = read_votes(Path("votes.db"))
    assert [{key: row[key] for key in row if key in ("margin", "target")} for row in votes.rows] == [
        {"margin": 2.0},
        {"target": 0.5},
        {"target": pytest.approx(2 / 3)},
        {},
        {"target": 0.75},
    ]
    assert votes.rows[0]["chosen"] == " was bad ."
    assert votes.description == (
        "votes.db: 5 pairs with 10 votes (2 ties, half a vote for each answer); left out: 1 votes that both are bad and 1 skips"
    )
    assert votes.facts["choices"] == {"a": 4, "b": 2, "both_bad": 1, "skip": 1, "tie": 2}


def test_the_manifest_pins_the_votes_whatever_their_order() -> None:
    digests = []
    for name, order in (("one.db", range(12)), ("other.db", reversed(range(12)))):
        with PreferenceStore.open(name) as store:
            for number in order:
                add(store, number, "a")
        assert run([*WORDS[:2], f"--reward.store={name}", "--reward.batch_size=4", "--out", name[:-3]]) == 0
        manifest = load_manifest(Path(name[:-3]))
        assert manifest["inputs"]["votes"] == manifest["facts"]["votes"]["sha256"]
        assert manifest["facts"]["votes"] | {"sha256": "", "store": ""} == {
            "store": "", "sha256": "", "votes": 12, "pairs": 12, "choices": {"a": 12},
        }  # fmt: skip
        digests.append(manifest["inputs"]["votes"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("moved", ["vote", "undo", "swap"])
def test_report_and_resume_say_that_the_store_moved_on_since(moved: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill("votes.db")
    words = [*WORDS, "--out", "rm"]
    assert run(words) == 0
    assert run(["report", "rm"]) == 0
    assert "moved on" not in capsys.readouterr().err + Path("rm/report.html").read_text()
    with PreferenceStore.open("votes.db") as store:
        if moved in ("undo", "swap"):
            store.undo(3, "human:p0")
        if moved in ("vote", "swap"):
            add(store, 99, "b")
    how = {
        "vote": "12 votes then, 13 now",
        "undo": "12 votes then, 11 now",
        "swap": "12 votes then and now, but not the same ones",
    }
    assert run(["report", "rm"]) == 0
    said = f"rm: votes.db has moved on since the reward model read it: {how[moved]}. Train a new reward model"
    assert said in capsys.readouterr().err
    assert said in Path("rm/report.html").read_text()
    assert run(words) == 0
    assert said in capsys.readouterr().err


def test_an_interrupted_run_goes_on_with_the_votes_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill("votes.db")
    assert run([*WORDS, "--out", "whole"]) == 0
    monkeypatch.setenv("SUREFOOT_FAULT", "optimizer:2:int")
    assert run([*WORDS, "--out", "stopped"]) == 75
    monkeypatch.delenv("SUREFOOT_FAULT")
    with PreferenceStore.open("votes.db") as store:
        store.undo(1, "human:p0")
    assert run([*WORDS, "--out", "stopped"]) == 0
    weights = [Path(name, "final/model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    events = [row["message"] for row in read_jsonl(Path("stopped/events.jsonl"))]
    assert any("12 votes then, 11 now; this run goes on with the votes that it began with" in said for said in events)
    assert load_manifest(Path("stopped"))["inputs"]["votes"] == load_manifest(Path("whole"))["inputs"]["votes"]


def test_a_run_that_had_not_begun_reads_the_store_anew() -> None:
    fill("votes.db", 6)
    Path("rm").mkdir()
    Path("rm/votes.jsonl").write_text(json.dumps(read_votes(Path("votes.db")).facts) + "\n")  # left by a run that was killed
    with PreferenceStore.open("votes.db") as store:
        add(store, 50, "a")
    assert run([*WORDS, "--out", "rm"]) == 0
    assert load_manifest(Path("rm"))["facts"]["votes"]["votes"] == 7


def test_a_store_without_a_preference_is_refused() -> None:
    with PreferenceStore.open("votes.db") as store:
        add(store, 0, "skip")
    with pytest.raises(DataError, match=r"reward\.store = 'votes\.db' holds no preferences \(1 pairs, 1 votes\)"):
        read_votes(Path("votes.db"))
