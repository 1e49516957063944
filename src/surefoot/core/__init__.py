r"""The chapter's equations as pure functions of tensors and floats: table of contents.

section  equation                       function
8.3.1    log pi A                       `policy_gradient`
8.3.2    r = pi_theta / pi_old          `importance_ratio`
8.3.3    min(r A, clip(r) A)            `clipped_surrogate`, `clip_active`
8.3.4    r A - beta KL                  `kl_penalized_surrogate`
8.3.4    KL(p||q)                       `kl_categorical`, `kl_gaussian`, `kl_estimate`
8.3.4    beta exp(alpha (KL - target))  `exponential_rule`, and `doubling_rule`, `proportional_rule`
8.3.5    -log sigmoid(R_w - R_l)        `ranking_loss`, `pair_accuracy`
8.3.5    R - eta KL                     `tethered_rewards`
8.3.5    L_value, and the advantages    `td_errors`, `gae`, `value_loss`, `clipped_value_loss`, `explained_variance`
8.3.5    reward hacking                 `best_of_n_kl`, `gold_reward_best_of_n`, `gold_reward_rl`
all      E[.] over the steps that count  `zero_outside`, `masked_mean`, `Moments`, `moments`, `standardize`, `scale_only`

Tensors come back unreduced, except from `masked_mean`, `moments`, `explained_variance` and the rules. A `_loss` is minimised
and a `_surrogate` maximised. docs/equations.md sets each next to its formula and says where the chapter is corrected.
"""

from .advantage import clipped_value_loss, explained_variance, gae, td_errors, value_loss
from .coefficient import doubling_rule, exponential_rule, proportional_rule
from .kl import kl_categorical, kl_estimate, kl_gaussian
from .masking import Moments, masked_mean, moments, scale_only, standardize, zero_outside
from .preference import (
    best_of_n_kl,
    gold_reward_best_of_n,
    gold_reward_rl,
    pair_accuracy,
    ranking_loss,
    tethered_rewards,
)
from .surrogate import clip_active, clipped_surrogate, importance_ratio, kl_penalized_surrogate, policy_gradient

__all__ = [
    "Moments",
    "best_of_n_kl",
    "clip_active",
    "clipped_surrogate",
    "clipped_value_loss",
    "doubling_rule",
    "explained_variance",
    "exponential_rule",
    "gae",
    "gold_reward_best_of_n",
    "gold_reward_rl",
    "importance_ratio",
    "kl_categorical",
    "kl_estimate",
    "kl_gaussian",
    "kl_penalized_surrogate",
    "masked_mean",
    "moments",
    "pair_accuracy",
    "policy_gradient",
    "proportional_rule",
    "ranking_loss",
    "scale_only",
    "standardize",
    "td_errors",
    "tethered_rewards",
    "value_loss",
    "zero_outside",
]
