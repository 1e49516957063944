"""A study's verdict on planted curves, its comparison at equal KL, what the report shows of it, and joining its parts."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from surefoot.diagnostics.overoptimization import law
from surefoot.diagnostics.study import analysed, joined
from surefoot.diagnostics.study_view import study_view
from surefoot.errors import DataError

PROMPTS, POOL = 48, 16
UPDATES = list(range(2, 26, 2))
KLS = np.linspace(0.4, 5.0, len(UPDATES)) ** 2


def seed_of(number: int, noise: float = 0.5, **shapes: tuple[Any, Any]) -> dict[str, Any]:
    """A seed whose variants gain as given in judge and reward; the pool's reward knows a half of what the judge does."""
    draw = np.random.default_rng(number)
    pool = draw.normal(size=(PROMPTS, POOL))
    own: dict[str, Any] = {}
    for name, (gold, proxy) in shapes.items():
        scatter = noise * draw.normal(size=(2, len(UPDATES), PROMPTS))
        own[name] = {
            "updates": UPDATES,
            "kl": np.repeat(KLS[:, None], PROMPTS, 1).tolist(),
            "proxy": (np.asarray(proxy)[:, None] + scatter[0]).tolist(),
            "gold": {"gold": (np.asarray(gold)[:, None] + scatter[1]).tolist()},
            "pool_proxy": (pool + draw.normal(size=pool.shape)).tolist(),
        }
    return {"seed": number, "pool": {"gold": pool.tolist()}, "variants": own}


HUMP, CLIMB, FLAT = law("rl", KLS, 1.2, 0.9), law("rl", KLS, 0.6, 0.0), np.zeros(len(UPDATES))
PAID = np.linspace(0.2, 4, len(UPDATES))


def study(*seeds: dict[str, Any]) -> dict[str, Any]:
    names = list(seeds[0]["variants"])
    return {"main": "gold", "judges": ["gold"], "variants": [{"name": n, "settings": []} for n in names], "seeds": list(seeds)}


def sentence(gold: Any, proxy: Any) -> tuple[str, str]:
    found = analysed(study(seed_of(0, free=(gold, proxy))), 300)["variants"][0]
    return found["level"], found["sentence"]


def test_a_judge_that_turns_while_the_reward_rises_is_over_optimisation_and_says_where_to_stop() -> None:
    found = analysed(study(seed_of(0, free=(HUMP, PAID)), seed_of(1, free=(HUMP, PAID))), 300)
    (free,) = found["variants"]
    assert free["level"] == "bad" and "over-optimisation. Stop at KL " in free["sentence"]
    true_knee = float(np.exp(2 * (1.2 / 0.9 - 1)))
    assert free["stop"]["kl"] == pytest.approx(true_knee, rel=0.25) and free["stop"]["from"] == "fit"
    assert abs(KLS[UPDATES.index(free["stop"]["update"])] ** 0.5 - true_knee**0.5) < 0.5
    fitted = free["ppo"]["fit"]["gold"]
    assert fitted["knee_share"] == 1 and fitted["alpha"]["low"] < fitted["alpha"]["value"] < fitted["alpha"]["high"]
    assert [seed["seed"] for seed in free["by_seed"]] == [0, 1]
    json.dumps(found, allow_nan=False)


def test_a_judge_that_goes_on_rising_is_no_fall() -> None:
    level, said = sentence(CLIMB, PAID)
    assert level == "good" and said.startswith("free: no fall of gold seen up to KL 25.0, where it ends at ")


def test_a_run_that_came_back_says_how_far_it_had_gone() -> None:
    seed = seed_of(0, free=(CLIMB, PAID))
    own = seed["variants"]["free"]
    own["kl"][-1] = [16.0] * PROMPTS
    own["kl"][-2] = [25.0] * PROMPTS
    (free,) = analysed(study(seed), 300)["variants"]
    assert "no fall of gold seen up to KL 16.0 (25.0 on the way), where it ends at " in free["sentence"]


def test_a_judge_that_does_not_move_is_said_not_to() -> None:
    level, said = sentence(FLAT, PAID)
    assert level == "note" and "gold did not move beyond chance up to KL 25.0" in said


def test_a_judge_that_falls_from_the_start_is_a_reward_not_to_be_optimised() -> None:
    level, said = sentence(-CLIMB, PAID)
    assert level == "bad" and "never rose above the SFT model beyond chance" in said and "Do not optimise this reward." in said


def test_where_the_reward_falls_too_the_run_broke() -> None:
    level, said = sentence(HUMP, HUMP)
    assert level == "warning" and "Both fell, so the run broke" in said


def test_at_equal_kl_a_variant_is_as_far_above_the_first_as_was_planted() -> None:
    better = HUMP + np.minimum(KLS**0.5, 2.0) * 0.2  # 0.4 above it from KL 4 on
    found = analysed(study(seed_of(0, free=(HUMP, PAID), ensemble=(better, PAID))), 300)
    rows = {row["kl"]: row for row in found["at_equal_kl"]}
    assert list(rows) == [0.5, 1, 2, 4, 8, 16]
    gap = rows[16]["against"]["ensemble"]["gold"]
    assert gap["low"] < 0.4 < gap["high"] and gap["low"] > 0
    assert list(rows[1]["best_of_n"]) == ["free", "ensemble"] and rows[16]["best_of_n"] == {}
    assert "At KL 16, ensemble stands +0." in found["verdict"][-1]["sentence"]


def test_the_gain_of_best_of_n_is_that_of_the_pool() -> None:
    found = analysed(study(seed_of(0, free=(HUMP, PAID))), 300)
    points = {p["n"]: p for p in found["variants"][0]["best_of_n"]["points"]}
    assert points[1]["gain"]["gold"]["value"] == pytest.approx(0, abs=1e-6)
    assert points[16]["gain"]["gold"]["value"] == pytest.approx(
        1.766 / 2**0.5, abs=0.3
    )  # E max of 16 normals, correlation 1/sqrt 2
    assert points[16]["gain"]["reward"]["value"] == pytest.approx(1.766, abs=0.3)


def test_seeds_that_ended_apart_are_compared_where_both_have_been() -> None:
    short = seed_of(1, free=(HUMP, PAID))
    own = short["variants"]["free"]
    for key in ("updates", "kl", "proxy"):
        own[key] = own[key][:5]
    own["gold"]["gold"] = own["gold"]["gold"][:5]
    (free,) = analysed(study(seed_of(0, free=(HUMP, PAID)), short), 100)["variants"]
    assert [p["update"] for p in free["ppo"]["points"]] == UPDATES[:5]


def test_the_page_has_a_figure_a_variant_with_bands_and_the_knee_and_all_on_one_axis() -> None:
    view = study_view(analysed(study(seed_of(0, free=(HUMP, PAID), tethered=(CLIMB, PAID))), 100))
    assert view is not None and [chart.id for chart in view.charts] == ["study-all", "study-0", "study-1"]
    free = view.charts[1].figure["data"]
    assert sum((trace.get("meta") or {}).get("role") == "band" for trace in free) == 2
    assert any(str(trace.get("name", "")).startswith("knee, KL ") for trace in free)
    assert not any(str(trace.get("name", "")).startswith("knee, KL ") for trace in view.charts[2].figure["data"])
    assert [table.title for table in view.tables] == [
        "Fitted laws",
        "Turns in the data",
        "At equal KL",
        "Against free, at equal KL",
    ]
    assert study_view({}) is None


def test_parts_join_by_seed_and_by_variant_whatever_their_order() -> None:
    both = [seed_of(n, free=(HUMP, PAID), tethered=(CLIMB, PAID)) for n in (0, 1)]
    whole = study(*both)

    def part(number: int, name: str) -> dict[str, Any]:
        kept = {**both[number], "variants": {name: both[number]["variants"][name]}}
        return {**whole, "variants": [v for v in whole["variants"] if v["name"] == name], "seeds": [kept]}

    parts = [part(1, "free"), part(0, "tethered"), part(0, "free"), part(1, "tethered")]
    assert joined(parts, list("abcd")) == whole
    with pytest.raises(DataError, match="no part has tethered of seed 1"):
        joined(parts[:3], list("abc"))
    with pytest.raises(DataError, match="free of seed 1 stands in b and in another part"):
        joined([parts[0], parts[0]], list("ab"))
    other = copy.deepcopy(parts[3])
    other["seeds"][0]["pool"]["gold"][0][0] += 1
    with pytest.raises(DataError, match="d has other answers of the SFT model than another part with seed 1"):
        joined([*parts[:3], other], list("abcd"))
    with pytest.raises(DataError, match="free has other settings in b"):
        joined([parts[0], {**parts[2], "variants": [{"name": "free", "settings": ["ppo.kl_coef=1"]}]}], list("ab"))
    with pytest.raises(DataError, match="b was judged by others than a"):
        joined([parts[0], {**parts[1], "main": "vader"}], list("ab"))


def test_a_variant_without_a_look_is_one_line() -> None:
    empty = seed_of(0, free=(HUMP, PAID))
    empty["variants"]["free"] |= {"updates": [], "kl": [], "proxy": []}
    with pytest.raises(DataError, match="variant free, seed 0: no look at the held-out prompts was recorded"):
        analysed(study(empty), 100)
