"""PPO for language models: has the policy drifted from what the reward model knows, and which alarms ring."""

from __future__ import annotations

from surefoot.diagnostics.metric_tables import Metric

_TOKENS, _ANSWERS = "valid tokens of the rollout", "answers of the rollout that have a score"
_RINGS = "1 in an update in which it rings, else 0; it wants to be out of range in two updates in a row"


def _third(name: str, which: str) -> Metric:
    return Metric(
        f"drift/kl_{name}",
        f"KL, {which} third",
        f"KL to the SFT model a token in the {which} third of an answer, by kl_estimator.",
        f"mean of KL_t over the tokens t of n with 3 t // n = {('begin', 'middle', 'end').index(name)}",
        f"valid tokens in the {which} third of their answer",
        "nats a token",
        "of the size of the other thirds",
        "One third far above the others: the policy has learned one opening, or one ending. Look at the replay of the report.",
    )


def _alarm(name: str, title: str, what: str, what_to_do: str) -> Metric:
    return Metric(f"alarm/{name}", title, what, _RINGS, "none: yes or no", "0 or 1", "0", what_to_do)


DRIFT = (
    _third("begin", "first"),
    _third("middle", "second"),
    _third("end", "last"),
    Metric(
        "drift/fluency",
        "Fluency",
        "How likely the SFT model finds the policy's answers.",
        "mean of log pi_SFT(y_t | x, y_<t)",
        _TOKENS,
        "nats a token",
        "within 1 nat of its beginning; it rises where the policy settles on likely words",
        "Falling: the policy writes what the SFT model would not; raise kl_coef or stop earlier.",
    ),
    Metric(
        "drift/distinct_1",
        "Distinct words",
        "Different words over all words of a rollout's answers.",
        "distinct-1, pooled over the answers (Li et al. 2016)",
        "words of all answers of the rollout",
        "share",
        "above 0.6 of its beginning",
        "Falling: the policy repeats a few words; raise kl_coef or ent_coef.",
    ),
    Metric(
        "drift/distinct_2",
        "Distinct word pairs",
        "Different pairs of neighbouring words over all pairs of a rollout's answers.",
        "distinct-2, pooled over the answers (Li et al. 2016)",
        "word pairs of all answers of the rollout",
        "share",
        "above 0.6 of its beginning",
        "Falling: answers resemble each other; raise kl_coef or ent_coef.",
    ),
    Metric(
        "drift/repetition",
        "Repetition",
        "Share of an answer's three-word phrases that stood in it before.",
        "mean over answers of 1 - distinct 3-grams / 3-grams",
        _ANSWERS,
        "share",
        "below 0.1",
        "Rising: answers loop; the reward may pay for repetition. Raise kl_coef, look at the replay of the report.",
    ),
    Metric(
        "drift/duplicates",
        "Duplicates",
        "Share of answers that another answer of the rollout equals, case and white space aside.",
        "answers that occur at least twice / answers",
        _ANSWERS,
        "share",
        "near its beginning",
        "Rising: one answer is given to everything; lower learning_rate, raise kl_coef or ent_coef.",
    ),
    Metric(
        "drift/eos_rate",
        "Share that ends",
        "Share of answers that end by themselves.",
        "finished answers / answers",
        _ANSWERS,
        "share",
        "above 0.8",
        "Falling: the reward pays for length, or the end is forgotten; raise missing_eos_penalty.",
    ),
    Metric(
        "drift/reward_length_corr",
        "Reward and length",
        "Whether longer answers are paid better.",
        "Pearson correlation of R(x, y) and the tokens of y; 0 where one does not vary",
        _ANSWERS,
        "1",
        "between -0.5 and 0.5",
        "Near 1 or -1: the reward is a reward for length; balance lengths in the preferences, or use length_penalty.",
    ),
    _alarm(
        "length",
        "Alarm: length",
        "Answers are longer or shorter than in the first two updates by more than alarm_length.",
        "The reward or a penalty pays for length: read the longest answers, balance the preferences, set length_penalty.",
    ),
    _alarm(
        "repetition",
        "Alarm: repetition",
        "Distinct-2 has fallen below alarm_variety of the first two updates', or answers loop.",
        "The policy has found a phrase that pays: read the best paid answers in the replay, raise kl_coef, stop earlier.",
    ),
    _alarm(
        "reward_length",
        "Alarm: reward and length",
        "The reward's correlation with length is beyond alarm_reward_length.",
        "Length alone raises the reward: look at its accuracy by length gap, balance the preferences, set length_penalty.",
    ),
    _alarm(
        "entropy",
        "Alarm: entropy",
        "Entropy a token has fallen below alarm_entropy of the first two updates'.",
        "The policy says one thing: lower learning_rate, raise kl_coef or ent_coef, go back to an earlier checkpoint.",
    ),
    _alarm(
        "kl",
        "Alarm: KL",
        "KL to the SFT model is above alarm_kl.",
        "So far from the SFT model the reward model scores what it has never seen: raise kl_coef, set kl_max, ask judges.",
    ),
    _alarm(
        "fluency",
        "Alarm: fluency",
        "The SFT model's log-prob of the answers has fallen by more than alarm_fluency.",
        "Answers have become unlike language as the SFT model knows it: read them in the replay, raise kl_coef.",
    ),
    _alarm(
        "eos",
        "Alarm: ends",
        "Less than half as many answers end by themselves as in the first two updates.",
        "The end does not pay: raise missing_eos_penalty or response_length.",
    ),
)
