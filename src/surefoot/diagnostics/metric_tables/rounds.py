"""Rounds and comparisons: one line of metrics.jsonl a round, one for a comparison."""

from __future__ import annotations

from surefoot.diagnostics.metric_tables import Metric

ROUNDS = (
    Metric(
        "rounds/votes",
        "Votes so far",
        "Valid votes that the round's reward model has seen, of all rounds, whatever they say.",
        "count",
        "none: a count",
        "votes",
        "grows by about rounds/pairs a round",
        "Less: pairs were skipped, or votes were taken back.",
    ),
    Metric(
        "rounds/pairs",
        "Pairs of the round",
        "Pairs that were queued in this round.",
        "count",
        "none: a count",
        "pairs",
        "pairs.max_pairs, or close to rounds.prompts_per_round",
        "Fewer: the policy gives the same answer twice; raise rollout.temperature or lower ppo.learning_rate.",
    ),
    Metric(
        "rounds/reward_accuracy",
        "Accuracy of the reward model",
        "How often the round's reward model orders held-out preferences as they were judged.",
        "as validation/accuracy, over pairs with a preference",
        "held-out pairs with a preference",
        "share",
        "rises with the votes; 0.6 to 0.75 on single people's votes",
        "Falling from round to round: the new answers are harder to tell apart, or the votes are noise; look at agreement.",
    ),
    Metric(
        "rounds/kl",
        "KL to the SFT model after the round",
        "How far the round's policy stands from the SFT model, on held-out prompts.",
        "as kl_policy_sft of the round's evaluation",
        "answers of the evaluation",
        "nats a sequence",
        "grows more slowly from round to round; below 12",
        "Above: raise ppo.kl_coef; the reward model is asked far from its votes.",
    ),
    Metric(
        "rounds/distinct2",
        "Distinct-2 after the round",
        "Variety of the round's answers to held-out prompts.",
        "as distinct2_after",
        "all word pairs of the answers",
        "share",
        "at least 0.9 of round 0's",
        "Falling: raise ppo.ent_coef or ppo.kl_coef.",
    ),
    Metric(
        "rounds/length",
        "Length after the round",
        "Mean length of the round's answers to held-out prompts.",
        "as length_after",
        "answers of the evaluation",
        "tokens",
        "within a third of round 0's",
        "Drifting: see whether the votes prefer length (docs/rounds.md), and set ppo.length_penalty.",
    ),
    Metric(
        "win_rate/*",
        "Win rate by a judge",
        "Share of held-out prompts on which a judge rates the one model's answer above the other's, ties half: a round's policy "
        "against the SFT model, or A against B of a comparison.",
        "mean of 1, 1/2 or 0",
        "held-out prompts",
        "share",
        "rounds: above 0.5 and not falling",
        "Falling while the reward rises: the reward model is gamed; collect votes on the new answers.",
    ),
)

COMPARE = (
    Metric(
        "people/win_rate",
        "Win rate by people",
        "Share of judged pairs in which people preferred A's answer to B's; ties, two bad answers and equal answers count half.",
        "mean over pairs of the share of votes for A",
        "prompts that were judged, and those with two equal answers",
        "share",
        "read it with its interval in compare.json",
        "An interval around 0.5: more prompts, or no difference.",
    ),
    Metric(
        "people/prompts",
        "Prompts judged by people",
        "Prompts that people/win_rate is over.",
        "count",
        "none: a count",
        "prompts",
        "close to evaluate.num_prompts",
        "Fewer: pairs were skipped.",
    ),
)
