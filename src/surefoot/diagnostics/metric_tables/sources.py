"""PPO for language models: the parts of a reward that has several, one line of metrics.jsonl an update."""

from __future__ import annotations

from surefoot.diagnostics.metric_tables import Metric

PPO_SOURCES = (
    Metric(
        "rewards/*/mean",
        "Mean of a part of the reward",
        "What one of several reward sources (reward_source.sources) gives, or one figure of an ensemble, before any weight.",
        "mean of R_i(x, y)",
        "rows with a valid score in the rollout",
        "reward of that source",
        "every part that is paid rises, or stands still; one of weight 0 shows what nobody pays for",
        "One rises and another falls: the sum trades them; change reward_source.weights.",
    ),
    Metric(
        "rewards/*/std",
        "Deviation of a part of the reward",
        "How far the answers of a rollout lie apart by one source: its share in what the policy learns from.",
        "standard deviation of R_i(x, y)",
        "rows with a valid score in the rollout",
        "reward of that source",
        "times its weight, of the same size as the others'",
        "0: the source tells no answer from another and teaches nothing. Far above the others: it decides alone; lower its weight.",
    ),
)
