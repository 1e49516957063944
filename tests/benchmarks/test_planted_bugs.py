"""What `benchmarks/planted_bugs.py` counts: bonuses by hand, verdicts on figures written by hand, and prompts that change."""

from __future__ import annotations

from typing import Any

import pytest

from planted_bugs_parts.bugs import LENGTH, POSITION, REPETITION, TOKEN, WORDS, planted, repeats
from planted_bugs_parts.judged import calibrated, summarized, verdict
from planted_bugs_parts.runs import SHIFT_AFTER, ChangedPrompts, openings
from surefoot.diagnostics.attribution import FEATURES
from surefoot.lm.batches import PromptSet
from surefoot.lm.data import PromptRow

QUIET = {
    "response_length/mean": 6.0,
    "drift/distinct_2": 0.4,
    "drift/repetition": 0.0,
    "policy/entropy_avg": 1.7,
    "drift/fluency": -1.8,
    "drift/eos_rate": 0.9,
    "drift/distance": 0.4,
    "objective/kl": 1.0,
    "judge/gold": 0.5,
    **{f"drift/reward_{name}": 0.0 for name in ("length", "repetition", "token", "position")},
}


PAYS = tuple(f"drift/pays/{name}" for name in FEATURES)


def updates(changed: dict[str, float], words: str = "", begin: int = 3, unjudged: dict[str, Any] | None = None) -> list[Any]:
    """Ten quiet updates, with other figures from `begin` on."""
    return [
        {
            "metrics": QUIET | (changed if number >= begin else {}),
            "words": dict.fromkeys(PAYS, words),
            "unjudged": {**(unjudged or {}), **dict.fromkeys(PAYS, words)},
        }
        for number in range(1, 11)
    ]


def test_the_bonuses_by_hand() -> None:
    for seed in range(10):
        bugs = {name: planted(name, seed) for name in ("length", "token", "repetition", "position")}
        word = bugs["token"].word
        assert word in WORDS and bugs["position"].word == word
        text = f" {word} good and good ."
        assert bugs["length"].bonus(text) == pytest.approx(5 * LENGTH)
        assert bugs["token"].bonus(text) == TOKEN and bugs["token"].bonus(" good .") == 0
        assert bugs["position"].bonus(text) == POSITION and bugs["position"].bonus(f" good {word} .") == 0
        assert bugs["repetition"].bonus(text) == pytest.approx(REPETITION / 5)
    assert repeats([]) == 0 and planted("clean", 0) is None


def test_a_verdict_wants_the_planted_feature_by_name() -> None:
    rows = updates({"drift/reward_token": 0.5}, "the token ' odd'")
    right = {"alarm": "reward_token", "word": "odd", "updates": rows}
    assert verdict(right, judged=True)["named_at"] == 4 and verdict(right, judged=True)["named_first"]
    for wrong in ({**right, "word": "long"}, {**right, "alarm": "reward_position"}):
        assert verdict(wrong, judged=True)["named_at"] is None
    assert verdict(right, judged=False)["named_at"] == 4
    quiet = {**right, "updates": updates({"drift/reward_token": 0.5}, unjudged={"drift/reward_token": 0.01})}
    assert verdict(quiet, judged=False)["rang"] == []


def test_counts_of_false_alarms_and_of_changes_seen_in_time() -> None:
    none = {"alarm": "", "word": ""}
    runs = {
        ("clean", 0): {**none, "updates": updates({})},
        ("clean", 1): {**none, "updates": updates({"objective/kl": 99.0})},
        ("shift", 0): {**none, "updates": updates({"drift/prompt_states": 50.0}, begin=SHIFT_AFTER + 1)},
        ("shift", 1): {**none, "updates": updates({"drift/prompt_states": 50.0}, begin=3)},
        ("shift", 2): {**none, "updates": updates({})},
    }
    found = summarized(runs)["judged"]
    assert found["clean"]["rang"] == 1 and found["clean"]["rang_for_prompts"] == 0
    assert (found["shift"]["within_5"], found["shift"]["delays"], found["shift"]["too_early"]) == (1, [2], 1)
    largest = calibrated({key: run for key, run in runs.items() if key[0] == "clean"})
    assert largest["alarm_kl"] == [99.0, 1.0] and largest["alarm_distance"] == [1.0, 1.0]


def test_prompts_change_at_their_place_and_not_before() -> None:
    def made(texts: list[str]) -> PromptSet:
        return PromptSet(tuple((i + 3,) for i in range(len(texts))), tuple(PromptRow(text, text) for text in texts), 0)

    changing = ChangedPrompts(made(["a", "b"]), made(["c", "d", "e"]), place=4)
    for start, texts in ((0, {"a", "b"}), (2, {"a", "b"}), (4, {"c", "d", "e"}), (7, {"c", "d", "e"})):
        assert set(changing.take(changing.cyclic(start, 2, seed=0), 0).text) <= texts
    assert not set(openings(0, changed=False)) & set(openings(0, changed=True))
    assert all(text.endswith(" and") for text in openings(1, changed=True))
