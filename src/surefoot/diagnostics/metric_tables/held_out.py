"""Looks at held-out prompts while PPO trains (surefoot overoptimize): every eval_every updates, and at the last."""

from __future__ import annotations

from surefoot.diagnostics.metric_tables import Metric

HELD_OUT = (
    Metric(
        "held_out/kl",
        "KL to the SFT model on held-out prompts",
        "How far the policy after this update stands from the SFT model, on its answers to held-out prompts. Exact for each "
        "token's distribution, over prefixes that the policy sampled: never negative.",
        "mean over answers of sum_t KL(pi_theta(.|x, y_<t) || pi_SFT(.|x, y_<t))",
        "held-out prompts, one answer each",
        "nats a sequence",
        "close to objective/kl, which is an update behind and on PPO's own prompts",
        "Much larger: the policy generalises badly from its prompts; use more of them.",
    ),
    Metric(
        "held_out/score",
        "Reward on held-out prompts",
        "The reward that PPO is paid, on answers to prompts it has not trained on.",
        "mean over answers of the score",
        "held-out prompts, one answer each",
        "reward",
        "rises with objective/scores",
        "Flat while objective/scores rises: the policy has learnt its prompts by heart; use more of them.",
    ),
    Metric(
        "held_out/judge/*",
        "Judge on held-out prompts",
        "A judge that no part of the reward was trained on, on the same answers.",
        "mean over answers of the judge's number",
        "held-out prompts, one answer each",
        "the judge's",
        "rises with held_out/score",
        "Falling while held_out/score rises is over-optimisation: stop at the KL where it turned, raise ppo.kl_coef, or use an "
        "ensemble; docs/overoptimization.md.",
    ),
    Metric(
        "held_out/length",
        "Length on held-out prompts",
        "Tokens of an answer, the end token among them.",
        "mean over answers of their tokens",
        "held-out prompts, one answer each",
        "tokens",
        "within half and one and a half of the SFT model's",
        "Drifting: the reward pays for length or for brevity; see drift/reward_length_corr.",
    ),
    Metric(
        "held_out/distinct_2",
        "Distinct-2 on held-out prompts",
        "How many of the word pairs in all answers are different ones.",
        "different word pairs / word pairs, over all answers together",
        "word pairs of all answers",
        "share",
        "above 0.9 of the first look's",
        "Falling: a phrase was found that pays; read the samples.",
    ),
)
