"""What a reward pays for: the share of its variance that one simple feature of an answer explains and no judge does.

Features are length, repetition, each token (whether and how often it occurs) and each token in the first or the last place.
Everything is sums over answers: those of two rollouts, or of two processes, add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEATURES = ("length", "repetition", "token", "position")  # of equal shares the first is named
MIN_ANSWERS = 5  # a token that fewer answers have, or lack, is not looked at,
MIN_SHARE = 0.02  # nor one of less than this share of them
CHANCE = 0.02  # that, where nothing pays, the best of all features of its kind is said to
_LENGTH, _REPETITION, _HAS, _COUNT, _FIRST, _LAST = range(6)
_FEATURE_OF = torch.tensor([0, 1, 2, 2, 3, 3])  # a kind of key -> its place in FEATURES
_BASE = 1 << 40  # a key is kind * _BASE + token id


@dataclass(frozen=True, slots=True)
class FeatureSums:
    """Sums over answers, float64. Column 0 of the M targets is the reward, the others are judges.

    `targets` [M] are their sums, `products` [M, M] those of each times each. `keys` [K] are features, and `values` [K, M + 3]
    holds of each: answers in which it is not 0, sum f, sum f^2, and sum f * target for each target.
    """

    count: Tensor
    targets: Tensor
    products: Tensor
    keys: Tensor
    values: Tensor

    def __add__(self, other: FeatureSums) -> FeatureSums:
        keys, place = torch.cat([self.keys, other.keys]).unique(return_inverse=True)
        both = torch.cat([self.values, other.values])
        values = both.new_zeros(len(keys), both.shape[1]).index_add_(0, place, both)
        return FeatureSums(self.count + other.count, self.targets + other.targets, self.products + other.products, keys, values)

    def has(self, tokens: Tensor) -> Tensor:
        """Share of the answers in which each of `tokens` occurs."""
        found = torch.zeros(len(tokens), dtype=torch.float64)
        where = torch.searchsorted(self.keys, _HAS * _BASE + tokens).clamp(max=len(self.keys) - 1)
        there = self.keys[where] == _HAS * _BASE + tokens
        found[there] = self.values[where[there], 0]
        return found / self.count


@dataclass(frozen=True, slots=True)
class Attribution:
    """Of each of FEATURES, the largest share of the reward's variance that it explains beyond the judges, and which in words.

    The share is one that it has at least: what was measured, less what the best of so many features would have by chance.
    """

    shares: tuple[float, ...]
    words: tuple[str, ...]


def feature_sums(ids: Tensor, mask: Tensor, finished: Tensor, targets: Tensor) -> FeatureSums:
    """The sums of a rollout's answers: `ids` and `mask` [B, T], `finished` [B], `targets` [B, M].

    Rows without a token in the mask are left out.

    The token that ends a finished answer counts for its length alone.
    """
    rows = mask.any(1)
    ids, mask, finished, y = (x.cpu()[rows.cpu()] for x in (ids, mask, finished, targets.double()))
    length = mask.sum(1)
    content = mask & (torch.arange(mask.shape[1]) < (length - finished.long())[:, None])
    row = torch.arange(len(ids))[:, None].expand_as(ids)
    said, times = torch.stack([row[content], ids[content]]).unique(dim=1, return_counts=True)
    words = content.sum(1)
    distinct = torch.zeros(len(ids), dtype=torch.long).index_add_(0, said[0], torch.ones_like(said[0]))
    repeated = 1 - distinct / words.clamp(min=1)
    some = (words > 0).nonzero()[:, 0]
    every, ones = torch.arange(len(ids)), torch.ones(len(some))
    parts = [
        (_LENGTH, torch.zeros_like(every), every, length),
        (_REPETITION, torch.zeros_like(every), every, repeated),
        (_HAS, said[1], said[0], torch.ones(said.shape[1])),
        (_COUNT, said[1], said[0], times),
        (_FIRST, ids[some, 0], some, ones),
        (_LAST, ids[some, words[some] - 1], some, ones),
    ]
    key = torch.cat([kind * _BASE + token for kind, token, _, _ in parts])
    at = torch.cat([where for _, _, where, _ in parts])
    f = torch.cat([value.double() for _, _, _, value in parts])[:, None]
    keys, place = key.unique(return_inverse=True)
    each = torch.cat([(f != 0).double(), f, f * f, f * y[at]], 1)
    values = each.new_zeros(len(keys), each.shape[1]).index_add_(0, place, each)
    return FeatureSums(torch.tensor(float(len(ids)), dtype=torch.float64), y.sum(0), y.T @ y, keys, values)


def attribution(sums: FeatureSums, text_of: Callable[[int], str]) -> Attribution:
    r"""What explains the reward R beyond the judges J: Delta R^2 = cov(f, R | J)^2 / (var(f | J) var(R)), of each feature f.

    It is R^2 of the regression of R on J and f less that on J alone; without judges the squared correlation of R and f. In a
    sample of the run's beginning and now it is what raised the reward: a feature that the policy has come to show always, and
    never did before, still explains the difference. `text_of` says a token.

    The partial correlation that this is the square of, but for the judges' share, is lowered by q standard errors of Fisher's z,
    1 / sqrt(n - 3 - number of judges), where q is the `surety` of one feature for length and for repetition, and of as many as
    there are for tokens and their places: in a few dozen answers some token goes with the reward by chance.
    """
    n = sums.count
    freedom = float(n) - 2 - len(sums.targets)
    if freedom < 2 * MIN_ANSWERS:
        return Attribution((0.0,) * len(FEATURES), FEATURES)
    mean = sums.targets / n
    cov = sums.products / n - torch.outer(mean, mean)
    support, f_mean = sums.values[:, 0], sums.values[:, 1] / n
    var_f = sums.values[:, 2] / n - f_mean**2
    cov_f = sums.values[:, 3:] / n - f_mean[:, None] * mean
    judges = cov[1:, 1:]
    solved = torch.linalg.pinv(judges, hermitian=True, rtol=1e-9) if len(judges) else judges
    weights = solved @ cov[1:, 0]
    left_f = var_f - ((cov_f[:, 1:] @ solved) * cov_f[:, 1:]).sum(1)
    left_cov = cov_f[:, 0] - cov_f[:, 1:] @ weights
    kind = sums.keys // _BASE
    rarer = torch.where(kind == _COUNT, support, torch.minimum(support, n - support))  # where all have it, times may differ yet
    seldom = (kind > _REPETITION) & (rarer < max(MIN_ANSWERS, MIN_SHARE * n.item()))
    left_reward = cov[0, 0] - weights @ cov[1:, 0]
    idle = (left_f <= 1e-6 * var_f) | (var_f <= 1e-12) | (left_reward <= 1e-9 * cov[0, 0]) | (cov[0, 0] <= 1e-12)
    partial = torch.where(seldom | idle, 0.0, left_cov.abs() / (left_f * left_reward).clamp(min=0).sqrt()).clamp(0, 1 - 1e-9)
    feature_of, of_tokens = _FEATURE_OF[kind], kind > _REPETITION
    rivals = torch.where(of_tokens, (of_tokens & ~seldom & ~idle).sum(), 1)
    lowered = surety(rivals) / freedom**0.5
    share = (partial.atanh() - lowered).clamp(min=0).tanh() ** 2 * (left_reward / cov[0, 0].clamp(min=1e-12))
    shares, words = [], []
    for feature in range(len(FEATURES)):
        own = (feature_of == feature).nonzero()[:, 0]
        best = own[share[own].argmax()] if len(own) else None
        shares.append(0.0 if best is None else share[best].item())
        words.append(FEATURES[feature] if best is None else _words(int(sums.keys[best]), float(left_cov[best]) > 0, text_of))
    return Attribution(tuple(shares), tuple(words))


def surety(rivals: Tensor) -> Tensor:
    """The normal quantile of 1 - CHANCE / (2 rivals), Bonferroni's for the best of so many features: 2.3 for one, 4.2 for 800."""
    return torch.special.ndtri(1 - CHANCE / (2 * rivals.double().clamp(min=1)))


def _words(key: int, pays: bool, text_of: Callable[[int], str]) -> str:
    """A feature and its direction: "the token ' foo' in the first place"."""
    kind, token = divmod(key, _BASE)
    if kind == _LENGTH:
        return "length" if pays else "shortness"
    if kind == _REPETITION:
        return "repetition" if pays else "a lack of repetition"
    place = {_FIRST: " in the first place", _LAST: " in the last place"}.get(kind, "")
    return f"{'' if pays else 'the absence of '}the token {text_of(token)!r}{place}"


@dataclass(frozen=True, slots=True)
class Mover:
    """A token, the shares of answers that have it at the run's beginning and now, and how sure it is that they differ."""

    token: str
    before: float
    now: float
    z: float


def movers(before: FeatureSums, now: FeatureSums, text_of: Callable[[int], str], count: int = 3) -> list[Mover]:
    """The `count` tokens whose share of answers moved most: by |z| of the log-odds ratio (Monroe et al. 2008, half an answer
    added to each cell), so that a token of two answers does not lead."""
    keys = torch.cat([before.keys, now.keys]).unique()
    tokens = keys[keys // _BASE == _HAS] - _HAS * _BASE
    a, b = before.has(tokens), now.has(tokens)

    def odds(share: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        yes, no = share * n + 0.5, (1 - share) * n + 0.5
        return (yes / no).log(), 1 / yes + 1 / no

    (old, old_var), (new, new_var) = odds(a, before.count), odds(b, now.count)
    z = (new - old) / (old_var + new_var).sqrt()
    order: Sequence[int] = z.abs().argsort(descending=True, stable=True)[:count].tolist()
    return [Mover(text_of(int(tokens[i])), a[i].item(), b[i].item(), z[i].item()) for i in order]
