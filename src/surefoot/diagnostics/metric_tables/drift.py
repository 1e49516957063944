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


_PAYS = "least share that the best such feature explains, at most 1; 0 below a few answers"
_SPLIT = "the answers of the first two updates and of the last three, together"


def _pays(name: str, title: str, what: str, healthy: str, what_to_do: str) -> Metric:
    return Metric(
        f"drift/reward_{name}",
        title,
        f"How much of the reward's variance {what} explains that the judges do not. {_PAYS.capitalize()}.",
        "R^2 of R on judges and feature less that on judges; its partial correlation lowered by q / sqrt(n - 3 - judges) in z, "
        "q = 2.3 for length and repetition, about 4 for tokens and places (Bonferroni over as many as there are)",
        _SPLIT,
        "share",
        healthy,
        what_to_do,
    )


def _prompts(name: str, title: str, what: str) -> Metric:
    return Metric(
        f"drift/prompt_{name}",
        title,
        what,
        "mean over columns of (mean now - mean before)^2 / (s^2 (1 / n_now + 1 / n_before)), s^2 pooled",
        "different prompts of the first two updates, and of this one",
        "squared standard errors",
        "about 1; below 5 (length: 25)",
        "High: the prompts of this part of the data are others than those the run began with; shuffle them, or start a new run.",
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
    _pays(
        "length",
        "Reward and length, beyond judges",
        "the number of an answer's tokens",
        "below 0.055",
        "High: length is paid; balance lengths in the preferences, or use length_penalty.",
    ),
    _pays(
        "repetition",
        "Reward and repetition, beyond judges",
        "the share of an answer's tokens that stood in it before",
        "below 0.055",
        "High: repetition is paid; collect preferences against it, raise kl_coef.",
    ),
    _pays(
        "token",
        "Reward and one token, beyond judges",
        "whether, or how often, one token occurs",
        "below 0.1 with a judge, below 0.25 without",
        "High: drift/pays/token names it; look for it in the preferences, or mend the reward.",
    ),
    _pays(
        "position",
        "Reward and a place, beyond judges",
        "one token in the first or the last place",
        "below 0.1",
        "High: drift/pays/position names it; look at how answers begin and end in the preferences.",
    ),
    Metric(
        "drift/pays/*",
        "What pays",
        "The feature of its kind that explains most of the reward beyond the judges, in words.",
        "argmax over the features of the kind: length, repetition, token, position",
        _SPLIT,
        "words",
        "any while the shares are low",
        "An alarm names it too: read answers that have it.",
    ),
    Metric(
        "drift/top_mover",
        "Top mover",
        "How sure it is that the token whose share of answers moved most has moved.",
        "max |z| of the log-odds ratio of the shares (Monroe et al. 2008, 1/2 added to each cell)",
        "answers of the first two updates, and of this one",
        "standard errors",
        "grows slowly; it says what is learned",
        "Above 6: drift/top_movers names the token: ask whether people would pay for it.",
    ),
    Metric(
        "drift/top_movers",
        "Top movers",
        "The three tokens whose share of answers moved most, with the share at the beginning and now.",
        "by |z| as drift/top_mover",
        "answers of the first two updates, and of this one",
        "words",
        "words of the task",
        "Words that have nothing to do with the task: the reward pays for them; see drift/pays/token.",
    ),
    Metric(
        "drift/distance",
        "Distance from the reward model's answers",
        "How far answers lie from those that the reward model was trained on, by the states its head reads.",
        "mean of sqrt((f - m)' S^-1 (f - m) / D): m, S mean and shrunk covariance of the training answers (Lee et al. 2018)",
        _ANSWERS,
        "1 is usual for a training answer",
        "below twice its beginning",
        "Rising: the reward is a guess there; raise kl_coef, or collect preferences of such answers (ppo.alarms = label).",
    ),
    Metric(
        "drift/distance_percentile",
        "Percentile of the distance",
        "Where answers stand among the reward model's held-out answers, by distance.",
        "mean of the share of held-out answers that lie nearer",
        _ANSWERS,
        "percent",
        "about 50; the SFT model's own answers may begin higher",
        "Near 100: nearly all answers are stranger to the reward model than those it was tested on; see drift/distance.",
    ),
    _prompts("length", "Shift of prompts: length", "Whether prompts are longer or shorter than at the beginning."),
    _prompts("tokens", "Shift of prompts: tokens", "Whether prompts hold other tokens, counted in 64 buckets by id."),
    _prompts("states", "Shift of prompts: states", "Whether the SFT model sees other prompts: its states at their last token."),
    Metric(
        "drift/prompts",
        "Prompts, in words",
        "Tokens of a prompt now and at the beginning.",
        "means",
        "different prompts of the first two updates, and of this one",
        "words",
        "alike",
        "See drift/prompt_states.",
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
        "Length explains more of the reward than alarm_shape, beyond the judges.",
        "Length alone raises the reward: look at its accuracy by length gap, balance the preferences, set length_penalty.",
    ),
    _alarm(
        "reward_repetition",
        "Alarm: reward and repetition",
        "Repeated tokens explain more of the reward than alarm_shape, beyond the judges.",
        "Saying a thing twice is paid: read the best paid answers in the replay, collect preferences against it, raise kl_coef.",
    ),
    _alarm(
        "reward_token",
        "Alarm: reward and a token",
        "One token explains more of the reward than alarm_feature, beyond the judges, or than alarm_feature_unjudged without.",
        "One token is paid whatever the answer says: look for it in the preferences, mend the reward, or raise kl_coef.",
    ),
    _alarm(
        "reward_position",
        "Alarm: reward and a place",
        "A token in the first or the last place explains more of the reward than alarm_feature, beyond the judges.",
        "An opening or an ending is paid whatever stands between: look for it in the preferences, or mend the reward.",
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
    _alarm(
        "distance",
        "Alarm: distance",
        "Answers lie further from the reward model's training answers than alarm_distance times the first two updates' did.",
        "The reward is a guess there: raise kl_coef, stop earlier, or have such answers labelled (ppo.alarms = label).",
    ),
    _alarm(
        "prompts",
        "Alarm: prompts",
        "Length, tokens or states of the prompts have moved by more than alarm_prompts standard errors since the start.",
        "The data changes midway: shuffle data.prompts. The policy is not to blame, but what it learned may not hold.",
    ),
)
