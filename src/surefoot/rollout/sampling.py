"""Drawing tokens: temperature, top-k, top-p, and an inverse-CDF draw that needs one uniform number a row."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

LARGEST_BELOW_ONE = 1 - 2**-24
BLOCK = 128  # tokens whose weights are summed before any running sum is made: one of V/128 numbers, and one of 128


def draw(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], *, top_k: int, top_p: float
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """A token a row, drawn from softmax(logits) within top-k and top-p, and its log-probability there (nats).

    A row with a logit that is not a number has a log-probability that is none either.
    """
    if top_k or top_p < 1:
        logits = restrict(torch.log_softmax(logits, dim=1), top_k, top_p)
    highest = logits.amax(1, keepdim=True)
    weights = (logits - highest).exp_()
    token = inverse_cdf(weights, uniform)
    chosen = logits.gather(1, token[:, None]) - highest - weights.sum(1, keepdim=True).log()
    return token, chosen[:, 0]


def restrict(logp: Float[Tensor, "B V"], top_k: int, top_p: float) -> Float[Tensor, "B V"]:
    """Log-probs renormalised over the k most probable tokens (0: all) and the smallest set of mass `top_p`; -inf elsewhere."""
    if top_k and top_k < logp.shape[1]:
        least = logp.topk(top_k, dim=1).values[:, -1:]
        logp = logp.masked_fill(logp < least, -torch.inf)
    if top_p < 1:
        ordered, order = logp.sort(dim=1, descending=True)
        before = ordered.exp().cumsum(1) - ordered.exp()
        logp = torch.full_like(logp, -torch.inf).scatter(1, order, ordered.masked_fill(before >= top_p, -torch.inf))
    return torch.log_softmax(logp, dim=1) if top_k or top_p < 1 else logp


def inverse_cdf(weights: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token at which the running sum of `weights` passes `uniform` in [0, 1) times their total; one of weight 0 never.

    A running sum over a vocabulary is slow, so the block of tokens in which it happens is found first.
    """
    spare = -weights.shape[1] % BLOCK
    blocks = (torch.nn.functional.pad(weights, (0, spare)) if spare else weights).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(2).cumsum(1)
    goal = uniform.clamp(max=LARGEST_BELOW_ONE)[:, None] * sums[:, -1:]
    block = _first_above(sums, goal)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(1)
    return (block * BLOCK + _first_above(within, goal - before))[:, 0].clamp(max=weights.shape[1] - 1)


def _first_above(sums: Float[Tensor, "B N"], goal: Float[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    """Where running sums pass `goal`; rounding may put it at their end, and then the last place that has any weight.

    Within the row's bounds even where the sums are not numbers.
    """
    last = torch.searchsorted(sums, sums[:, -1:].contiguous()).clamp(max=sums.shape[1] - 1)
    return torch.minimum(torch.searchsorted(sums, goal.contiguous(), right=True), last)
