"""`surefoot compare A B`: by judges, and by people who do not know whose answer is whose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import surefoot
from surefoot.cli import run
from surefoot.embedded.tiny_world import sentences
from surefoot.embedded.worlds import opened
from surefoot.intervals import wilson_interval
from surefoot.lm.tiny import tiny_model, tiny_tokenizer
from surefoot.preferences import PreferenceStore, Vote
from surefoot.runs import load_manifest, read_jsonl
from surefoot.stages.compare import people, summary

PROMPTS = sorted({opened(text)["prompt"] for text in sentences(60, seed=3)})[:12]
WORDS = ("--data.eval_prompts=prompts.jsonl", "--rollout.response_length=6", "--rollout.batch_size=5")
JUDGE = "--evaluate.judges=taste_of_compare:length"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models of different tokenizers."""
    root = tmp_path_factory.mktemp("models")
    for name, vocabulary, seed in (("one", 384, 1), ("other", 300, 3)):
        tokenizer = tiny_tokenizer(sentences(200, seed=7), vocabulary=vocabulary)
        tiny_model(tokenizer, width=32, seed=seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return str(root / "one"), str(root / "other")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    Path("taste_of_compare.py").write_text("def length(texts):\n    return [len(text) for text in texts]\n")
    sys.modules.pop("taste_of_compare", None)


def figures(out: str = "run") -> dict[str, Any]:
    return json.loads(Path(out, "compare.json").read_text())


def test_judges_compare_models_of_different_tokenizers_and_swapping_them_mirrors_the_win_rate(models: tuple[str, str]) -> None:
    assert run(["compare", *models, *WORDS, JUDGE, "--out", "run"]) == 0
    assert run(["compare", *reversed(models), *WORDS, JUDGE, "--out", "back"]) == 0
    one, other = figures()["win_rates"]["length"], figures("back")["win_rates"]["length"]
    assert one["win_rate"] == pytest.approx(1 - other["win_rate"])
    assert one["interval"] == pytest.approx([1 - bound for bound in reversed(other["interval"])])
    rows = read_jsonl(Path("run/samples.jsonl"))
    wins = sum((row["length_a"] > 0) * ((len(row["a"]) > len(row["b"])) + (len(row["a"]) == len(row["b"])) / 2) for row in rows)
    assert one["win_rate"] == wins / len(PROMPTS)
    assert run(["report", "run"]) == 0


def test_a_model_wins_half_against_itself(models: tuple[str, str]) -> None:
    assert run(["compare", models[0], models[0], *WORDS, JUDGE, "--out", "run"]) == 0
    assert figures()["win_rates"]["length"]["win_rate"] == 0.5
    assert figures()["num_equal"] == len(PROMPTS)


def test_people_get_blind_pairs_are_waited_for_and_their_win_rate_is_reported(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", *models, *WORDS, JUDGE, "--people", "--store", "votes.db", "--out", "run"]
    assert run(words) == 75
    with PreferenceStore.open("votes.db") as store:
        waiting = store.pairs_without_votes()
        assert f"0 of {len(waiting)} votes; label with surefoot label --store votes.db" in capsys.readouterr().err
        assert all(name not in pair.reason for pair in waiting for name in ("one", "other", "/"))  # the reason names no model
        assert len(waiting) >= 10
        for number, pair in enumerate(waiting):
            for source, choice in (("human:ann", "a" if number % 4 else "b"), ("human:bob", "a")):
                store.vote(pair.id, choice, source=source, left="ab"[number % 2])  # type: ignore[arg-type]
    assert run(words) == 0
    told = figures()["people"]
    halves = sum(number % 4 == 0 for number in range(len(waiting)))
    assert told["win_rate"] == pytest.approx((len(waiting) - halves / 2) / len(waiting))  # one of two voters each
    assert told["votes"] == 2 * len(waiting)
    assert told["kappas"][0]["annotators"] == ["human:ann", "human:bob"]
    assert told["alpha"] is not None and "win_rate" in told
    assert "people: A wins on " in capsys.readouterr().err
    assert load_manifest(Path("run"))["facts"]["compare"]["people"] == told
    metrics = read_jsonl(Path("run/metrics.jsonl"))[-1]
    assert metrics["people/win_rate"] == told["win_rate"]
    assert figures()["win_rates"]["length"]  # the judge was asked too


def test_killed_while_it_samples_it_ends_with_the_same_answers(models: tuple[str, str]) -> None:
    base = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "surefoot", "compare", *models, *WORDS, JUDGE, "--out"]
    assert run([*words[3:], "whole"]) == 0
    ended = subprocess.run(
        [*words, "run"], env=base | {"SUREFOOT_FAULT": "checkpoint-after:5:kill"}, capture_output=True, check=False
    )
    assert ended.returncode == -9
    assert run([*words[3:], "run"]) == 0
    for name in ("samples.jsonl", "compare.json", "metrics.jsonl"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.parametrize(
    "more, said",
    [
        ([], "evaluate.judges is empty, so nobody compares the answers. Name judges, or add --people."),
        ([JUDGE, "--wait"], "--store and --wait have no effect without --people"),
        (
            [JUDGE, "--evaluate.against=x"],
            'evaluate.against = "x" has no effect in surefoot compare: the two models are the words',
        ),
        ([JUDGE, "--model.name=x"], 'model.name = "x" has no effect in surefoot compare'),
        ([JUDGE, "--evaluate.best_of=4"], "evaluate.best_of = 4 has no effect in surefoot compare: no reward"),
        ([JUDGE, "--peple"], "Did you mean --people?"),
    ],
)
def test_what_cannot_be_is_one_line(
    more: list[str], said: str, models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *models, *WORDS, *more, "--out", "run"]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


VOTE = Vote(1, 1, "a", "human:ann", None, None, None, None, 0.0)


def test_what_people_say_counts_by_hand() -> None:
    cast = [
        (1, "a", "x"),
        (1, "b", "y"),
        (1, "a", "z"),
        (2, "tie", "x"),
        (3, "both_bad", "x"),
        (4, "skip", "x"),
        (5, "b", "x"),
        (9, "a", "x"),
    ]
    votes = [replace(VOTE, pair=pair, choice=choice, source=f"human:{who}", left="a") for pair, choice, who in cast]
    told = people(votes, {pair: pair for pair in range(1, 6)}, num_equal=2)
    # shares for A: 2/3, 1/2, 1/2 (both bad), pair 4 left out, 0; two equal answers 1/2 each
    expected = wilson_interval(2 / 3 + 1 / 2 + 1 / 2 + 0 + 1, 6)
    assert (told["win_rate"], told["interval"]) == (pytest.approx(expected.value), pytest.approx(expected.as_list()))
    assert (told["prompts"], told["votes"], told["both_bad"], told["equal"]) == (6, 7, 1, 2)
    assert people([], {1: 1}, 0)["prompts"] == 0  # and no rate


def test_a_summary_counts_by_hand() -> None:
    rows = [
        {"a": "x", "b": "y", "j_a": 1.0, "j_b": 0.0, "length_a": 2, "length_b": 4},
        {"a": "x", "b": "x", "j_a": 1.0, "j_b": 1.0, "length_a": 1, "length_b": 1},
    ]
    told = summary(rows, ("j",))
    assert (told["win_rates"]["j"]["win_rate"], told["num_equal"], told["length_b"]) == (0.75, 1, 2.5)
