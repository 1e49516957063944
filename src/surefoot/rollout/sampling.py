"""Drawing tokens: temperature, top-k, top-p, and an inverse-CDF draw that needs one uniform number a row."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

LARGEST_BELOW_ONE = 1 - 2**-24


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


def inverse_cdf(logp: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token at which the cumulative probability passes `uniform` in [0, 1): a draw from softmax(logp).

    A token of probability 0 is never drawn.
    """
    cdf = logp.exp().cumsum(1)
    total = cdf[:, -1:].contiguous()
    drawn = torch.searchsorted(cdf, uniform.clamp(max=LARGEST_BELOW_ONE)[:, None] * total, right=True)
    last = torch.searchsorted(cdf, total)  # the last token with any probability
    return torch.minimum(drawn, last)[:, 0]
