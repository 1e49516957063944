"""Rounds through the command line: unattended with simulated raters, with people in the loop, killed and resumed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import surefoot
from surefoot.cli import run
from surefoot.config_file import load_config
from surefoot.diagnostics.metrics import is_known
from surefoot.diagnostics.run_view import read_report_view
from surefoot.embedded.raters import SimulatedRaters
from surefoot.embedded.tiny_world import gold
from surefoot.lm.tiny import tiny_model_folder
from surefoot.preferences import PreferenceStore
from surefoot.runs import hash_folder, load_manifest, read_jsonl
from surefoot.stages.rounds import pairs_config, round_prompts

SHORT = (
    *("--sft.max_steps=4", "--reward.max_steps=4", "--ppo.total_episodes=128", "--ppo.rollout_batch_size=64"),
    *("--evaluate.num_prompts=8", "--rounds.prompts_per_round=24", "--rollout.batch_size=12"),
    "--rounds.num_eval_prompts=4",
)
OWN = ("--data.prompts=p.jsonl", "--data.eval_prompts=p.jsonl")


def rounds(out: Path, *words: str) -> int:
    return run(["rounds", "--preset", "tiny", *SHORT, *words, "--out", str(out)])


def made(out: Path) -> dict[str, Any]:
    """All that two equal runs must have in common."""
    found: dict[str, Any] = {"rounds": (out / "rounds.json").read_bytes(), "metrics": (out / "metrics.jsonl").read_bytes()}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        found[f"{folder.name} metrics"] = (folder / "metrics.jsonl").read_bytes()
        if (folder / "final").exists():
            found[f"{folder.name} final"] = hash_folder(folder / "final")
    with PreferenceStore.open(out / "preferences.db") as store:
        return found | {"votes": store.digest()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rounds") / "run"
    assert rounds(out) == 0
    return out


def test_the_tiny_preset_as_it_is_makes_a_better_policy_of_simulated_votes(tmp_path: Path) -> None:
    assert run(["rounds", "--preset", "tiny", "--out", str(tmp_path / "run")]) == 0
    first, second = json.loads((tmp_path / "run/rounds.json").read_text())
    assert min(first["win_rate/gold"], second["win_rate/gold"]) > 0.6
    assert second["rounds/votes"] > 1.7 * first["rounds/votes"]
    assert second["rounds/reward_accuracy"] > 0.75
    assert 0.5 < second["rounds/kl"] < 12


def test_two_rounds_run_unattended_and_each_reward_model_sees_all_votes_so_far(whole: Path) -> None:
    rows = json.loads((whole / "rounds.json").read_text())
    seen = [load_manifest(whole / f"reward-{n}")["facts"]["votes"] for n in (1, 2)]
    queued = [load_manifest(whole / f"pairs-{n}")["facts"]["pairs"] for n in (1, 2)]
    assert [row["rounds/votes"] for row in rows] == [votes["votes"] for votes in seen] == [queued[0], sum(queued)]
    assert min(queued) > 12
    with PreferenceStore.open(whole / "preferences.db") as store:
        assert set(store.counts().by_source) == {"function:simulated-raters"}
        assert {vote.strength for vote in store.votes() if vote.choice in ("a", "b")} <= {1, 2, 3, 4}
        assert any(preference.margin for preference in store.preferences())


def test_the_second_round_answers_with_the_policy_of_the_first_and_goes_on_from_it_under_the_first_tether(whole: Path) -> None:
    with closing(sqlite3.connect(whole / "preferences.db")) as reader:
        models = {name for (name,) in reader.execute("SELECT DISTINCT model FROM answers")}
    assert models == {"sft", "round 1"}
    first, second = (read_jsonl(whole / f"ppo-{n}/metrics.jsonl") for n in (1, 2))
    assert first[0]["objective/kl"] == pytest.approx(0, abs=1e-6)  # begins as the SFT model
    assert second[0]["objective/kl"] > 0.001  # begins where the first ended, measured from the SFT model
    assert second[0]["val/first_log_ratio"] < 1e-4
    inputs = [load_manifest(whole / f"ppo-{n}")["inputs"] for n in (1, 2)]
    assert inputs[0]["model"] == inputs[1]["model"]  # the reference is one and the same
    assert inputs[1]["start"] == load_manifest(whole / "ppo-1")["outputs"]["final"]["sha256"]


def test_rounds_before_the_last_are_judged_on_as_many_prompts_as_asked_for(whole: Path) -> None:
    first, last = (json.loads((whole / f"evaluate-{n}/evaluation.json").read_text()) for n in (1, 2))
    assert (first["num_prompts"], last["num_prompts"]) == (4, 8)
    prompts = [[row["prompt"] for row in read_jsonl(whole / f"evaluate-{n}/samples.jsonl")] for n in (1, 2)]
    assert prompts[0] == prompts[1][:4]  # the same ones first, so that rounds can be compared


def test_the_report_shows_the_rounds_on_one_axis(whole: Path) -> None:
    view = read_report_view(whole)
    ppo, own = view.stage("ppo"), view.stage("rounds")
    assert ppo is not None and own is not None
    assert ppo.column("objective/scores")[0] == [1, 2, 3, 4]  # two updates a round
    assert own.column("win_rate/gold")[0] == [0, 1, 2]
    page = (whole / "report.html").read_text()
    assert "Win rate by gold" in page and "round, 0 is the SFT model" in page
    rows = [row for path in whole.rglob("metrics.jsonl") for row in read_jsonl(path)]
    assert [key for row in rows for key in row if not is_known(key)] == []


@pytest.mark.parametrize(
    "sites",
    [
        ["checkpoint-after:12", "backward:2", "optimizer:3"],  # each fires at its first meeting, in whichever round that is
        ["final-rename:4", "checkpoint-rename:2", "rollout:2"],
    ],
)
def test_killed_between_and_inside_rounds_it_ends_with_the_bytes_of_a_whole_run(
    sites: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [sys.executable, "-m", "surefoot", "rounds", "--preset", "tiny", *SHORT, "--out", str(out)]
    base = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    killed = 0
    for site in sites:
        ended = subprocess.run(words, env=base | {"SUREFOOT_FAULT": f"{site}:kill"}, capture_output=True, text=True, check=False)
        killed += ended.returncode == -9
    assert killed >= 2
    last = subprocess.run(words, env=base, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert made(out) == made(whole)


def vote_on_all(store: PreferenceStore, source: str = "human:ann", choices: Sequence[str] = "ab") -> int:
    waiting = store.pairs_without_votes()
    for number, pair in enumerate(waiting):
        store.vote(pair.id, choices[number % len(choices)], source=source)  # type: ignore[arg-type]
    return len(waiting)


def test_people_are_waited_for_with_status_75_and_a_line_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "run", ("--rounds.annotator=people",)
    assert rounds(out, *words) == 75
    with PreferenceStore.open(out / "preferences.db") as store:
        total = len(store.pairs_without_votes())
        said = f"0 of {total} votes; label with surefoot label --store {out / 'preferences.db'}"
        assert said in capsys.readouterr().err
        first, second, *_ = store.pairs_without_votes()
        store.vote(first.id, "a", source="human:ann")
        store.vote(second.id, "skip", source="human:ann")  # the only one who votes: nobody is left to ask
        assert rounds(out, *words) == 75
        assert f"2 of {total} votes" in capsys.readouterr().err
        assert not (out / "reward-1").exists()
        vote_on_all(store)
        assert rounds(out, *words) == 75  # round 1 is done, round 2 waits
        assert "round 2 of 2" in capsys.readouterr().err
        assert load_manifest(out / "evaluate-1")["status"] == "done" and not (out / "reward-2").exists()
        vote_on_all(store)
    assert rounds(out, *words) == 0
    assert load_manifest(out)["status"] == "done"
    assert run(["report", str(out)]) == 0
    assert "moved on" not in capsys.readouterr().err  # the first round's reward model saw fewer votes, as it was meant to
    with PreferenceStore.open(out / "preferences.db") as store:
        store.undo(1, "human:ann")
    assert run(["report", str(out)]) == 0
    assert "reward-2: " in (said := capsys.readouterr().err) and "has moved on since the reward model read it" in said


def test_with_wait_it_stays_until_people_have_voted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.stages.waiting.POLL_SECONDS", 0.05)
    out = tmp_path / "run"

    def person() -> None:
        voted = 0
        while voted < 2:
            time.sleep(0.2)
            if (out / f"pairs-{voted + 1}/manifest.json").exists():
                status = json.loads((out / f"pairs-{voted + 1}/manifest.json").read_text())["status"]
                if status == "done":
                    with PreferenceStore.open(out / "preferences.db") as store:
                        vote_on_all(store)
                    voted += 1

    thread = threading.Thread(target=person, daemon=True)
    thread.start()
    assert rounds(out, "--rounds.annotator=people", "--wait") == 0
    thread.join(5)


def test_own_prompts_and_an_own_annotator(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("taste_of_rounds.py").write_text("def longer(prompt, a, b):\n    return 'a' if len(a) > len(b) else 'b'\n")
    for name, subject in (("prompts", "film"), ("held", "plot")):
        rows = [{"prompt": f"the {subject} {verb}"} for verb in ("was", "felt", "seemed", "looked", "stayed", "became")]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data.prompts=prompts.jsonl", "--data.eval_prompts=held.jsonl", "--rounds.annotator=taste_of_rounds:longer"]
    words += ["--rounds.prompts_per_round=12", "--pairs.select=uncertainty", "--pairs.max_pairs=8", "--evaluate.judges=vader"]
    words += [
        "--model.tuning=full",
        "--ppo.critic=shared",
        "--reward.method=full",
        "--reward.max_steps=3",
        "--rollout.response_length=8",
    ]
    words += [
        "--ppo.total_episodes=8",
        "--ppo.rollout_batch_size=8",
        f"--model.name={whole / 'sft/final'}",
        "--rounds.num_rounds=2",
    ]
    assert run(["rounds", *words, "--out", "run"]) == 0
    assert [load_manifest(Path(f"run/pairs-{n}"))["facts"]["pairs"] for n in (1, 2)] == [8, 8]
    with PreferenceStore.open("run/preferences.db") as store:
        assert set(store.counts().by_source) == {"function:taste_of_rounds:longer"}
        reasons = {pair.reason for pair in store.pairs_without_votes(source="human:nobody")}
    assert reasons == {"round 1: random", "round 2: uncertainty"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model.name=MODEL"], "data.prompts is not set"),
        (["--model.name=MODEL", "--data.prompts=p.jsonl"], "data.eval_prompts is not set"),
        (["--model.name=MODEL", *OWN, "--rounds.annotator=ratings"], "embedded worlds alone"),
        (["--model.name=tiny", "--pairs.select=disagreement", "--pairs.max_pairs=5"], "reward.ensemble = 1. Set reward"),
        (["--model.name=tiny", "--rounds.annotator=robots"], "rounds.annotator = 'robots' is nobody. Use people, ratings"),
        (
            ["--rounds.num_rounds=1", "--rounds.num_eval_prompts=8"],
            "num_eval_prompts = 8 has no effect: num_rounds = 1 has no round before the last",
        ),
        (["--rounds.num_round=3"], "Did you mean rounds.num_rounds?"),
        (["--pairs.store=x.db"], "pairs.store = \"x.db\" has no effect in surefoot rounds: the votes of all rounds stand in"),
        (["--ppo.start=runs/a"], "ppo.start = \"runs/a\" has no effect in surefoot rounds"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "the film"}\n')
    words = [word.replace("MODEL", str(tiny_model_folder())) for word in words]
    assert run(["rounds", *words, "--out", "run"]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--ppo.start=ROUNDS/reward-1"], "holds a run of reward (done), not a finished one of ppo"),
        (["--model.name=tiny", "--ppo.start=ROUNDS/ppo-1"], "was trained on another model than model.name"),
        (["--ppo.start=ROUNDS/ppo-1", "--ppo.critic=detached", "--model.tuning=lora"], "trained other weights"),
        (["--ppo.start=nowhere"], "nowhere is no run folder"),
    ],
)
def test_ppo_goes_on_only_from_a_finished_ppo_on_the_same_model(
    words: list[str], said: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "the film was"}\n')
    base = ["--model.tuning=full", "--ppo.critic=shared", f"--model.name={whole / 'sft/final'}"]
    base += ["--ppo.total_episodes=8", "--ppo.rollout_batch_size=8", "--rollout.response_length=8"]
    base += [f"--reward_source.source={whole / 'reward-1/final'}", f"--data.prompts={tmp_path / 'p.jsonl'}"]
    asked = dict(word.split("=", 1) for word in [*base, *(word.replace("ROUNDS", str(whole)) for word in words)])
    assert run(["ppo", *(f"{name}={value}" for name, value in asked.items()), "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_round_1_has_nothing_to_choose_by_and_prompts_go_round() -> None:
    cfg = load_config(None, ["--pairs.select=uncertainty", "--pairs.max_pairs=5", "--pairs.best_of=4"], verb="rounds")
    first, second = (pairs_config(cfg, number, "m", Path("s"), Path("rm")) for number in (1, 2))
    assert (first.pairs.select, first.pairs.best_of, first.reward_source.source) == ("random", 0, None)
    assert (second.pairs.select, second.pairs.best_of, second.reward_source.source) == ("uncertainty", 4, "rm")
    assert first.pairs.max_pairs == 5
    assert round_prompts(list("abc"), 1, 2) + round_prompts(list("abc"), 2, 2) == list("abca")


def test_simulated_raters_agree_with_the_truth_as_far_as_their_noise_lets_them_and_repeat_themselves() -> None:
    good, bad = " was superb and lovely .", " was awful and dull ."
    rater = SimulatedRaters(gold, 0.5, seed=1)
    assert all(rater(f"the film {i}", good, bad) == ("a", 3) or rater(f"the film {i}", good, bad)[0] == "a" for i in range(20))
    assert rater("the film", good, bad) == rater("the film", good, bad)
    equal = [
        SimulatedRaters(gold, 1.0, seed)("the film", good, good.replace("superb and lovely", "lovely and superb"))
        for seed in range(400)
    ]
    left = sum(said[0] == "a" for said in equal if said != "tie")
    right = sum(said[0] == "b" for said in equal if said != "tie")
    assert abs(left - right) < 60  # 3 standard deviations of 400 coins
    assert 40 < sum(said == "tie" for said in equal) < 250
