"""Forwards and backwards through the memory of `flat.FlatNets`, for one seed or several at once. `nets.py` is the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..types import Judgement
from .flat_heads import Array, Chosen

if TYPE_CHECKING:
    from .flat import FlatNets

Place = tuple[int, tuple[int, ...]]  # where a weight starts in its role's row, and its shape
POLICY, CRITIC = 0, 1


@dataclass(frozen=True, slots=True)
class Names:
    """Layers by name: the tanh layers of the policy (the critic's stand at the same place), and what comes after them."""

    body: tuple[str, ...]
    policy: str
    critic: str
    log_std: str


class Part:
    """Some seeds of the nets: views of their memory, and the arithmetic. Shapes: s seeds, n steps, H wide layers, A actions."""

    def __init__(self, nets: FlatNets, seeds: slice) -> None:
        self.head = nets.head
        self.memory: Array = nets.memory.numpy()[:, seeds]
        self.scratch = np.empty_like(self.memory[0])
        self.flat_gradients = [[seed[role:].reshape(-1) for seed in self.memory[1]] for role in (POLICY, CRITIC)]
        weights, gradients = self.memory[0], self.memory[1]
        names = nets.names
        self._weights = [weight_at(weights, slice(0, 2), nets.places[name + ".weight"]) for name in names.body]
        self._biases = [weight_at(weights, slice(0, 2), nets.places[name + ".bias"])[..., None, :] for name in names.body]
        self._by_weights = [weight_at(gradients, slice(0, 2), nets.places[name + ".weight"]) for name in names.body]
        self._by_biases = [weight_at(gradients, slice(0, 2), nets.places[name + ".bias"])[..., None, :] for name in names.body]
        policy, critic, log_std = names.policy, names.critic, names.log_std
        self._policy = [weight_at(array, POLICY, nets.places[policy + ".weight"]) for array in (weights, gradients)]
        self._policy_bias = [weight_at(array, POLICY, nets.places[policy + ".bias"])[..., None] for array in (weights, gradients)]
        self._critic = [weight_at(array, CRITIC, nets.places[critic + ".weight"]) for array in (weights, gradients)]
        self._critic_bias = [weight_at(array, CRITIC, nets.places[critic + ".bias"]) for array in (weights, gradients)]
        place = nets.places.get(log_std, (0, (0,)))
        self._log_std = [weight_at(array, POLICY, place)[..., None] for array in (weights, gradients)]
        self._work: dict[int, _Work] = {}
        self._act_work: dict[int, list[Array]] = {}

    def act(self, observations: Array, noise: Array) -> Array:
        """Actions [s, A, n] (Box) or their numbers [s, n] (Discrete) for observations [s, n, D]; the critic is not asked."""
        n = observations.shape[1]
        if n not in self._act_work:
            self._act_work[n] = [np.empty((len(w), n, w.shape[2]), np.float32) for w in self._weights]
        hidden = observations
        for weight, bias, out in zip(self._weights, self._biases, self._act_work[n], strict=True):
            hidden = np.matmul(hidden, weight[:, POLICY].swapaxes(-1, -2), out=out)
            hidden += bias[:, POLICY]
            np.tanh(hidden, out=hidden)
        outputs = np.matmul(self._policy[0], hidden.swapaxes(-1, -2))
        outputs += self._policy_bias[0]
        return self.head.act(outputs, self._log_std[0], noise)

    def forward(self, observations: Array) -> tuple[Array, Array]:
        """The policy's outputs [s, A, n] and the values [s, n] of observations [s, n, D]."""
        return self._forward(observations, _Work(self._weights, observations.shape[1]))

    def _forward(self, observations: Array, work: _Work) -> tuple[Array, Array]:
        work.observations = hidden = observations[:, None]
        for weight, bias, out in zip(self._weights, self._biases, work.hidden, strict=True):
            hidden = np.matmul(hidden, weight.swapaxes(-1, -2), out=out)
            hidden += bias
            np.tanh(hidden, out=hidden)
        outputs = np.matmul(self._policy[0], work.features[POLICY].swapaxes(-1, -2))
        outputs += self._policy_bias[0]
        values = np.matmul(work.features[CRITIC], self._critic[0].swapaxes(-1, -2))[..., 0]
        values += self._critic_bias[0]
        return outputs, values

    def judge(self, observations: Array, chosen: Chosen) -> Judgement:
        n = observations.shape[1]
        if n not in self._work:
            self._work[n] = _Work(self._weights, n)
        self._last = self._work[n]
        outputs, values = self._forward(observations, self._last)
        judgement, self._kept = self.head.judge(outputs, self._log_std[0], chosen)
        self._chosen = chosen
        return judgement._replace(values=values)

    def log_prob(self, outputs: Array, actions: Array) -> Array:
        """[s, n] of actions [s, A, n] (one-hot for Discrete). Overwrites `outputs` by an equal distribution."""
        logp: Array = self.head.judge(outputs, self._log_std[0], Chosen(actions, None))[0].logp
        return logp

    def dist(self, outputs: Array) -> tuple[Array, ...]:
        return self.head.dist(outputs, self._log_std[0])

    def backward(self, slopes: Judgement) -> None:
        """Gradients of the last `judge`, written over those before. Without a slope by logp the policy's are left as they are."""
        work = self._last
        by_values = slopes.values
        np.matmul(by_values[:, None], work.features[CRITIC], out=self._critic[1])
        np.add.reduce(by_values, axis=-1, keepdims=True, out=self._critic_bias[1])
        np.multiply(by_values[..., None], self._critic[0], out=work.by_features[CRITIC])
        if slopes.logp is None:
            work.by_features[POLICY][...] = 0
        else:
            by_outputs, by_log_std = self.head.slopes(self._kept, slopes, self._chosen)
            np.matmul(by_outputs, work.features[POLICY], out=self._policy[1])
            np.add.reduce(by_outputs, axis=-1, keepdims=True, out=self._policy_bias[1])
            np.matmul(by_outputs.swapaxes(-1, -2), self._policy[0], out=work.by_features[POLICY])
            if by_log_std is not None:
                self._log_std[1][...] = by_log_std
        for i in reversed(range(len(self._weights))):
            hidden, by_hidden, slope = work.hidden[i], work.by_hidden[i], work.slopes[i]
            np.multiply(hidden, hidden, out=slope)  # d tanh(x) = 1 - tanh(x)^2
            np.subtract(1, slope, out=slope)
            by_hidden *= slope
            below = work.hidden[i - 1] if i else work.observations
            np.matmul(by_hidden.swapaxes(-1, -2), below, out=self._by_weights[i])
            np.matmul(work.ones, by_hidden, out=self._by_biases[i])
            if i:
                np.matmul(by_hidden, self._weights[i], out=work.by_hidden[i - 1])


class _Work:
    """Arrays that a pass over n steps fills: hidden layers [s, 2, n, H] and the slopes by them."""

    observations: Array

    def __init__(self, weights: Sequence[Array], n: int) -> None:
        shapes = [(len(w), 2, n, w.shape[-2]) for w in weights]
        self.hidden, self.by_hidden, self.slopes = ([np.empty(shape, np.float32) for shape in shapes] for _ in range(3))
        self.features = [self.hidden[-1][:, role] for role in (POLICY, CRITIC)]
        self.by_features = [self.by_hidden[-1][:, role] for role in (POLICY, CRITIC)]
        self.ones = np.ones((1, 1, 1, n), np.float32)


def weight_at(array: Array, role: int | slice, place: Place) -> Array:
    """The weight at `place` in an array [s, 2, K], of one role [s, *shape] or of both [s, 2, *shape]."""
    start, shape = place
    piece = array[:, role, start : start + math.prod(shape)]
    return piece.reshape(*piece.shape[:-1], *shape)
