"""Exact KL(p||q) over a vocabulary against k1, k2, k3 of one sample (8.3.4): error, gradients, cost.

p and q are two positions of hidden states in front of one output head, as pi_old and pi_theta are. The head and the states
are drawn at random, with logits spread so that a word has the entropy of a language model's token (4.5 nats of 49,152 words); no
model is downloaded.
Nothing here is sampled: a sample takes each word with its probability, so mean, deviation and sign of an estimate
are sums over words.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.core import kl_categorical, kl_estimate

WIDTH = 576  # of SmolLM2-135M
NOMINAL_ENTROPY = 3.0  # nats, for many words; 4.5 are found over 49,152
KINDS: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")
LEVELS = (0.001, 0.01, 0.1, 1.0)  # nats a token, about: what is reported is measured
GRADIENT_WORDS = 48


def kl_figures(*, tokens: int, repeats: int, vocabularies: tuple[int, ...]) -> dict[str, Any]:
    """All three tables; errors over the largest vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return {
        "width": WIDTH,
        "tokens": tokens,
        "error_vocabulary": max(vocabularies),
        "error": [error_of_a_sample(max(vocabularies), tokens, level, generator) for level in LEVELS],
        "gradient_vocabulary": GRADIENT_WORDS,
        "gradient": [row for level in LEVELS for row in gradients(tokens, level, generator)],
        "cost": [cost(size, tokens, repeats, generator) for size in vocabularies],
    }


def two_policies(vocabulary: int, tokens: int, level: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of p and of q, [tokens, WIDTH], and the head [vocabulary, WIDTH]; KL(p||q) is near `level`.

    Logits of deviation s leave about log(vocabulary) - s^2 / 2 nats, and a shift of deviation d in each moves the policy by about
    d^2 / 2 nats.
    """
    deviation = math.sqrt(2 * max(0.5, math.log(vocabulary) - NOMINAL_ENTROPY))
    head = torch.randn(vocabulary, WIDTH, generator=generator) * deviation / math.sqrt(WIDTH)
    states = torch.randn(tokens, WIDTH, generator=generator)
    shift = torch.randn(tokens, WIDTH, generator=generator) * math.sqrt(2 * level) / deviation
    return states, states + shift, head


def error_of_a_sample(vocabulary: int, tokens: int, level: float, generator: torch.Generator) -> dict[str, Any]:
    """Bias, deviation (nats a token) and share below 0 of one sample's estimate, averaged over the tokens.

    tokens_for_10_percent: samples after which the standard error is a tenth of the KL.
    """
    states_p, states_q, head = two_policies(vocabulary, tokens, level, generator)
    logp_p = torch.log_softmax((states_p @ head.T).double(), -1)
    logp_q = torch.log_softmax((states_q @ head.T).double(), -1)
    p, exact = logp_p.exp(), kl_categorical(logp_p, logp_q)
    row: dict[str, Any] = {"kl": float(exact.mean()), "entropy": float(-(p * logp_p).sum(-1).mean())}
    for kind in KINDS:
        estimate = kl_estimate(logp_p, logp_q, kind)
        mean = (p * estimate).sum(-1)
        std = float((p * (estimate - mean[:, None]) ** 2).sum(-1).mean().sqrt())
        row[kind] = {
            "bias": float((mean - exact).mean()),
            "std": std,
            "share_negative": float((p * (estimate < 0)).sum(-1).mean()),
            "tokens_for_10_percent": (std / (0.1 * row["kl"])) ** 2,
        }
    return row


def gradients(tokens: int, level: float, generator: torch.Generator) -> list[dict[str, Any]]:
    """How far each estimator's expected gradient is from that of KL(p||q), where q moves (penalty) and where p does (tether).

    With g the gradient of one sample's estimate with respect to the logits that move, and G that of the exact KL:
    error = |E g - G| / |G|, error_reverse the same against KL(q||p), noise = sqrt(E |g - E g|^2) / |G|; norms over all tokens.
    """
    states_p, states_q, head = (x.double() for x in two_policies(GRADIENT_WORDS, tokens, level, generator))
    logits_p, logits_q = states_p @ head.T, states_q @ head.T
    p, kl = logits_p.softmax(-1), float(kl_categorical(logits_p, logits_q).mean())
    rows = []
    for moving in ("q", "p"):
        still, moved = (logits_p, logits_q) if moving == "q" else (logits_q, logits_p)
        for kind in KINDS:
            each = per_word_gradients(kind, moving, still, moved)
            expected = (p[..., None] * each).sum(1)
            spread = (p[..., None] * (each - expected[:, None]) ** 2).sum().sqrt()
            exact, reverse = (exact_gradient(moving, direction, still, moved) for direction in ("p||q", "q||p"))
            rows.append(
                {
                    "kl": kl,
                    "moving": moving,
                    "kind": kind,
                    "error": float((expected - exact).norm() / exact.norm()),
                    "error_reverse": float((expected - reverse).norm() / reverse.norm()),
                    "noise": float(spread / exact.norm()),
                }
            )
    return rows


def per_word_gradients(
    kind: Literal["k1", "k2", "k3"], moving: str, still: Float[Tensor, "N V"], moved: Float[Tensor, "N V"]
) -> Float[Tensor, "N V V"]:
    """For each token and each word that a sample may be: the gradient of its estimate in the logits that move."""

    def estimates(moved_row: Tensor, still_row: Tensor) -> Tensor:
        logp_moved, logp_still = torch.log_softmax(moved_row, -1), torch.log_softmax(still_row, -1)
        pair = (logp_still, logp_moved) if moving == "q" else (logp_moved, logp_still)
        return kl_estimate(*pair, kind)

    return torch.func.vmap(torch.func.jacrev(estimates))(moved, still)


def exact_gradient(moving: str, direction: str, still: Float[Tensor, "N V"], moved: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """Of KL(p||q) or KL(q||p) in the logits that move."""
    leaf = moved.clone().requires_grad_()
    is_first = (moving == "p") == (direction == "p||q")  # the distribution that moves stands first
    pair = (leaf, still) if is_first else (still, leaf)
    (gradient,) = torch.autograd.grad(kl_categorical(*pair).sum(), leaf)
    return gradient


def cost(vocabulary: int, tokens: int, repeats: int, generator: torch.Generator) -> dict[str, Any]:
    """CPU microseconds a token, forward and backward, variants in turn; the least of `repeats` or more.

    Every variant makes the logits of pi_theta and the log-probability of a word, as any update does; "surrogate" stops there. k1,
    k2 and k3 add an estimate from the stored log-probability. "exact, states kept" multiplies the stored hidden states of pi_old
    by the head again, "exact, logits kept" has stored the logits. Gradients go to the hidden states; the head is frozen.
    """
    states_p, states_q, head = two_policies(vocabulary, tokens, 0.01, generator)
    logits_p = states_p @ head.T
    words = torch.multinomial(logits_p.softmax(-1), 1, generator=generator)
    logp_p = torch.log_softmax(logits_p, -1).gather(-1, words)

    def loss(penalty: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            states = states_q.clone().requires_grad_()
            logits = states @ head.T
            logp = torch.log_softmax(logits, -1).gather(-1, words)
            (torch.exp(logp - logp_p).sum() + penalty(logits, logp).sum()).backward()

        return run

    variants = {
        "surrogate": loss(lambda logits, logp: torch.zeros(())),
        "k1": loss(lambda logits, logp: kl_estimate(logp_p, logp, "k1")),
        "k2": loss(lambda logits, logp: kl_estimate(logp_p, logp, "k2")),
        "k3": loss(lambda logits, logp: kl_estimate(logp_p, logp, "k3")),
        "exact, states kept": loss(lambda logits, logp: kl_categorical(states_p @ head.T, logits)),
        "exact, logits kept": loss(lambda logits, logp: kl_categorical(logits_p, logits)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats * max(1, 16_384 // vocabulary)):  # short times are the noisier ones
        for name, run in variants.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    least = {name: min(measured) for name, measured in seconds.items()}  # what others do on the machine only adds
    return {
        "vocabulary": vocabulary,
        "microseconds": {name: 1e6 * taken / tokens for name, taken in least.items()},
        "ratio": {name: taken / least["surrogate"] for name, taken in least.items()},
        "kept_bytes": {"k1, k2, k3": 4, "exact, states kept": 4 * WIDTH, "exact, logits kept": 4 * vocabulary},
    }
