"""`benchmarks/decode.py`, `scaling.py` and `ppo_iteration.py` on tiny models: they run, and say what they measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import decode
import ppo_iteration
import scaling
from decode_parts.work import Decoding
from turn_parts.parent import PAGE


def results(script: Any, words: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    before = PAGE.read_bytes()
    monkeypatch.setattr(
        sys, "argv", [Path(script.__file__).name, *words, "--repetitions", "1", "--threads", "1", "--out", str(out)]
    )
    assert script.main() == 0
    assert PAGE.read_bytes() == before  # a trial into another file leaves the page alone
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    assert found["run"]["command"].startswith("python benchmarks/") and found["run"]["threads"] == 1
    return found


def test_both_sides_decode_as_many_tokens_and_answers_that_end_early_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--models", "tiny", "--sides", "surefoot", "transformers", "--dtypes", "float32", "--rows", "4", "--response", "6"]
    cases = results(decode, words, tmp_path / "decode.json", monkeypatch)["cases"]
    tokens = {(case["side"], case["ends"]): case["tokens"] for case in cases.values()}
    short = sum(Decoding(4, 6, "random").lengths())
    assert tokens == {
        (f"{side} float32", ends): count
        for side in ("surefoot", "transformers")
        for ends, count in (("full", 24), ("random", short))
    }
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny |")]
    assert [row.split(" | ")[2] for row in rows] == ["surefoot float32", "transformers float32"]
    assert " | 1.00 | " in rows[1] and f"| {short / 24:.0%} |" in rows[0]


def test_lengths_of_answers_that_end_by_chance_have_a_mean_of_half() -> None:
    lengths = Decoding(4000, 32, "random").lengths()
    assert min(lengths) == 1 and max(lengths) == 32 and sum(lengths) / 4000 == pytest.approx(16.5, rel=0.05)


def test_growth_is_measured_along_an_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results(scaling, ["--base", "tiny", "--axes", "vocabulary"], tmp_path / "scaling.json", monkeypatch)
    points = found["axes"]["vocabulary"]["points"]
    assert len(points) == 3 and all(point["rollout"] > 0 and point["loaded_gib"] > 0 for point in points)
    assert "| vocabulary | " in capsys.readouterr().out


@pytest.mark.parametrize("costs, exponent", [([3, 6, 12], 1), ([2, 2, 2], 0), ([1, 4, 16], 2), ([0, 1, 2], None)])
def test_an_exponent_is_the_slope_in_logarithms(costs: list[float], exponent: float | None) -> None:
    assert scaling.slope(costs) == exponent


@pytest.mark.parametrize("axis", scaling.AXES)
def test_an_axis_makes_one_thing_longer(axis: str) -> None:
    work, shape = scaling.BASES["smollm2"]
    longer = scaling.scaled(axis, 4, work, shape)
    assert longer != (work, shape)
    assert [name for name in scaling.AXES if scaling.scaled(name, 4, work, shape) == longer] == [axis]


def test_an_iteration_is_timed_by_stage_against_its_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "tiny", "--cases", "lora float32", "--rows", "8", "--response", "4"]
    case = results(ppo_iteration, words, tmp_path / "iteration.json", monkeypatch)["cases"]["lora float32"]
    assert case["over_floor"] == pytest.approx(case["seconds"] / case["floor_seconds"])
    assert sum(case["stages"].values()) == pytest.approx(case["seconds"], rel=0.01)
    assert "| lora float32 | " in capsys.readouterr().out


def test_other_systems_are_asked_for_by_their_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["decode.py", "--sides", "vllm"])
    assert decode.main() == 2 and "--vllm-python" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["ppo_iteration.py", "--cases", "trl full float32"])
    assert ppo_iteration.main() == 2 and "--trl-python" in capsys.readouterr().err
