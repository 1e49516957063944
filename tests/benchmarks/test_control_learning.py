"""`benchmarks/control_learning.py`: its comparison, against SciPy's, and what it says without SB3."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

pytest.importorskip("gymnasium")

from scipy.stats import ttest_ind

import control_learning
from control_parts import jobs


def runs_of(side: str, figures: list[float]) -> list[dict[str, Any]]:
    return [{"steps": 98_304, "side": side, "evaluated": x, "training": 100.0} for x in figures]


def test_the_difference_is_a_share_of_sb3s_mean_with_welchs_interval() -> None:
    here, there = [90.0, 110.0, 100.0], [120.0, 130.0, 110.0, 120.0]
    found = control_learning.compared("Hopper-v5", {"surefoot": runs_of("surefoot", here), "sb3": runs_of("sb3", there)})
    interval = ttest_ind(here, there, equal_var=False).confidence_interval(0.95)
    one = found["evaluated"]
    assert one["difference"] == pytest.approx((fmean(here) - fmean(there)) / 120)
    assert one["interval"] == pytest.approx([interval.low / 120, interval.high / 120])
    assert one["reaches_above_tolerated"]  # the upper end is at -0.1 %
    assert found["training"] == {
        "surefoot": [100.0] * 3, "sb3": [100.0] * 4, "difference": 0, "interval": [0, 0], "reaches_above_tolerated": True
    }  # fmt: skip
    assert "is_solved" not in found


@pytest.mark.parametrize("worst, is_solved", [(475.0, True), (474.0, False)])
def test_cartpole_is_solved_where_every_seed_solves_it(worst: float, is_solved: bool) -> None:
    sides = {"surefoot": runs_of("surefoot", [500.0, worst]), "sb3": runs_of("sb3", [500.0, 500.0])}
    assert control_learning.compared("CartPole-v1", sides)["is_solved"] is is_solved


def test_without_stable_baselines3_it_says_in_a_line_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "is_installed", lambda package: False)
    monkeypatch.setattr(sys, "argv", ["control_learning.py", "--work", str(tmp_path)])
    assert control_learning.main() == 2
    assert capsys.readouterr().err == (
        "This benchmark needs Stable-Baselines3: pip install -c constraints.txt stable-baselines3==2.9.2\n"
    )


def test_both_sides_have_the_recipes_settings() -> None:
    cartpole, hopper = (control_learning.config(case, 98_304, 1) for case in ("CartPole-v1", "Hopper-v5"))
    assert (cartpole.ppo.gamma, cartpole.ppo.lam, cartpole.control.num_updates) == (0.98, 0.8, 384)
    assert (hopper.ppo.learning_rate, hopper.ppo.vf_coef, hopper.control.normalize_rewards) == (3e-4, 1.0, True)
