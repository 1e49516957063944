"""`benchmarks/rounds_table.py`: equal shares for one round and two, what its table says, and a wrong folder in one line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import rounds_table
from rounds_table import SIZES, Sizes, kept_runs, settings, table


@pytest.mark.parametrize("preset", SIZES)
def test_one_round_and_two_have_as_many_labels_and_episodes_and_the_same_last_evaluation(preset: str) -> None:
    sizes = SIZES[preset]
    one, two = (settings(7, number, preset, sizes) for number in (1, 2))
    for cfg in (one, two):
        assert cfg.rounds.num_rounds * cfg.rounds.prompts_per_round == sizes.labels
        rollouts = cfg.rounds.num_rounds * cfg.ppo.num_updates
        assert rollouts * cfg.ppo.rollout_batch_size == sizes.episodes  # whole rollouts: none is rounded up
        assert (cfg.seed, cfg.evaluate.num_prompts) == (7, sizes.eval_prompts)
    assert two.rounds.num_eval_prompts == sizes.between
    same = {"rounds", "ppo"}  # in all else the two are one
    assert one.model_dump(exclude=same) == two.model_dump(exclude=same)
    assert one.ppo.model_dump(exclude={"total_episodes"}) == two.ppo.model_dump(exclude={"total_episodes"})


def run_of(number: int, seed: int, answers: list[float], sizes: Sizes) -> dict[str, Any]:
    last = {"rounds/votes": 12, "win_rate/gold": 0.6, "win_rate_interval/gold": [0.5, 0.7], "rounds/kl": 1.0}
    last |= {"rounds/distinct2": 0.5, "rounds/length": 9.0}
    return {"num_rounds": number, "seed": seed, "sizes": asdict(sizes), "rounds": [last], "answers": {"gold": answers}}


def test_two_rounds_are_held_against_one_prompt_by_prompt_of_the_same_seed(tmp_path: Path) -> None:
    """Seed 0: 2 beats 1, 0 loses to 1, 3 ties with 3, 4 beats 0: 2.5 of 4. Seed 1: 1 of 4. Together 3.5 of 8."""
    sizes = Sizes(12, 8, 4, 2)
    for number, seed, answers in ((1, 0, [1, 1, 3, 0]), (2, 0, [2, 0, 3, 4]), (1, 1, [5, 5, 5, 5]), (2, 1, [6, 4, 4, 4])):
        file = tmp_path / f"rounds-tiny-{number}-{seed}.json"
        file.write_text(json.dumps(run_of(number, seed, [float(n) for n in answers], sizes)))
    other = run_of(1, 2, [0.0], Sizes(99, 8, 4, 2))  # of another study
    (tmp_path / "rounds-tiny-1-2.json").write_text(json.dumps(other))
    text = table(kept_runs(tmp_path, "tiny", sizes))
    assert "Two rounds against one by gold: 43.8% of 8 answers" in text
    assert text.endswith("by seed 62.5%, 25.0%")
    assert "2 rounds, mean win rate against SFT of seeds 0, 1: gold 60.0%" in text
    assert "| 1 | 2 |" not in text


def test_a_folder_without_the_models_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rounds_table.py", "--models", str(tmp_path), "--seeds", "4", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        rounds_table.main()
    assert ended.value.code == 2
    assert f"no SFT model at {tmp_path / 'clip-4/sft/final'}." in capsys.readouterr().err.splitlines()[-1]
