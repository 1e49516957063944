"""The report card against scorers whose faults are known: what is planted is found, and what is not there is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from surefoot.diagnostics.card_view import card_view
from surefoot.diagnostics.report import render_report, write_report
from surefoot.diagnostics.report_card import (
    HeldOut,
    accuracy_by_margin,
    accuracy_by_source,
    card,
    fitted_temperature,
    histogram,
    length_figures,
    probe,
    temperature_figures,
)
from surefoot.diagnostics.run_view import read_report_view
from surefoot.errors import DataError

NUM = 20_000


def synthetic(temperature: float, length_pay: float = 0.0, num: int = NUM, seed: int = 0) -> HeldOut:
    """Pairs whose winner is drawn with P = sigmoid(d); the scorer says temperature * d: its true temperature is that."""
    generator = np.random.default_rng(seed)
    length = generator.integers(5, 30, size=(num, 2)).astype(float)
    quality = generator.normal(size=(num, 2))
    first_wins = generator.random(num) < 1 / (1 + np.exp(-(quality[:, 0] - quality[:, 1])))
    won = np.where(first_wins, 0, 1)
    rows = np.arange(num)
    scores = temperature * quality + length_pay * length
    margins = np.abs(quality[:, 0] - quality[:, 1])
    names = tuple("even" if i % 2 == 0 else "odd" for i in rows)
    sides = [x[rows, side] for x in (scores, length) for side in (won, 1 - won)]
    return HeldOut(*sides, margins, names, tuple(i // 2 for i in rows))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_scorer_of_known_temperature_is_measured_right(temperature: float) -> None:
    """The oracle is how the data was drawn: P(wins) = sigmoid(d), said as temperature * d."""
    found = temperature_figures(synthetic(temperature))
    assert found["temperature"] == pytest.approx(temperature, rel=0.05)
    assert found["ece_after"] < 0.015  # noise of 20,000 pairs in 10 bins
    assert found["loss_after"] <= found["loss_before"] + 1e-3
    if temperature == 1.0:
        assert found["ece_before"] < 0.015
    else:
        assert found["ece_before"] > 0.08 and found["loss_after"] < found["loss_before"] - 0.01


def test_the_temperature_is_the_minimum_that_another_optimiser_finds() -> None:
    held = synthetic(2.0, num=300)
    d = held.chosen - held.rejected
    best = minimize_scalar(
        lambda t: np.logaddexp(0.0, -d / t).mean(), bounds=(0.05, 20.0), method="bounded", options={"xatol": 1e-9}
    )
    assert fitted_temperature(held.chosen, held.rejected) == pytest.approx(best.x, rel=1e-4)


def test_at_the_ends_the_temperature_stays_within_its_bounds() -> None:
    assert fitted_temperature([1.0, 2.0], [0.0, 0.0]) == 0.02  # all right: the surer the better
    assert fitted_temperature([0.0, 0.0], [1.0, 2.0]) == 50.0  # all wrong
    with pytest.raises(DataError, match="one finite pair"):
        fitted_temperature([], [])
    with pytest.raises(DataError, match="one finite pair"):
        fitted_temperature([math.nan], [0.0])


def test_after_is_measured_on_prompts_that_the_temperature_was_not_fitted_on() -> None:
    """Half of the prompts over-confident, half the other way: each half at the other's temperature is worse, not better."""
    sure, shy = synthetic(4.0, num=2_000), synthetic(0.25, num=2_000, seed=1)
    columns = [np.column_stack([getattr(sure, n), getattr(shy, n)]).ravel() for n in ("chosen", "rejected")]
    zeros = np.zeros(4_000)
    mixed = HeldOut(*columns, zeros, zeros, zeros, ("",) * 4_000, tuple(range(4_000)))  # every second prompt is of one kind
    found = temperature_figures(mixed)
    assert found["loss_after"] > found["loss_before"]


def test_accuracy_rises_with_the_gap_of_the_ratings_and_is_told_by_source() -> None:
    held = synthetic(1.0)
    bins = accuracy_by_margin(held)
    assert [row["count"] for row in bins] == [5_000] * 4
    assert [row["accuracy"] for row in bins] == sorted(row["accuracy"] for row in bins)
    assert bins[0]["accuracy"] < 0.6 and bins[3]["accuracy"] > 0.85
    assert {row["name"]: row["count"] for row in accuracy_by_source(held)} == {"even": 10_000, "odd": 10_000}
    plain = HeldOut(held.chosen, held.rejected, *[np.zeros(NUM)] * 3, ("one",) * NUM, held.prompts)
    assert accuracy_by_margin(plain) == [] and accuracy_by_source(plain) == []
    same = HeldOut(held.chosen, held.rejected, *[np.zeros(NUM)] * 2, np.ones(NUM), ("one",) * NUM, held.prompts)
    assert [row["count"] for row in accuracy_by_margin(same)] == [NUM]


def test_a_pay_for_length_is_seen_and_one_that_is_not_there_is_not() -> None:
    assert abs(length_figures(synthetic(1.0))["within_pairs"]) < 0.03
    paid = length_figures(synthetic(1.0, length_pay=0.2))
    # variances within pairs: quality 2, length 0.2^2 * 2 * 52: r = sqrt(4.16 / 6.16)
    assert paid["within_pairs"] == pytest.approx(0.82, abs=0.02)
    assert paid["longer_wins"] == pytest.approx(0.5, abs=0.02)
    flat = HeldOut(*[np.ones(4)] * 5, ("",) * 4, (1, 2, 3, 4))
    assert length_figures(flat) == {"correlation": 0.0, "within_pairs": 0.0, "longer_wins": 0.5}


def test_a_histogram_holds_every_score_once() -> None:
    found = histogram(synthetic(1.0, num=500))
    assert sum(found["chosen"]) == sum(found["rejected"]) == 500
    assert len(found["edges"]) == len(found["chosen"]) + 1


def test_a_probe_is_the_mean_change_in_deviations() -> None:
    found = probe("fluff", [0.0, 1.0, 2.0], [2.0, 3.0, 2.0], 2.0)  # changes 1, 1, 0
    assert found.move.value == pytest.approx(2 / 3) and found.rises == pytest.approx(2 / 3)
    half = 1.96 * math.sqrt(1 / 3) / math.sqrt(3)  # sample variance (2 (1/3)^2 + (2/3)^2) / 2 = 1/3
    assert found.move.high - found.move.value == pytest.approx(half)
    with pytest.raises(DataError, match="an interval needs two"):
        probe("fluff", [1.0], [1.0], 1.0)


def sentences(held: HeldOut, *probes: Any) -> str:
    return " ".join(f"[{f['level']}] {f['sentence']}" for f in card(held, probes)["verdict"])


def test_the_verdict_names_what_was_planted_and_nothing_else() -> None:
    clean = sentences(synthetic(1.0), probe("fluff", np.zeros(50), np.full(50, -0.3), 1.0))
    assert "[good] It is right on" in clean and "[good] 80 % means about 80 %" in clean
    assert "[good] None of the probed edits" in clean and "[bad]" not in clean and "[warning]" not in clean
    hacked = sentences(
        synthetic(4.0, length_pay=0.8),
        probe("flattery", np.zeros(50), np.full(50, 1.5), 1.0),
        probe("shuffle", np.zeros(50), np.zeros(50), 1.0),
    )
    assert "[warning] It is too sure of itself" in hacked
    assert "[warning] It prefers longer answers" in hacked
    assert "[bad] It pays for flattery: +1.50 deviations." in hacked
    assert "[warning] It hardly minds words in disorder" in hacked
    coin = HeldOut(*np.random.default_rng(0).normal(size=(2, 400)), *[np.zeros(400)] * 3, ("",) * 400, tuple(range(400)))
    assert "[bad] It is right on" in sentences(coin) and "no better than a coin" in sentences(coin)
    empty = HeldOut(*[np.zeros(0)] * 5, (), ())
    assert sentences(empty).startswith("[warning] No held-out pair has a preference")
    assert "few: every figure here is rough" in sentences(synthetic(1.0, num=20))


def test_the_report_shows_the_card_and_what_is_damaged_is_left_out(tmp_path: Path) -> None:
    made = card(synthetic(3.0, num=400), [probe("off_topic", np.zeros(9), np.full(9, 2.0), 1.0)])
    run = tmp_path / "reward"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.7, "accuracy": 0.5}) + "\n")
    (run / "manifest.json").write_text(json.dumps({"verb": "reward", "status": "done", "facts": {}}))
    (run / "card.json").write_text(json.dumps(made))
    page = write_report(run).read_text()
    for words in (
        "Report card",
        "It is too sure of itself",
        "an answer to another prompt",
        "Accuracy by rating gap",
        "Temperature",
    ):
        assert words in page, words
    assert 'id="score-histogram-data"' in page
    whole = card_view(made)
    assert whole is not None and len(whole.tables) == 4
    for key in made:
        for wrong in (None, [], {}, "x", [1], {"edges": [1]}, [{"name": 1}], [{"level": "evil", "sentence": 1}]):
            card_view({**made, key: wrong})  # no damage is an exception
            (run / "card.json").write_text(json.dumps({**made, key: wrong}))
    render_report(read_report_view(run))
    assert card_view({}) is None
