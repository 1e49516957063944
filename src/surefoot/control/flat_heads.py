"""The two action heads as NumPy arrays, forwards and backwards by hand: what `nets.ActionHead` says, and its gradient.

Outputs stand as [S, A, n], action before step, so that sums over actions run along whole rows. `nets.py` is the oracle.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..types import Judgement

Array = np.ndarray[Any, np.dtype[Any]]


class Chosen(NamedTuple):
    """Of n chosen steps of S seeds: actions [S, A, n] (one-hot for Discrete) and pi_old's distribution [S, K, A, n], or None."""

    actions: Array
    dist_old: tuple[Array, ...] | None


class FlatHead(Protocol):
    """`outputs` [S, A, n] are the last layer's; `log_std` [S, A, 1] is a weight (empty for Discrete)."""

    @staticmethod
    def act(outputs: Array, log_std: Array, noise: Array) -> Array:
        """Sampled actions [S, A, n] for Box, their numbers [S, n] for Discrete; `noise` is of `noise_like`'s kind."""
        ...

    @staticmethod
    def dist(outputs: Array, log_std: Array) -> tuple[Array, ...]:
        """What `nets.ActionHead` keeps as `dist`, each [S, A, n]."""
        ...

    @staticmethod
    def judge(outputs: Array, log_std: Array, chosen: Chosen) -> tuple[Judgement, tuple[Array, ...]]:
        """logp, entropy and exact KL (values None); and what `slopes` needs again. Overwrites `outputs`."""
        ...

    @staticmethod
    def slopes(kept: tuple[Array, ...], slopes: Judgement, chosen: Chosen) -> tuple[Array, Array | None]:
        """d loss / d outputs [S, A, n], and d loss / d log_std [S, A, 1]."""
        ...


class FlatCategorical:
    """p = softmax(outputs). d logp / d outputs = onehot - p; d H = -p (log p + H); d KL(old || p) = p - p_old."""

    @staticmethod
    def act(outputs: Array, log_std: Array, noise: Array) -> Array:
        """The number of cumulated probabilities that a uniform number exceeds (inverse of the distribution function)."""
        unnormalised = np.exp(outputs - np.maximum.reduce(outputs, axis=1, keepdims=True))
        cumulated = np.add.accumulate(unnormalised, axis=1)
        exceeded = cumulated[:, :-1] <= noise * cumulated[:, -1:]
        actions: Array = np.add.reduce(exceeded, axis=1, dtype=np.int64)
        return actions

    @staticmethod
    def dist(outputs: Array, log_std: Array) -> tuple[Array, ...]:
        return (outputs,)

    @staticmethod
    def judge(outputs: Array, log_std: Array, chosen: Chosen) -> tuple[Judgement, tuple[Array, ...]]:
        log_p = _log_softmax(outputs)
        p = np.exp(log_p)
        logp = np.add.reduce(log_p * chosen.actions, axis=1)
        entropy = -np.add.reduce(p * log_p, axis=1)
        kl, p_old = None, p
        if chosen.dist_old is not None:
            log_old = _log_softmax(chosen.dist_old[0].copy())
            p_old = np.exp(log_old)
            kl = np.add.reduce(p_old * (log_old - log_p), axis=1)
        return Judgement(logp, None, entropy, kl), (log_p, p, entropy, p_old)

    @staticmethod
    def slopes(kept: tuple[Array, ...], slopes: Judgement, chosen: Chosen) -> tuple[Array, Array | None]:
        log_p, p, entropy, p_old = kept
        by_outputs = chosen.actions - p
        by_outputs *= slopes.logp[:, None]
        if slopes.entropy is not None:
            by_outputs -= slopes.entropy[:, None] * p * (log_p + entropy[:, None])
        if slopes.kl is not None:
            by_outputs += slopes.kl[:, None] * (p - p_old)
        return by_outputs, None


class FlatGaussian:
    """Independent normals around outputs. z = (a - mean) / s: d logp / d mean = z / s, d logp / d log s = z^2 - 1; d H = 1."""

    @staticmethod
    def act(outputs: Array, log_std: Array, noise: Array) -> Array:
        actions: Array = outputs + np.exp(log_std) * noise
        return actions

    @staticmethod
    def dist(outputs: Array, log_std: Array) -> tuple[Array, ...]:
        return outputs, np.broadcast_to(log_std, outputs.shape)

    @staticmethod
    def judge(outputs: Array, log_std: Array, chosen: Chosen) -> tuple[Judgement, tuple[Array, ...]]:
        inverse = np.exp(-log_std)
        z = (chosen.actions - outputs) * inverse
        squares = z * z
        width = outputs.shape[1]
        constant = np.add.reduce(log_std, axis=1) + width * 0.5 * math.log(2 * math.pi)  # [S, 1]
        logp = np.add.reduce(squares, axis=1)
        logp *= -0.5
        logp -= constant
        entropy = np.broadcast_to(constant + 0.5 * width, logp.shape)
        kl, gaps, growths = None, z, z
        if chosen.dist_old is not None:
            mean_old, log_std_old = chosen.dist_old
            gaps = (outputs - mean_old) * inverse
            log_growth = log_std_old - log_std
            growths = np.expm1(2 * log_growth)
            kl = np.add.reduce(growths / 2 - log_growth + gaps * gaps / 2, axis=1)
        return Judgement(logp, None, entropy, kl), (inverse, z, squares, gaps, growths)

    @staticmethod
    def slopes(kept: tuple[Array, ...], slopes: Judgement, chosen: Chosen) -> tuple[Array, Array | None]:
        inverse, z, squares, gaps, growths = kept
        by_logp = slopes.logp[:, None]
        by_outputs = z * inverse
        by_outputs *= by_logp
        squares -= 1
        squares *= by_logp
        by_log_std: Array = np.add.reduce(squares, axis=-1, keepdims=True)
        if slopes.entropy is not None:
            by_log_std += np.add.reduce(slopes.entropy, axis=-1)[:, None, None]
        if slopes.kl is not None:  # KL(old || new): d / d mean = gap / s, d / d log s = 1 - (s_old^2 + gap^2) / s^2
            by_kl = slopes.kl[:, None]
            by_outputs += by_kl * gaps * inverse
            by_log_std -= np.add.reduce(by_kl * (growths + gaps * gaps), axis=-1, keepdims=True)
        return by_outputs, by_log_std


def _log_softmax(outputs: Array) -> Array:
    """Over the actions [S, A, n], in place."""
    outputs -= np.maximum.reduce(outputs, axis=1, keepdims=True)
    outputs -= np.log(np.add.reduce(np.exp(outputs), axis=1, keepdims=True))
    return outputs
