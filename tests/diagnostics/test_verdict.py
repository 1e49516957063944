"""The verdict's sentences: what each set of figures must and must not make the report say."""

from collections.abc import Mapping
from typing import Any

import pytest

from fake_run import VERDICT
from surefoot.diagnostics.verdict import findings, verdict_words


def _said(**changes: Any) -> str:
    """All sentences of the healthy demo with some figures changed; None takes a figure away."""
    return "\n".join(verdict_words(_figures(changes)))


def _figures(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**VERDICT, **changes}.items() if value is not None}


TROUBLES = ("Over-optimisation", "disagree", "collapse", "grew", "Diversity", "more than once", "far from", "end by themselves")


def test_a_healthy_run_is_clearly_better_and_shows_no_sign_of_hacking() -> None:
    said = verdict_words(VERDICT)
    assert said[0] == (
        "The policy is clearly better than the SFT model: its answer wins on 91 % of 256 held-out prompts "
        "(95 % interval 87 % to 94 %), by a judge that no part was trained on."
    )
    assert any(sentence.startswith("No sign of hacking") for sentence in said)
    assert not any(trouble in sentence for sentence in said for trouble in TROUBLES)


@pytest.mark.parametrize(
    ("rate", "interval", "start"),
    [
        (0.92, [0.88, 0.95], "The policy is clearly better"),
        (0.60, [0.54, 0.66], "The policy is better"),
        (0.53, [0.47, 0.59], "No difference to the SFT model can be told"),
        (0.56, [0.50, 0.62], "No difference to the SFT model can be told"),
        (0.31, [0.26, 0.37], "The policy is worse"),
    ],
)
def test_better_is_said_only_when_the_whole_interval_is_above_one_half(rate: float, interval: list[float], start: str) -> None:
    assert verdict_words({**VERDICT, "judge_win_rate": rate, "judge_win_rate_interval": interval})[0].startswith(start)


def test_reward_up_with_both_judges_down_is_over_optimisation() -> None:
    changes = {"judge_after": -0.6, "vader_after": -0.1, "judge_win_rate": 0.3, "judge_win_rate_interval": [0.25, 0.36]}
    said = _said(**changes)
    assert "Over-optimisation: the reward model's score rose from +0.03 to +1.87 while the judges fell" in said
    assert "No sign of hacking" not in said


def test_reward_up_with_flat_judges_is_over_optimisation() -> None:
    changes = {"judge_after": -0.15, "vader_after": 0.13, "judge_win_rate": 0.52, "judge_win_rate_interval": [0.46, 0.58]}
    assert "while the judges stayed flat or fell" in _said(**changes)


def test_reward_up_with_one_judge_up_and_one_flat_is_a_disagreement() -> None:
    said = _said(vader_after=0.12)
    assert "The judges disagree" in said and "Over-optimisation:" not in said


def test_a_judge_whose_mean_rises_but_whose_win_rate_may_be_one_half_has_not_moved() -> None:
    """A few large gains can lift a mean while most answers are no better."""
    changes = {"judge_win_rate": 0.51, "judge_win_rate_interval": [0.45, 0.57], "vader_after": 0.12}
    assert "Over-optimisation" in _said(**changes)


def test_a_reward_that_did_not_rise_is_said_and_is_not_over_optimisation() -> None:
    said = _said(reward_after=0.05, judge_after=-0.3, vader_after=0.1)
    assert "PPO did not raise the reward it was paid by (+0.03 before, +0.05 after)" in said
    assert "Over-optimisation" not in said


def test_a_reward_without_any_judge_proves_nothing() -> None:
    said = _said(judge_after=None, vader_after=None)
    assert "no judge was asked, so this proves nothing" in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"length_after": 12.0}, "Length collapse: answers went from 17.2 to 12.0 tokens, 70 % of the SFT model's."),
        ({"length_after": 30.0}, "Answers grew from 17.2 to 30.0 tokens"),
        ({"distinct2_after": 0.80}, "Diversity was lost: distinct-2 fell from 0.911 to 0.800."),
        ({"duplicates": 0.31}, "31 % of the answers occur more than once."),
        ({"duplicates": 0.31, "duplicates_before": 0.02}, "31 % of the answers occur more than once (2 % before)."),
        ({"kl_policy_sft": 25.3}, "The policy is far from the SFT model: 25.3 nats a sequence"),
        ({"eos_rate": 0.2}, "Only 20 % of the answers end by themselves (62 % before)."),
    ],
)
def test_each_price_is_named_and_takes_the_all_clear_away(changes: dict[str, float], sentence: str) -> None:
    said = _said(**changes)
    assert sentence in said
    assert "No sign of hacking" not in said


@pytest.mark.parametrize(
    "changes",
    [
        {"length_after": 0.76 * 17.2},
        {"length_after": 1.49 * 17.2},
        {"distinct2_after": 0.9501 * 0.911},
        {"duplicates": 0.05},
        {"kl_policy_sft": 12.0},
    ],
)
def test_figures_inside_their_ranges_keep_the_all_clear(changes: dict[str, float]) -> None:
    assert "No sign of hacking" in _said(**changes)


def test_a_run_without_tether_says_so() -> None:
    assert "The run had no tether (kl_coef 0)" in _said(kl_coef=0.0)
    assert "no tether" not in _said()


def test_a_reward_model_that_may_be_a_coin_is_warned_about() -> None:
    said = [f for f in findings({**VERDICT, "reward_model_accuracy_interval": [0.49, 0.56]}) if "orders" in f.sentence]
    assert said[0].level == "warning" and "It may know nothing" in said[0].sentence


def test_fine_tuning_that_did_not_learn_is_warned_about() -> None:
    assert "Fine-tuning did not lower the loss" in _said(sft_loss_after=4.2)


def test_a_rounded_percentage_never_claims_all_or_nothing() -> None:
    assert "wins on 99.6 % of" in _said(judge_win_rate=255 / 256)
    assert "wins on 100 % of" in _said(judge_win_rate=1.0)


@pytest.mark.parametrize("key", [*VERDICT, ""])
def test_a_missing_figure_is_not_spoken_of_and_not_an_error(key: str) -> None:
    said = verdict_words({k: v for k, v in VERDICT.items() if k != key})
    assert all("None" not in sentence and "nan" not in sentence for sentence in said)


def test_an_empty_verdict_says_that_nothing_was_measured() -> None:
    assert verdict_words({}) == ["No win rate was measured, so nothing is said about better or worse."]


@pytest.mark.parametrize("odd", ["0.9", None, [0.9], {"value": 1}, True])
def test_a_figure_that_is_no_number_is_as_good_as_missing(odd: object) -> None:
    assert verdict_words({"judge_win_rate": odd}) == verdict_words({})
