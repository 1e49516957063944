"""From prompts to a PPOBatch: sample, score, evaluate, tether, advantages. What a rollout showed comes along as metrics.

The order of the reward is fixed: penalties, scale, clip, tether, whiten, GAE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.config import PPOConfig
from surefoot.core import gae, kl_estimate, masked_mean, scale_only, tethered_rewards
from surefoot.diagnostics.drift import drift_metrics
from surefoot.errors import ConfigError
from surefoot.lm.logits import TokenDist
from surefoot.lm.roles import LanguageActorCritic
from surefoot.lm.tokens import Context
from surefoot.micro_batches import micro_batches
from surefoot.types import Completions, PPOBatch, Prompts, Scores

KEPT_BYTES = 1 << 30  # of a rollout's states below every adapter; more than these are computed again in every epoch


@dataclass(frozen=True, slots=True)
class RunningDeviation:
    """Count, mean and sum of squared deviations of all scores so far (Chan et al. 1983); saved with every checkpoint."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def seen(self, x: Float[Tensor, " N"]) -> RunningDeviation:
        if not len(x):
            return self
        mean, count = x.double().mean().item(), self.count + len(x)
        squares = ((x.double() - mean) ** 2).sum().item()
        gap = mean - self.mean
        return RunningDeviation(
            count, self.mean + gap * len(x) / count, self.squares + squares + gap * gap * self.count * len(x) / count
        )

    @property
    def deviation(self) -> float:
        return max((self.squares / self.count) ** 0.5, 1e-4) if self.count > 1 and self.squares > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """A batch to learn from and what was seen on the way, nats. `kl` is that of the tether, a token; `sequence_kl` its sums."""

    batch: PPOBatch
    prompts: Prompts
    completions: Completions
    scores: Scores
    logp_ref: Float[Tensor, "B T"]
    kl: Float[Tensor, "B T"]
    sequence_kl: Float[Tensor, " B"]
    prompt_states: Float[Tensor, "B D"]  # of the SFT model, at each prompt's last token
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What policy and reference say of a rollout's tokens, before any update."""

    logp: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    next_values: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    logp_ref: Float[Tensor, "B T"]
    kl: Float[Tensor, "B T"]
    prompt_states: Float[Tensor, "B D"]
    dist_old: TokenDist | None
    dist_ref: TokenDist | None


def rollout(
    policy: LanguageActorCritic,
    prompts: Prompts,
    completions: Completions,
    scores: Scores,
    cfg: PPOConfig,
    *,
    kl_coef: float,
    running: RunningDeviation,
) -> Rollout:
    """Turns scored answers into a PPOBatch. Rows that are invalid or empty are masked before any mean is taken."""
    device = policy.backbone.device
    valid = scores.valid & completions.mask.any(1)
    mask = (completions.mask & valid[:, None]).to(device)
    context = Context(prompts.ids.to(device), prompts.mask.to(device), mask)
    ids, finished = completions.ids.to(device), completions.finished.to(device)
    seen, begun = _evaluate(policy, context, ids, _sampled_states(completions, cfg), cfg)
    paid = penalised(scores.value.to(device), mask, finished, cfg) / (running.deviation if cfg.reward_scale == "running" else 1.0)
    if cfg.reward_clip is not None:
        paid = paid.clamp(-cfg.reward_clip, cfg.reward_clip)
    in_reward = kl_coef if cfg.kl_in == "reward" else 0.0
    rewards = tethered_rewards(paid, seen.kl, mask, coef=in_reward)
    if cfg.whiten_rewards:
        rewards = scale_only(rewards, mask)
    last = last_steps(mask)
    terminated = last & (finished[:, None] | torch.tensor(not cfg.bootstrap_cut, device=device))
    advantages = gae(rewards, seen.values, seen.next_values, terminated, last, gamma=cfg.gamma, lam=cfg.lam)
    advantages = torch.where(mask, advantages, 0.0)
    log_gap = torch.where(mask, seen.logp - completions.logp_sampler.to(device), 0.0)
    weights = None if cfg.tis_cap is None else truncated_weights(log_gap, cfg.tis_cap)
    batch = PPOBatch(
        states=replace(context, begun=begun),
        actions=ids,
        logp_old=seen.logp,
        values_old=seen.values,
        advantages=advantages,
        returns=advantages + seen.values,
        mask=mask,
        dist_old=seen.dist_old,
        logp_ref=seen.logp_ref if cfg.kl_in == "loss" else None,
        dist_ref=seen.dist_ref,
        weights=weights,
        logp_rounding=_sampler_rounding(seen.logp, policy, cfg),
        lengths=context.lengths,
    )
    sequence_kl = seen.kl.sum(1)
    metrics = _metrics(seen, mask, finished, valid.to(device), scores.value.to(device), paid, sequence_kl, log_gap, kl_coef)
    if weights is not None and cfg.tis_cap is not None:
        metrics["val/sampler_weight"] = masked_mean(weights, mask).item()
        metrics["val/sampler_weight_capped"] = masked_mean((log_gap.exp() > cfg.tis_cap).float(), mask).item()
    metrics |= part_metrics(scores, valid) | distance_metrics(scores, valid)
    metrics |= drift_metrics(completions.text, mask, finished, scores.value.to(device), seen.kl, seen.logp_ref)
    return Rollout(batch, prompts, completions, scores, seen.logp_ref, seen.kl, sequence_kl, seen.prompt_states, metrics)


def part_metrics(scores: Scores, valid: Bool[Tensor, " B"]) -> dict[str, float]:
    """rewards/NAME/mean and /std of each part over valid rows; none where the one part is the score itself."""
    out = {}
    for name, part in scores.parts.items() if len(scores.parts) > 1 else ():
        kept = part.double()[valid.to(part.device)]
        out[f"rewards/{name}/mean"] = kept.mean().item() if len(kept) else 0.0
        out[f"rewards/{name}/std"] = kept.std(correction=0).item() if len(kept) else 0.0
    return out


def distance_metrics(scores: Scores, valid: Bool[Tensor, " B"]) -> dict[str, float]:
    """drift/distance and drift/distance_percentile: how far the answers lie from what the reward model was trained on."""
    given = {"drift/distance": scores.distance, "drift/distance_percentile": scores.percentile}
    kept = valid.cpu()
    return {key: x.cpu()[kept].double().mean().item() for key, x in given.items() if x is not None and bool(kept.any())}


def penalised(
    scores: Float[Tensor, " B"], mask: Bool[Tensor, "B T"], finished: Bool[Tensor, " B"], cfg: PPOConfig
) -> Float[Tensor, " B"]:
    """Scores less missing_eos_penalty where length cut the answer, less length_penalty a token."""
    return scores - cfg.missing_eos_penalty * (~finished).float() - cfg.length_penalty * mask.sum(1)


def truncated_weights(log_gap: Float[Tensor, "B T"], cap: float) -> Float[Tensor, "B T"]:
    """min(pi_old / pi_sampler, cap) of each token, from log pi_old - log pi_sampler: truncated importance sampling.

    The policy gradient is an expectation under pi_old; where the sampler's arithmetic differs (bf16, another engine, top-p) the
    samples are another distribution's, and their ratio makes up for it. The cap bounds the variance that costs, at a bias
    where it cuts (Ionides 2008).
    """
    return log_gap.exp().clamp(max=cap)


def last_steps(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the last valid step of each row that has one; masks are contiguous from column 0."""
    follows = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ~follows


def _sampled_states(completions: Completions, cfg: PPOConfig) -> Tensor | None:
    """The sampler's states, where the rollout is to be evaluated from them.

    Raises: ConfigError where the sampler kept none.
    """
    if cfg.old_logprobs == "recomputed":
        return None
    if completions.states is None:
        raise ConfigError(
            'ppo.old_logprobs = "sampled": this sampler keeps no states (LocalEngine does with keeps_states=True). '
            'Use old_logprobs = "recomputed".'
        )
    assert isinstance(completions.states, Tensor)  # of a language model
    return completions.states


def _sampler_rounding(logp: Float[Tensor, "B T"], policy: LanguageActorCritic, cfg: PPOConfig) -> Float[Tensor, "B T"] | None:
    """What the sampler's rounding may do to logp_old, nats: it merges adapters, and in half precision rounds elsewhere."""
    if cfg.old_logprobs == "recomputed":
        return None
    is_half = policy.backbone.autocast is not None or policy.backbone.model.dtype != torch.float32
    return torch.full_like(logp, 0.2 if is_half else 1e-3)


@torch.no_grad()
def _evaluate(
    policy: LanguageActorCritic, context: Context, ids: Tensor, sampled: Tensor | None, cfg: PPOConfig
) -> tuple[_Seen, Tensor | None]:
    """What policy and reference say, and the states below every adapter, for the update to go on from.

    The policy says it by the states `sampled` where they are given, else by a forward pass.
    """
    needs_old = cfg.objective == "penalty" and cfg.beta_estimator == "exact"
    needs_ref = cfg.kl_in == "loss" and cfg.kl_estimator == "exact"
    parts: list[tuple[Tensor, ...]] = []
    old: list[TokenDist] = []
    ref: list[TokenDist] = []
    begun: list[Tensor] = []
    lengths = context.lengths
    width = int(lengths.max())
    chosen = micro_batches(lengths, cfg)
    for rows in chosen:
        at = policy.begin(context[rows], ids[rows])
        now = policy.evaluate(at, ids[rows]) if sampled is None else policy.evaluate_sampled(sampled[rows], at, ids[rows])
        assert isinstance(now.dist, TokenDist)  # the policy's own
        logp_ref, dist_ref = policy.reference(at, ids[rows])
        kl = policy.kl(now.dist, dist_ref) if cfg.kl_estimator == "exact" else kl_estimate(now.logp, logp_ref, cfg.kl_estimator)
        kl = torch.where(context.mask[rows], kl, 0.0)
        # states are kept only where the update reads them
        parts.append((now.logp, now.values, now.next_values, now.entropy, logp_ref, kl, dist_ref.states[:, 0].float()))
        old += [now.dist] if needs_old else []
        ref += [dist_ref] if needs_ref else []
        if at.begun is not None and len(lengths) * width * at.begun.shape[2] * at.begun.element_size() <= KEPT_BYTES:
            begun.append(torch.nn.functional.pad(at.begun, (0, 0, 0, width - at.begun.shape[1])))
    back = torch.cat(chosen).argsort()
    columns = [torch.cat(column)[back] for column in zip(*parts, strict=True)]
    logp, values, next_values, entropy, logp_ref, kl, prompt_states = columns
    seen = _Seen(
        logp, values, next_values, entropy, logp_ref, kl, prompt_states, dist_old=_joined(old, back), dist_ref=_joined(ref, back)
    )
    return seen, torch.cat(begun)[back] if begun else None


def _joined(dists: list[TokenDist], rows: Tensor) -> TokenDist | None:
    """The batches' distributions as one, in the order `rows`."""
    if not dists:
        return None
    head = dists[0].head.frozen_copy()
    return TokenDist(torch.cat([dist.states for dist in dists]), torch.cat([dist.mask for dist in dists]), head)[rows]


def _metrics(
    seen: _Seen,
    mask: Tensor,
    finished: Tensor,
    valid: Tensor,
    scores: Tensor,
    paid: Tensor,
    sequence_kl: Tensor,
    log_gap: Tensor,
    kl_coef: float,
) -> dict[str, float]:
    """The rollout's half of the metric keys; means over valid rows, or over valid tokens where a key is per token."""
    lengths = mask.sum(1).float()
    rows = {
        "objective/kl": sequence_kl,
        "objective/entropy": torch.where(mask, seen.entropy, 0.0).sum(1),
        "objective/non_score_reward": -kl_coef * sequence_kl,
        "objective/rlhf_reward": paid - kl_coef * sequence_kl,
        "objective/scores": scores,
        "response_length/mean": lengths,
        "response_length/cut": (~finished).float(),
    }
    out = {key: masked_mean(value, valid).item() for key, value in rows.items()}
    out["response_length/max"] = lengths.max().item()
    out["val/num_eos_tokens"] = float((finished & valid).sum().item())
    out["val/num_unscored"] = float((~valid).sum().item())
    out["val/sampler_gap"] = masked_mean(log_gap.abs(), mask).item()
    return out


def sample_rows(seen: Rollout, count: int) -> Iterator[dict[str, object]]:
    """The first `count` answers of a rollout, as they go into samples.jsonl."""
    for i in range(min(count, len(seen.prompts))):
        yield {
            "prompt": seen.prompts.text[i],
            "completion": seen.completions.text[i],
            "score": round(float(seen.scores.value[i]), 6),
            "kl": round(float(seen.sequence_kl[i]), 6),
            "length": int(seen.completions.mask[i].sum()),
            "finished": bool(seen.completions.finished[i]),
        }
