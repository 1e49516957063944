"""Replay: a few answers of each update with every token's figures, for replay.jsonl. Bounded, without wall times, no chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from surefoot.config import PPOConfig
from surefoot.core import clip_active, importance_ratio, standardize
from surefoot.lm.roles import LanguageActorCritic
from surefoot.stages.rollouts import Rollout

NUM_REPLAYED = 8  # answers of an update: half of them the rollout's first, half those that look most like a hacked reward
MAX_UPDATES = 100  # of a run; of a longer one evenly spaced ones, the first and the last among them
MAX_TOKENS = 256  # of an answer; further ones are counted and left out
MAX_PROMPT = 2_000  # characters; of a longer one the end


def is_replayed(update: int, num_updates: int) -> bool:
    """Whether `update` (1 to num_updates) is one of those that are recorded."""
    if num_updates <= MAX_UPDATES:
        return True
    return update in {1 + round(i * (num_updates - 1) / (MAX_UPDATES - 1)) for i in range(MAX_UPDATES)}


def suspicion(scores: Sequence[float], judged: Sequence[float]) -> list[float]:
    """How much better the reward ranks an answer than the judge does, -1 to 1: 1 is best by the one and worst by the other."""
    last = max(1, len(scores) - 1)
    return [(a - b) / last for a, b in zip(_ranks(scores), _ranks(judged), strict=True)]


def _ranks(values: Sequence[float]) -> list[float]:
    """0 for the least to n - 1 for the largest; equal values share the mean of their ranks."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    count: dict[float, int] = {}
    for place, value in enumerate(ordered):
        first.setdefault(value, place)
        count[value] = count.get(value, 0) + 1
    return [first[value] + (count[value] - 1) / 2 for value in values]


def most_suspicious(seen: Rollout, judgements: Mapping[str, Sequence[float]], first: int = 0) -> list[int]:
    """The rows with an answer after the `first` of them, those whose reward outdoes the judges most in front; without judges,
    the best paid."""
    rest = [i for i, counts in enumerate(seen.batch.mask.any(1).tolist()) if counts][first:]
    scores = [float(seen.scores.value[i]) for i in rest]
    gaps = [suspicion(scores, [numbers[i] for i in rest]) for numbers in judgements.values()]
    by_row = {i: (sum(gap[k] for gap in gaps), scores[k]) for k, i in enumerate(rest)}
    return sorted(rest, key=lambda i: (by_row[i], -i), reverse=True)


def chosen_rows(seen: Rollout, judgements: Mapping[str, Sequence[float]]) -> list[int]:
    """A rollout's first rows, and those of the others that are most suspicious."""
    first = [i for i, counts in enumerate(seen.batch.mask.any(1).tolist()) if counts][: NUM_REPLAYED // 2]
    return sorted([*first, *most_suspicious(seen, judgements, len(first))[: NUM_REPLAYED - len(first)]])


@torch.no_grad()
def replay_rows(
    seen: Rollout, policy: LanguageActorCritic, cfg: PPOConfig, judgements: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, object]]:
    """What goes into replay.jsonl, an answer a row, a list an entry a token. The policy stands after its update.

    Log-probs (of the policy that sampled, and of the SFT model) and KL in nats, value in the reward's unit, advantage as the
    loss read it, ratio = pi_now / pi_old after the last step, and whether the clip cuts its gradient there. Four digits each.
    """
    batch = seen.batch
    advantages = standardize(batch.advantages, batch.mask) if cfg.whiten_advantages else batch.advantages
    rows = torch.tensor(chosen_rows(seen, judgements), device=batch.mask.device)
    some = batch[rows]
    now = policy(some.states, some.actions)
    ratio = importance_ratio(now.logp, some.logp_old)
    high = cfg.cliprange if cfg.cliprange_high is None else cfg.cliprange_high
    clipped = clip_active(ratio, advantages[rows], epsilon=cfg.cliprange, epsilon_high=high) & (cfg.objective == "clip")
    columns = {
        "logp": some.logp_old,
        "logp_sft": seen.logp_ref[rows],
        "kl": seen.kl[rows],
        "value": some.values_old,
        "advantage": advantages[rows],
        "ratio": ratio,
    }
    for k, i in enumerate(rows.tolist()):
        length = int(batch.mask[i].sum())
        kept = min(length, MAX_TOKENS)
        yield {
            "row": i,
            "prompt": seen.prompts.text[i][-MAX_PROMPT:],
            "score": _short(float(seen.scores.value[i])),
            "judges": {name: _short(numbers[i]) for name, numbers in judgements.items()},
            "sequence_kl": _short(float(seen.sequence_kl[i])),
            "length": length,
            "finished": bool(seen.completions.finished[i]),
            "tokens": policy.backbone.codec.pieces(batch.actions[i, :kept].tolist()),
            "figures": {name: _listed(column[k, :kept]) for name, column in columns.items()},
            "clipped": clipped[k, :kept].int().tolist(),
        }


def _listed(column: Tensor) -> list[float]:
    return [_short(x) for x in column.tolist()]


def _short(x: float) -> float:
    """Four digits that matter: a heat map shows no more."""
    return float(f"{x:.4g}")
