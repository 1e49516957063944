"""`benchmarks/why_ppo.py --quick`, and the measures that it rests on: they can be wrong, and then its pictures are."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gymnasium")

import why_ppo
from why_ppo_parts import kl, tokens
from why_ppo_parts.cartpole import CartPoleTask
from why_ppo_parts.summary import setting
from why_ppo_parts.tokens import LENGTH, PROMPTS, WORDS, TokenTask


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_quick_run_finds_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["why_ppo.py", "--quick", "--out", str(tmp_path)])
    assert why_ppo.main() == 0
    summary = json.loads((tmp_path / "why-ppo.json").read_text("utf-8"))
    runs = [json.loads(path.read_text("utf-8")) for path in tmp_path.glob("*-*-*-0.json")]
    assert len(runs) == len(summary["settings"]) == 2 * 4 * 2  # tasks, objectives, epochs
    small_steps = [u for run in runs if run["epochs"] == 1 for u in run["updates"]]
    assert len(small_steps) == 4 * (3 + 2)
    for update in small_steps:
        assert 0 < update["ratio_mean_se"] < 0.01
        assert abs(update["ratio_mean"] - 1) < 4 * update["ratio_mean_se"]
        assert update["ratio_var"] == pytest.approx(update["ratio_var_exact"], rel=0.5)
    found = {(s["task"], s["objective"], s["epochs"]): s for s in summary["settings"]}
    for task in ("tokens", "cartpole"):
        gradient, clip = found[task, "policy_gradient", 20], found[task, "clip", 20]
        assert gradient["kl_median"]["mean"] > 2 * clip["kl_median"]["mean"]
        assert clip["kl_median"]["mean"] > found[task, "clip", 1]["kl_median"]["mean"]
        assert clip["clip_fraction"]["mean"] > 0.01 and gradient["clip_fraction"]["mean"] == 0
    assert len(list(tmp_path.glob("why-ppo-*.png"))) == 7


def test_a_finished_run_is_kept_and_one_with_other_sizes_is_made_anew(tmp_path: Path) -> None:
    run, path = why_ppo.Run("tokens", "clip", 1, 0), tmp_path / "tokens-clip-1-0.json"
    first = why_ppo.kept_or_made(path, run, why_ppo.QUICK)
    written = path.read_text("utf-8")
    assert why_ppo.kept_or_made(path, run, why_ppo.QUICK) == first and path.read_text("utf-8") == written
    path.write_text(written.replace('"token_rows": 64', '"token_rows": 32').replace('"kl": ', '"kl": 1'), encoding="utf-8")
    again = why_ppo.kept_or_made(path, run, why_ppo.QUICK)
    assert again["updates"] == first["updates"]  # one seed, one result


def test_the_exact_return_is_the_sum_over_all_answers() -> None:
    task = TokenTask(3, rows=8, fresh=8)
    answers = torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))
    total = 0.0
    with torch.no_grad():
        for prompt in range(WORDS, WORDS + PROMPTS):
            states = torch.cat((torch.full((len(answers), 1), prompt), answers[:, :-1]), dim=1)
            probability = task.actor_critic.evaluate(states, answers).logp.sum(1).double().exp()
            assert float(probability.sum()) == pytest.approx(1, abs=1e-5)
            total += float((probability * task.scores[tokens.row_of(states), answers[:, -1]]).sum())
    assert task.everywhere()[1] == pytest.approx(total / PROMPTS, abs=1e-6)


def test_the_uniform_policy_has_return_0_and_the_best_answer_to_each_prompt_1() -> None:
    scores = tokens.all_scores()
    states = tokens.all_states()
    assert tokens.exact_return(torch.zeros(len(states), LENGTH, WORDS), states, scores) == pytest.approx(0, abs=1e-9)
    assert torch.equal(scores.view(PROMPTS, -1).amax(1), torch.ones(PROMPTS, dtype=torch.float64))
    assert torch.equal(tokens.row_of(states), torch.arange(PROMPTS * WORDS ** (LENGTH - 1)))


@pytest.mark.parametrize(
    "make", [lambda: TokenTask(0, rows=8, fresh=64), lambda: CartPoleTask(0, num_envs=2, num_steps=8, fresh=16)]
)
def test_without_an_update_nothing_moves(make: Any) -> None:
    outcome = make().before().after()
    assert outcome.change == outcome.change_se == 0.0 and outcome.return_before == outcome.return_after
    assert outcome.ratio_mean == outcome.ratio_max == pytest.approx(1, abs=1e-6) and outcome.kl == pytest.approx(0, abs=1e-9)


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    row = kl.error_of_a_sample(64, 8, 0.1, torch.Generator().manual_seed(0))
    assert row["k1"]["bias"] == pytest.approx(0, abs=1e-12) and row["k3"]["bias"] == pytest.approx(0, abs=1e-12)
    assert abs(row["k2"]["bias"]) > 0.01 * row["kl"]
    assert row["k3"]["std"] < row["k1"]["std"] and row["k1"]["share_negative"] > 0.1 and row["k3"]["share_negative"] == 0


def test_which_expected_gradients_are_those_of_the_exact_kl() -> None:
    """The table in the docstring of `kl_estimate`."""
    rows = {(r["moving"], r["kind"]): r for r in kl.gradients(4, 0.1, torch.Generator().manual_seed(0))}
    for unbiased in (("q", "k1"), ("q", "k3"), ("p", "k2")):
        assert rows[unbiased]["error"] < 1e-9
    assert rows["q", "k2"]["error"] > 0.1
    assert rows["p", "k1"]["error"] == pytest.approx(1)  # an expected gradient of 0
    assert rows["p", "k3"]["error"] > 0.1 and rows["p", "k3"]["error_reverse"] < 1e-9


def test_shares_and_intervals_of_a_setting() -> None:
    def update(change: float, se: float) -> dict[str, float]:
        figures = dict.fromkeys(
            ("return_after", "kl", "ratio_var_exact", "ratio_max", "clip_fraction", "outside_fraction", "beta"), 1.0
        )
        return {**figures, "change": change, "change_se": se, "ratio_mean": 1.3, "ratio_mean_se": 0.1}

    seeds = [[update(-1, 1), update(-20, 4), update(3, 1), update(0, 0)], [update(1, 1)] * 4]
    found = setting("cartpole", "clip", 1, seeds)
    assert found["fell"] == {"mean": 0.25, "half_width": pytest.approx(12.706 * 0.25, rel=1e-3)}  # t of 1 degree, sd / sqrt 2
    assert [found[k]["mean"] for k in ("fell_surely", "rose_surely", "fell_notably", "largest_fall")] == [0.125, 0.125, 0.125, 10]
    assert found["ratio_mean_off"]["mean"] == 1 and math.isclose(found["return_final"]["mean"], 1)
