"""Every recorded number, in one table: what it is, formula, denominator, unit, healthy range, what to do when it leaves it.

docs/metrics.md is written from here (`python -m surefoot.diagnostics.metrics > docs/metrics.md`) and the report takes its
explanations from here. A test compares the page with the table, another the table with what runs record.
"""

from __future__ import annotations

from surefoot.diagnostics.metric_tables import Metric
from surefoot.diagnostics.metric_tables.control import CONTROL
from surefoot.diagnostics.metric_tables.drift import DRIFT
from surefoot.diagnostics.metric_tables.held_out import HELD_OUT
from surefoot.diagnostics.metric_tables.ppo import PPO
from surefoot.diagnostics.metric_tables.ppo_health import PPO_HEALTH
from surefoot.diagnostics.metric_tables.rounds import COMPARE, ROUNDS
from surefoot.diagnostics.metric_tables.sources import PPO_SOURCES
from surefoot.diagnostics.metric_tables.training import PAIRS, REWARD, SFT
from surefoot.diagnostics.metric_tables.verdict import EVALUATION, VERDICT

__all__ = ["GROUPS", "METRICS", "Metric", "find_metric", "is_known", "known_keys", "metrics_page", "verdict_keys"]

GROUPS: dict[str, tuple[Metric, ...]] = {
    "PPO for language models": PPO + PPO_HEALTH + PPO_SOURCES + DRIFT + HELD_OUT,
    "Supervised fine-tuning": SFT,
    "Reward model": REWARD,
    "Pairs": PAIRS,
    "Rounds": ROUNDS,
    "Comparison": COMPARE,
    "Control": CONTROL,
    "Verdict": VERDICT,
    "Evaluation of any two models": EVALUATION,
}

METRICS: tuple[Metric, ...] = tuple(metric for group in GROUPS.values() for metric in group)

_KINDS = {
    "ppo": PPO + PPO_HEALTH + DRIFT + HELD_OUT,
    "sft": SFT,
    "reward": REWARD,
    "pairs": PAIRS,
    "control": CONTROL,
    "evaluate": EVALUATION,
}
_KINDS |= {"rounds": ROUNDS, "compare": ROUNDS + COMPARE}

_INTRODUCTION = """# Metrics

Every number that a run records, with its formula, what it is divided by, its unit, where it should be, and what to do when it
is not. `metrics.jsonl` holds one object a step, `step` first; `timings.jsonl` holds wall times, so that two equal runs give
equal metrics; `verdict.json` holds the figures of an evaluation. All means are over what the mask keeps: padding changes no
number. This page is written by `python -m surefoot.diagnostics.metrics`.

The healthy ranges are those of small models and short answers (tens of tokens). They are where to look first, not laws.

Symbols: pi_theta is the policy, pi_old the policy that sampled, pi_SFT the reference, r = pi_theta / pi_old, A the advantage,
R the reward or, for the critic, the return, V the value. Logarithms are natural: 1 nat = 1.44 bits.
"""


def known_keys() -> frozenset[str]:
    """All documented keys. A key with `*` stands for a family; ask `is_known` about one recorded key."""
    return frozenset(metric.key for metric in METRICS) | {"step"}


def is_known(key: str) -> bool:
    """Whether a recorded key is documented, by its name or by its family."""
    return key == "step" or find_metric(key) is not None


def verdict_keys() -> frozenset[str]:
    """The keys that verdict.json may hold."""
    return frozenset(metric.key for metric in VERDICT)


def find_metric(key: str, kind: str = "") -> Metric | None:
    """The entry of `key`: its kind of run's (`loss` is another number in sft and in reward), else any, else its family's."""
    own = _KINDS.get(kind, ())
    named = [metric for metric in (*own, *METRICS) if metric.key == key]
    return next(iter(named or (metric for metric in METRICS if metric.covers(key))), None)


def metrics_page() -> str:
    """docs/metrics.md: a section a kind of run, an entry a number."""
    parts = [_INTRODUCTION]
    for name, group in GROUPS.items():
        parts.append(f"\n## {name}\n")
        parts.extend(_entry(metric) for metric in group)
    return "".join(parts)


def _entry(metric: Metric) -> str:
    return (
        f"\n### `{metric.key}`\n\n"
        f"**{metric.title}.** {metric.what}\n\n"
        f"- Formula: {metric.formula}\n"
        f"- Over: {metric.denominator}\n"
        f"- Unit: {metric.unit}\n"
        f"- Healthy: {metric.healthy}\n"
        f"- Otherwise: {metric.what_to_do}\n"
    )


if __name__ == "__main__":
    print(metrics_page(), end="")
