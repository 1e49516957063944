"""PPO for language models: the parts of a reward that has several, one line of metrics.jsonl an update."""

from __future__ import annotations

from surefoot.diagnostics.metric_tables import Metric

PPO_SOURCES = (
    Metric(
        "rewards/*disagreement/mean",
        "Disagreement of the ensemble",
        "How far the members of a reward ensemble lie apart on an answer: high where none of them was taught.",
        "mean of std_k R_k(x, y) over the K members, divided by K",
        "rows with a valid score in the rollout",
        "deviations of a member's score",
        "below 1 and steady; on held-out answers of the training data it is what is normal",
        "Rising with the reward: the policy has left what the members know; use ensemble = min or mean_minus_std, raise "
        "kl_coef, or have those answers voted on.",
    ),
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
        "0: the source tells no answer from another, so it teaches nothing. Far above the others: lower its weight.",
    ),
)
