"""Alarms of PPO: a drift meter has left the range of the run's own beginning for two updates. In words, with advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from surefoot.config import PPOConfig
from surefoot.diagnostics.metrics import find_metric

BASELINE_UPDATES = 2  # the policy is then still close to the SFT model; their mean is what later updates are compared with
PATIENCE = 2  # updates in a row before an alarm is raised: one rollout is a small sample

_COMPARED = (
    "response_length/mean",
    "drift/distinct_2",
    "drift/repetition",
    "policy/entropy_avg",
    "drift/fluency",
    "drift/eos_rate",
)
NAMES = ("length", "repetition", "reward_length", "entropy", "kl", "fluency", "eos")


@dataclass(frozen=True, slots=True)
class Watch:
    """What alarms remember, saved with every checkpoint: the mean of the first rollouts, and each alarm's updates in a row."""

    seen: int = 0
    baseline: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    def after(self, metrics: Mapping[str, float], cfg: PPOConfig) -> tuple[Watch, dict[str, str]]:
        """The watch after one more update, and what is out of range in it and was in the update before, in words by alarm."""
        if self.seen < BASELINE_UPDATES:
            share = 1 / (self.seen + 1)
            mean = {k: self.baseline.get(k, 0.0) * (1 - share) + metrics[k] * share for k in _COMPARED if k in metrics}
            return replace(self, seen=self.seen + 1, baseline=mean), {}
        if "drift/fluency" not in metrics:  # no answer had a score: nothing is known of this update
            return replace(self, seen=self.seen + 1, rows={}), {}
        found = _out_of_range(metrics, self.baseline, cfg)
        rows = {name: self.rows.get(name, 0) + 1 for name in found}
        return replace(self, seen=self.seen + 1, rows=rows), {n: words for n, words in found.items() if rows[n] >= PATIENCE}

    def is_new(self, name: str) -> bool:
        """Whether an alarm that rings now did not ring in the update before."""
        return self.rows.get(name, 0) == PATIENCE


def alarm_metrics(ringing: Mapping[str, str]) -> dict[str, float]:
    """Metrics alarm/NAME: 1 while it rings, else 0."""
    return {f"alarm/{name}": float(name in ringing) for name in NAMES}


def advice(name: str) -> str:
    """What to do, from the table of metrics."""
    metric = find_metric(f"alarm/{name}", "ppo")
    assert metric is not None  # a test holds that every alarm is documented
    return metric.what_to_do


def _out_of_range(now: Mapping[str, float], before: Mapping[str, float], cfg: PPOConfig) -> dict[str, str]:
    """Each alarm whose figure is out of range, with the figures in words."""
    found = {}

    def pair(key: str) -> tuple[float, float]:
        return before.get(key, now[key]), now[key]

    was, length = pair("response_length/mean")
    if was > 0 and abs(length / was - 1) > cfg.alarm_length:
        found["length"] = f"answers have {length:.1f} tokens, and had {was:.1f} at the start"
    (was, variety), (looped, loops) = pair("drift/distinct_2"), pair("drift/repetition")
    if variety < cfg.alarm_variety * was:
        found["repetition"] = f"{variety:.2f} of all word pairs are different ones, and {was:.2f} were at the start"
    elif loops > looped + 1 - cfg.alarm_variety:
        found["repetition"] = f"{loops:.0%} of an answer's phrases stood in it before, and {looped:.0%} did at the start"
    pays = now["drift/reward_length_corr"]
    if abs(pays) > cfg.alarm_reward_length:
        found["reward_length"] = (
            f"the reward goes with the {'length' if pays > 0 else 'shortness'} of an answer (correlation {pays:+.2f})"
        )
    was, entropy = pair("policy/entropy_avg")
    if entropy < cfg.alarm_entropy * was:
        found["entropy"] = f"entropy is {entropy:.3g} nats a token, and was {was:.3g} at the start"
    if now["objective/kl"] > cfg.alarm_kl:
        found["kl"] = f"the policy is {now['objective/kl']:.1f} nats a sequence away from the SFT model"
    was, fluency = pair("drift/fluency")
    if fluency < was - cfg.alarm_fluency:
        found["fluency"] = f"the SFT model gives a token of an answer {fluency:.2f} nats, and gave {was:.2f} at the start"
    was, ends = pair("drift/eos_rate")
    if ends < 0.5 * was and was > 0.1:
        found["eos"] = f"{ends:.0%} of the answers end by themselves, and {was:.0%} did at the start"
    return found
