"""Alarms of PPO: a drift meter has left the range of the run's own beginning for two updates. In words, with advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from surefoot.config import PPOConfig
from surefoot.diagnostics.attribution import FEATURES
from surefoot.diagnostics.metrics import find_metric
from surefoot.diagnostics.prompt_shift import FIGURES
from surefoot.stages.beginning import BASELINE_UPDATES

PATIENCE = 2  # updates in a row before an alarm is raised: one rollout is a small sample; what pays is asked over more

_COMPARED = (
    "response_length/mean",
    "drift/distinct_2",
    "drift/repetition",
    "policy/entropy_avg",
    "drift/fluency",
    "drift/eos_rate",
    "drift/distance",
)
REWARD = tuple(f"reward_{feature}" for feature in FEATURES)  # what pays, by name
NAMES = ("length", "repetition", *REWARD, "entropy", "kl", "fluency", "eos", "distance", "prompts")


@dataclass(frozen=True, slots=True)
class Watch:
    """What alarms remember, saved with every checkpoint: the mean of the first rollouts, and each alarm's updates in a row."""

    seen: int = 0
    baseline: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    def after(
        self, metrics: Mapping[str, float], cfg: PPOConfig, words: Mapping[str, str] | None = None
    ) -> tuple[Watch, dict[str, str]]:
        """The watch after one more update, and what is out of range in it and was in the update before, in words by alarm.

        `words` are those of a `Look` at the rollout.
        """
        if self.seen < BASELINE_UPDATES:
            share = 1 / (self.seen + 1)
            mean = {k: self.baseline.get(k, 0.0) * (1 - share) + metrics[k] * share for k in _COMPARED if k in metrics}
            return replace(self, seen=self.seen + 1, baseline=mean), {}
        if "drift/fluency" not in metrics:  # no answer had a score: nothing is known of this update
            return replace(self, seen=self.seen + 1, rows={}), {}
        found = _out_of_range(metrics, self.baseline, cfg) | _named(metrics, words or {}, cfg)
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
    if "drift/distance" in now:
        was, far = pair("drift/distance")
        if far > cfg.alarm_distance * was:
            found["distance"] = f"answers lie {far:.2f} from what the reward model was trained on, and lay {was:.2f} at the start"
    return found


def _named(now: Mapping[str, float], words: Mapping[str, str], cfg: PPOConfig) -> dict[str, str]:
    """The alarms that say what pays, of which the furthest beyond its limit alone rings, and that of the prompts."""
    found = {}
    is_judged = any(key.startswith("judge/") for key in now)
    token = cfg.alarm_feature if is_judged else cfg.alarm_feature_unjudged
    limits = dict(zip(REWARD, (cfg.alarm_shape, cfg.alarm_shape, token, cfg.alarm_feature), strict=True))
    excess = {name: now[f"drift/{name}"] / limit for name, limit in limits.items() if f"drift/{name}" in now}
    if excess and max(excess.values()) > 1:
        name = max(excess, key=lambda one: excess[one])  # of equals the first, which is the simplest
        share, feature = now[f"drift/{name}"], name.removeprefix("reward_")
        what = words.get(f"drift/pays/{feature}", feature)
        found[name] = f"the reward pays for {what}, which explains {share:.0%} of its variance beyond the judges"
    moved = {name: now[f"drift/prompt_{name}"] for name in FIGURES if f"drift/prompt_{name}" in now}
    far = {name: x for name, x in moved.items() if x > cfg.alarm_prompts ** (2 if name == "length" else 1)}
    if far:
        which = " and ".join(f"{name} by {x:.0f} squared standard errors" for name, x in far.items())
        found["prompts"] = f"the prompts are other ones than at the start ({which}): {words.get('drift/prompts', '')}"
    return found
