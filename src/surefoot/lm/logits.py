"""Log-probs, entropy and exact KL from hidden states, in chunks: no tensor of all tokens times the vocabulary ever lives.

A distribution over the next token is kept as the final-normed state that makes it (V/D times smaller than its logits) beside the
head that turns it into logits. Temperature divides the logits of every distribution alike; log-softmax is in float32 whatever
the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from surefoot.core import kl_categorical
from surefoot.lm.linear import product

CHUNK_ELEMENTS = 1 << 23  # logits a chunk holds: 32 MiB in float32, whatever the vocabulary


@dataclass(frozen=True, slots=True)
class Head:
    """The output embedding as a function: logits = (states W^T + b) / temperature, float32."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    temperature: float

    def logits(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        with torch.autocast(states.device.type, enabled=False):  # sampling under autocast must see the logits that training sees
            raw = product(states.to(self.weight.dtype), self.weight, self.bias)
        return raw.float() if self.temperature == 1 else raw.float() / self.temperature

    def frozen_copy(self) -> Head:
        """A copy that later optimiser steps do not move; the head itself where nothing trains it."""
        if not self.weight.requires_grad:
            return self
        return Head(self.weight.detach().clone(), None if self.bias is None else self.bias.detach().clone(), self.temperature)

    @property
    def chunk(self) -> int:
        return max(1, CHUNK_ELEMENTS // self.weight.shape[0])


@dataclass(frozen=True, slots=True)
class TokenDist:
    """Next-token distributions of [B, T] positions: their states, where they count, and the head. Indexable by row."""

    states: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]
    head: Head

    def __getitem__(self, rows: Tensor) -> TokenDist:
        return TokenDist(self.states[rows], self.mask[rows], self.head)

    def frozen(self) -> TokenDist:
        """The same distributions, out of reach of the optimiser."""
        return TokenDist(self.states.detach(), self.mask, self.head.frozen_copy())


def _distribution(states: Tensor, head: Head) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N V"]]:
    """log p and p."""
    logp = torch.log_softmax(head.logits(states), dim=-1)
    return logp, logp.exp()


def _statistics(logp: Tensor, p: Tensor, tokens: Tensor) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-prob of a token a row, and entropy: the same to the bit, whether a gradient is wanted or not."""
    return logp.gather(1, tokens[:, None])[:, 0], -torch.linalg.vecdot(p, logp)


def _kl(states_p: Tensor, states_q: Tensor, head_p: Head, head_q: Head) -> Tensor:
    return kl_categorical(head_p.logits(states_p), head_q.logits(states_q))


class _FrozenHeadStatistics(torch.autograd.Function):
    """Log-prob of one token a row under a head that nothing trains, and the entropy; each with its gradient, or logp alone.

    With p the distribution, H its entropy, W the head's weight and T the temperature,

        d logp / d state = (W[token] - sum_v p_v W[v]) / T
        d H / d state = -sum_v p_v (log p_v + H) W[v] / T

    are vectors as long as the state, so they are kept from the forward pass, while the logits are there anyway: the backward
    pass multiplies, and recomputes nothing.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, tokens: Tensor, head: Head, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        logp_all, p = _distribution(states, head)
        logp, entropy = _statistics(logp_all, p, tokens)
        kept = [head.weight[tokens].float() - (p.to(head.weight.dtype) @ head.weight).float()]
        if entropy_gradient:
            spread = logp_all.add_(entropy[:, None]).mul_(p)
            kept.append(-(spread.to(head.weight.dtype) @ head.weight).float())
        else:
            ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(*(jacobian / head.temperature for jacobian in kept))
        ctx.dtype = states.dtype
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        slopes = [slope[:, None] * jacobian for slope, jacobian in zip(upstream, ctx.saved_tensors, strict=False)]
        return torch.stack(slopes).sum(0).to(ctx.dtype), None, None, None


class _TrainedHeadStatistics(torch.autograd.Function):
    """The same two figures under a head that is trained, from states, weight W, bias and temperature T.

    With g_l and g_H the gradients that come in for a row's log-prob and entropy, that of its logits is

        (g_l (1[v = token] - p_v) - g_H p_v (log p_v + H)) / T.

    It is as large as the logits, so it lives a chunk at a time in the backward pass, which computes the logits again, and goes
    at once into the gradients of states and weight.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, bias, temperature)
        parts = [_statistics(*_distribution(s, head), t) for s, t in _chunks(head, states, tokens)]
        logp, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(states, tokens, weight, bias, entropy)
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_logp: Tensor, for_entropy: Tensor) -> tuple[Tensor | None, ...]:
        states, tokens, weight, bias, entropy = ctx.saved_tensors
        head = Head(weight, bias, ctx.temperature)
        to_states = torch.empty_like(states)
        to_weight: Tensor | None = None
        to_bias = None if bias is None else torch.zeros_like(bias)
        slopes = (for_logp / head.temperature, for_entropy / head.temperature, entropy)
        with torch.autocast(states.device.type, enabled=False):
            for s, t, slope, entropy_slope, h, into in _chunks(head, states, tokens, *slopes, to_states):
                logp, p = _distribution(s, head)
                if ctx.entropy_gradient:
                    p *= logp.add_(h[:, None]).mul_(-entropy_slope[:, None]).sub_(slope[:, None])
                else:
                    p *= -slope[:, None]
                p.scatter_add_(1, t[:, None], slope[:, None])
                to_logits = p.to(weight.dtype)
                into.copy_(to_logits @ weight)  # a trained head stands on states that are trained too
                s = s.to(weight.dtype)
                to_weight = to_logits.T @ s if to_weight is None else to_weight.addmm_(to_logits.T, s)
                if to_bias is not None:
                    to_bias += to_logits.sum(0)
        return to_states, None, to_weight, to_bias, None, None


def _chunks(head: Head, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all `columns`, as many at a time as a chunk of logits has."""
    return zip(*(column.split(head.chunk) for column in columns), strict=True)


def token_statistics(
    states: Float[Tensor, "N D"], tokens: Int[Tensor, " N"], head: Head, *, entropy_gradient: bool = True
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """(log-prob of `tokens`, entropy) under the states' distributions, in nats.

    A chunk's logits live only while the chunk is worked on. In the backward pass they are computed again where the head is
    trained; a frozen head's gradients are kept as vectors. `entropy_gradient` False: the entropy is a figure alone.
    """
    if not len(tokens):
        empty = states.sum(-1).float()  # keeps the graph
        return empty, empty
    if torch.is_grad_enabled() and head.weight.requires_grad:
        both: tuple[Tensor, Tensor] = _TrainedHeadStatistics.apply(
            states, tokens, head.weight, head.bias, head.temperature, entropy_gradient
        )
        return both
    with_gradient = torch.is_grad_enabled() and states.requires_grad
    parts = [
        _FrozenHeadStatistics.apply(s, t, head, entropy_gradient) if with_gradient else _statistics(*_distribution(s, head), t)
        for s, t in _chunks(head, states, tokens)
    ]
    return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])


@torch.no_grad()
def token_logps(states: Float[Tensor, "N D"], tokens: Int[Tensor, " N"], head: Head) -> Float[Tensor, " N"]:
    """`token_statistics` without gradient and entropy: half of the passes over a chunk's logits."""
    parts = [torch.log_softmax(head.logits(s), dim=-1).gather(1, t[:, None])[:, 0] for s, t in _chunks(head, states, tokens)]
    return torch.cat(parts)


def exact_kl(p: TokenDist, q: TokenDist) -> Float[Tensor, "B T"]:
    """KL(p || q) over the vocabulary at each position, in nats, exact; differentiable in both. 0 outside the mask."""
    states_p, states_q = p.states[p.mask], q.states[p.mask]
    zeros = p.states.new_zeros(p.mask.shape, dtype=torch.float32)
    if not len(states_p):
        return zeros
    parts = [
        checkpoint(_kl, a, b, p.head, q.head, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else _kl(a, b, p.head, q.head)
        for a, b in zip(states_p.split(p.head.chunk), states_q.split(p.head.chunk), strict=True)
    ]
    return zeros.masked_scatter(p.mask, torch.cat(parts))
