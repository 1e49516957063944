"""The figures of an evaluation, said in plain sentences: better or not, by how much, and whether the reward was hacked (8.3.5).

One number never decides. The reward model is what PPO was paid by, so its score proves nothing; judges that no part was trained
on say whether the result is better, and length, variety, duplicates and KL say at what price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["good", "bad", "warning", "note"]

# Limits of the sentences. They are those of docs/metrics.md.
KL_FAR = 12.0  # nats a sequence
DISTINCT_SHARE = 0.95  # of SFT's distinct-2
LENGTH_SHARE = (0.75, 1.5)  # of SFT's mean length
DUPLICATES = 0.05
CLEAR_WIN = 0.85
REWARD_UP = 0.1  # deviations of the reward model
VADER_UP = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence and how it is meant: good, bad, a warning, or a note that judges nothing."""

    level: Level
    sentence: str


def verdict_words(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict in sentences, the most important first. Figures that are missing are not spoken of."""
    return [finding.sentence for finding in findings(verdict)]


def findings(verdict: Mapping[str, Any]) -> list[Finding]:
    """As `verdict_words`, each sentence with its level."""
    v = _Figures(verdict)
    said = [*_better(v), *_hacked(v), *_price(v)]
    troubles = [f for f in said if f.level in ("bad", "warning")]
    if not troubles and v.number("kl_policy_sft") is not None:
        said.append(
            Finding("good", "No sign of hacking: length, variety and distance to the SFT model stayed within their ranges.")
        )
    return [*said, *_parts(v)]


class _Figures:
    """Numbers of verdict.json by name; what is missing or no number is None."""

    def __init__(self, verdict: Mapping[str, Any]) -> None:
        self._verdict = verdict

    def number(self, key: str) -> float | None:
        value = self._verdict.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def change(self, key: str) -> tuple[float, float] | None:
        """(before, after), or None when either is missing."""
        before, after = self.number(f"{key}_before"), self.number(f"{key}_after")
        return None if before is None or after is None else (before, after)

    def interval(self, key: str) -> tuple[float, float] | None:
        value = self._verdict.get(key)
        if isinstance(value, (list, tuple)) and len(value) == 2:
            return float(value[0]), float(value[1])
        return None

    def count(self, key: str) -> int | None:
        value = self.number(key)
        return None if value is None else int(value)


def _better(v: _Figures) -> list[Finding]:
    """Whether the judge prefers the policy, and by how much."""
    rate, interval, prompts = v.number("judge_win_rate"), v.interval("judge_win_rate_interval"), v.count("num_prompts")
    if rate is None:
        return [Finding("note", "No win rate was measured, so nothing is said about better or worse.")]
    of = f" of {prompts:,} held-out prompts" if prompts else " of the held-out prompts"
    span = f" (95 % interval {_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
    share = f"its answer wins on {_percent(rate)}{of}{span}, by a judge that no part was trained on"
    low, high = interval or (rate, rate)
    if low > 0.5:
        strength = "clearly better" if rate >= CLEAR_WIN else "better"
        return [Finding("good", f"The policy is {strength} than the SFT model: {share}.")]
    if high < 0.5:
        return [Finding("bad", f"The policy is worse than the SFT model: {share}.")]
    return [Finding("warning", f"No difference to the SFT model can be told: {share}.")]


def _hacked(v: _Figures) -> list[Finding]:
    """Reward against judges: what rises together is learned, what rises alone is hacked."""
    reward = v.change("reward")
    if reward is None:
        return []
    before, after = reward
    judges = {name: moved for name in ("judge", "vader") if (moved := _judge_moved(v, name)) is not None}
    heard = " and ".join(_judge_words(v, name) for name in judges)
    if after - before <= REWARD_UP:
        return [Finding("warning", f"PPO did not raise the reward it was paid by ({before:+.2f} before, {after:+.2f} after).")]
    rise = f"The reward model's score rose from {before:+.2f} to {after:+.2f}"
    if not judges:
        return [Finding("note", f"{rise}; no judge was asked, so this proves nothing.")]
    if not any(moved > 0 for moved in judges.values()):
        how = "fell" if all(moved < 0 for moved in judges.values()) else "stayed flat or fell"
        return [
            Finding(
                "bad",
                f"Over-optimisation: {_lower(rise)} while the judges {how} ({heard}). "
                "The reward was hacked, not the task solved.",
            )
        ]
    if all(moved > 0 for moved in judges.values()):
        return [Finding("good", f"{rise} and the judges rose with it: {heard}.")]
    return [Finding("warning", f"The judges disagree: {_lower(rise)}, {heard}. Part of the gain may be over-optimisation.")]


def _judge_moved(v: _Figures, name: str) -> int | None:
    """+1 up, 0 flat, -1 down; None when it was not asked. The judge has moved when its win rate's interval is clear of 1/2."""
    change = v.change(name)
    if change is None:
        return None
    difference = change[1] - change[0]
    interval = v.interval("judge_win_rate_interval") if name == "judge" else None
    if interval is not None:
        return 1 if interval[0] > 0.5 and difference > 0 else -1 if interval[1] < 0.5 and difference < 0 else 0
    return 1 if difference > VADER_UP else -1 if difference < -VADER_UP else 0


def _judge_words(v: _Figures, name: str) -> str:
    change = v.change(name)
    assert change is not None  # only judges that moved, stayed or fell are spoken of
    return f"{'VADER' if name == 'vader' else 'judge'} {change[0]:+.2f} to {change[1]:+.2f}"


def _price(v: _Figures) -> list[Finding]:
    """What the gain cost: length, variety, duplicates, distance, answers that do not end."""
    found = []
    if (length := v.change("length")) is not None and length[0] > 0:
        share = length[1] / length[0]
        words = f"{length[0]:.1f} to {length[1]:.1f} tokens, {_percent(share)} of the SFT model's"
        if share < LENGTH_SHARE[0]:
            found.append(Finding("bad", f"Length collapse: answers went from {words}. Short answers are a hack too."))
        elif share > LENGTH_SHARE[1]:
            found.append(Finding("warning", f"Answers grew from {words}; look whether the reward pays for length."))
    if (distinct := v.change("distinct2")) is not None and distinct[1] < DISTINCT_SHARE * distinct[0]:
        found.append(Finding("bad", f"Diversity was lost: distinct-2 fell from {distinct[0]:.3f} to {distinct[1]:.3f}."))
    if (duplicates := v.number("duplicates")) is not None and duplicates > DUPLICATES:
        earlier = v.number("duplicates_before")
        was = "" if earlier is None else f" ({_percent(earlier)} before)"
        found.append(Finding("bad", f"{_percent(duplicates)} of the answers occur more than once{was}."))
    if (kl := v.number("kl_policy_sft")) is not None and kl > KL_FAR:
        found.append(
            Finding(
                "warning", f"The policy is far from the SFT model: {kl:.1f} nats a sequence (at most {KL_FAR:.0f} is healthy)."
            )
        )
    before, after = v.number("eos_rate_before"), v.number("eos_rate")
    if after is not None and after < 0.5 and (before is None or after < before):
        was = "" if before is None else f" ({_percent(before)} before)"
        found.append(Finding("warning", f"Only {_percent(after)} of the answers end by themselves{was}."))
    return found


def _parts(v: _Figures) -> list[Finding]:
    """How the run was set, and what its parts are worth."""
    said = []
    if v.number("kl_coef") == 0:
        said.append(
            Finding(
                "note", "The run had no tether (kl_coef 0): nothing but the learning rate held the policy near the SFT model."
            )
        )
    if (accuracy := v.number("reward_model_accuracy")) is not None:
        interval = v.interval("reward_model_accuracy_interval")
        span = f" (95 % interval {_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
        level: Level = "warning" if (interval[0] if interval else accuracy) <= 0.5 else "note"
        doubt = " It may know nothing." if level == "warning" else ""
        said.append(Finding(level, f"The reward model orders {_percent(accuracy)} of held-out pairs as people did{span}.{doubt}"))
    if (loss := v.change("sft_loss")) is not None:
        learned = loss[1] < loss[0]
        verb = "lowered" if learned else "did not lower"
        said.append(
            Finding(
                "note" if learned else "warning",
                f"Fine-tuning {verb} the loss on held-out sentences ({loss[0]:.2f} before, {loss[1]:.2f} after, nats a token).",
            )
        )
    return said


def _percent(share: float) -> str:
    """87 %, and 99.6 % where rounding would claim all or nothing."""
    whole = round(100 * share)
    if whole in (0, 100) and share not in (0, 1):
        return f"{100 * share:.1f} %"
    return f"{whole} %"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
