"""The doctor's ladder: every rung holds here, and whatever is broken on purpose is found by the rung that stands for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot import core, doctor, doctor_rungs, ppo
from surefoot.cli import run
from surefoot.core import advantage, kl, preference, surrogate
from surefoot.doctor import climb
from surefoot.doctor_rungs import RUNGS
from surefoot.lm import roles
from surefoot.runtime.single import SingleRuntime
from surefoot.stages import rollouts

NAMES = [rung.name for rung in RUNGS]
SHORT = ("--sft.max_steps=4", "--reward.max_steps=4", "--ppo.total_episodes=128", "--evaluate.num_prompts=8")


def negated(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **options: -function(*args, **options)


def climbed(up_to: str) -> tuple[bool, list[str]]:
    said: list[str] = []
    return climb(said.append, up_to), said


def test_each_rung_tells_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    held, said = climbed("echo")
    assert held, said
    assert [line.split(": ")[0] for line in said] == ["PASS  rung 1, arithmetic", "PASS  rung 2, bandit", "PASS  rung 3, echo"]
    assert "tethered to 0.6" in said[1] and "(0.667 by theory)" in said[1]


BROKEN: dict[str, tuple[str, Any, str, Any]] = {
    "a clip that is not there": (
        "arithmetic",
        surrogate,
        "clipped_surrogate",
        lambda ratio, advantages, *, epsilon: ratio * advantages,
    ),
    "advantages of the wrong sign": ("arithmetic", advantage, "gae", negated(advantage.gae)),
    "a KL in the wrong direction": ("arithmetic", kl, "kl_categorical", lambda p, q: core.kl_categorical(q, p)),
    "a tether that is paid": (
        "arithmetic",
        preference,
        "tethered_rewards",
        lambda scores, kl, mask, *, coef: core.tethered_rewards(scores, -kl, mask, coef=coef),
    ),
    "advantages turned round by the update": ("bandit", ppo, "standardize", negated(ppo.standardize)),
    "a loss that is maximised": ("bandit", ppo, "masked_mean", negated(ppo.masked_mean)),
    "steps that are counted and not taken": ("bandit", SingleRuntime, "step", lambda *given: (1.0, True)),
    "a tether of the wrong sign": ("bandit", core, "kl_estimate", negated(core.kl_estimate)),
    "log-probs shifted by a token": (
        "echo",
        roles,
        "states_before",
        lambda hidden, lengths, count: SHIFT(hidden, lengths + 1, count),
    ),
    "answers that are paid for the opposite": ("echo", rollouts, "gae", negated(rollouts.gae)),
    "scores that stay behind their answers": (
        "echo",
        rollouts,
        "penalised",
        lambda scores, *rest: PENALISED(scores.roll(1), *rest),
    ),
}
SHIFT, PENALISED = roles.states_before, rollouts.penalised


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_is_found_by_its_rung_and_no_higher_one_is_climbed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named, place, attribute, broken = BROKEN[fault]
    monkeypatch.setattr(place, attribute, broken)
    monkeypatch.setattr(doctor_rungs, "MOST_UPDATES", 12)
    held, said = climbed("demo")
    number = NAMES.index(named)
    assert not held
    assert [line.split(",")[0] for line in said[:number]] == [f"PASS  rung {i}" for i in range(1, number + 1)]
    assert said[number].startswith(f"FAIL  rung {number + 1}, {named}: ")
    assert said[number].endswith(f"{RUNGS[number].means} {RUNGS[number].advice}")
    assert said[number + 1 :] == [f"stopped at rung {number + 1}, {named}: {', '.join(NAMES[number + 1 :])} would stand on it"]


def make_its_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The demo's rung runs in `folder`; other temporary folders, such as that of a tiny model's cache, are made as ever."""
    make = tempfile.mkdtemp

    def chosen(prefix: str = "", **given: Any) -> str:
        return str(folder) if prefix == "surefoot-doctor-" else make(prefix=prefix, **given)

    monkeypatch.setattr(doctor_rungs.tempfile, "mkdtemp", chosen)


def test_a_demo_that_teaches_nothing_is_found_and_its_folder_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_its_folder(monkeypatch, tmp_path)
    holds, found = doctor_rungs.demo(SHORT)
    assert not holds
    assert "expected were half the SFT loss" in found
    assert found.endswith(f"its run folder is {tmp_path}") and (tmp_path / "report.html").is_file()


@pytest.mark.soak
def test_the_demo_holds_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_its_folder(monkeypatch, tmp_path / "run")
    assert run(["doctor", "--up-to", "demo"]) == 0
    assert not (tmp_path / "run").exists()


def test_an_error_is_the_finding_of_the_rung_that_raised_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("no torch here")

    monkeypatch.setattr(doctor, "RUNGS", (doctor_rungs.Rung("arithmetic", absent, "It means this.", "Do that"),))
    held, (line,) = climbed("arithmetic")
    assert not held
    assert line.startswith("FAIL  rung 1, arithmetic: ImportError: no torch here (test_doctor_rungs.py:")
    assert line.endswith("). It means this. Do that")


def test_a_rung_that_fails_counts_as_one_thing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "CHECKS", ())
    monkeypatch.setattr(advantage, "gae", negated(advantage.gae))
    assert run(["doctor", "--up-to", "arithmetic"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 thing needs attention"


def test_a_rung_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--up-to", "heaven"]) == 2
    assert "heaven" in capsys.readouterr().err


def test_what_stops_the_chain_is_told_by_the_demos_rung(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_its_folder(monkeypatch, tmp_path)
    words = (*SHORT, "--ppo.total_episodes=256", "--ppo.kl_max=1e-9")
    holds, found = doctor_rungs.demo([word for word in words if word != "--ppo.total_episodes=128"])
    assert not holds
    assert "passed ppo.kl_max = 1e-09 at update 2" in found and found.endswith(f"; its run folder is {tmp_path}")
