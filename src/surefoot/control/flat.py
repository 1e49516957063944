"""MLP actor-critics on flat memory, forwards and backwards by hand: S seeds of one shape as one batched network.

The weights of a module become views of one array [S, 2, K]: seed, role (policy, critic), weight. Gradients and Adam's moments
have arrays of the same shape. So one product is that of both roles of all seeds, a norm is one dot product, and Adam is a dozen
operations for everything. `nets.MLPActorCritic` under autograd and torch's AdamW are the oracles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..types import Judgement, PPOBatch
from .flat_heads import Array, Chosen, FlatCategorical, FlatGaussian, FlatHead
from .flat_part import CRITIC, POLICY, Names, Part, Place

if TYPE_CHECKING:
    from .nets import MLPActorCritic

_ALIGNED = 16  # weights: each matrix starts on a cache line


class FlatNets:
    """S actor-critics of one shape (`types.Nets`). They stay modules: saving, evaluating and autograd see the same memory."""

    def __init__(self, actor_critics: Sequence[MLPActorCritic]) -> None:
        """Raises ModelError where the shapes differ."""
        self._modules = tuple(actor_critics)
        first = self._modules[0]
        head = flat_head(first)
        if head is None or any(_shapes(each) != _shapes(first) for each in self._modules):
            raise ModelError("Actor-critics that are trained together must have the same layers and a Discrete or Box head.")
        self.head, self.names = head, _names(first)
        self.num_seeds = len(self._modules)
        self.places, width = _places(first)
        self.memory = torch.zeros(4, self.num_seeds, 2, width)  # weights, gradients, Adam's two moments
        self._parts: dict[tuple[int, int], Part] = {}
        self._steps, self._rates, self._decays = (np.zeros((self.num_seeds, 2)) for _ in range(3))
        self._betas, self._eps = (0.9, 0.999), 1e-8
        self._optimizers: tuple[torch.optim.Optimizer, ...] = ()
        self.attach()

    def attach(self) -> None:
        """Makes every weight of the modules a view of this memory; where it is one already, nothing is copied."""
        for seed, module in enumerate(self._modules):
            for name, weight in module.named_parameters():
                place = self._view(0, seed, name)
                if weight.data_ptr() != place.data_ptr():
                    place.copy_(weight.detach())
                    weight.data = place

    def part(self, seeds: slice) -> Part:
        key = (seeds.start, seeds.stop)
        if key not in self._parts:
            self._parts[key] = Part(self, seeds)
        return self._parts[key]

    def accepts(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        if any(w.device.type != "cpu" or w.dtype != torch.float32 or not w.requires_grad for w in self._weights()):
            return False
        return len(optimizers) == self.num_seeds and all(
            _is_plain_adamw(each) and self._roles(seed, each) is not None for seed, each in enumerate(optimizers)
        )

    def open(self, batches: Sequence[PPOBatch], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.attach()
        self._optimizers = tuple(optimizers)
        for seed, optimizer in enumerate(optimizers):
            roles = self._roles(seed, optimizer)
            assert roles is not None
            for role, group in enumerate(roles):
                self._rates[seed, role], self._decays[seed, role] = group["lr"], group["weight_decay"]
                self._betas, self._eps = group["betas"], group["eps"]
            self._bind_moments(seed, optimizer)
        num_actions = self.places[self.names.policy + ".bias"][1][0]
        self._columns = _Columns(batches, num_actions, is_box=self.head is FlatGaussian)

    def _bind_moments(self, seed: int, optimizer: torch.optim.Optimizer) -> None:
        """Makes the moments in `optimizer.state` views of this memory, so that a checkpoint holds what is here."""
        for name, weight in self._modules[seed].named_parameters():
            state = optimizer.state.get(weight, {})
            self._steps[seed, _role(name)] = float(state.get("step", 0.0))
            for row, key in ((2, "exp_avg"), (3, "exp_avg_sq")):
                place = self._view(row, seed, name)
                if key not in state:
                    place.zero_()
                elif state[key].data_ptr() != place.data_ptr():
                    place.copy_(state[key])
                    state[key] = place

    def judge(self, seeds: slice, rows: Array) -> Judgement:
        return self.part(seeds).judge(*self._columns.take(seeds, rows))

    def backward(self, seeds: slice, slopes: Judgement) -> None:
        self.part(seeds).backward(slopes)

    def step(self, seeds: slice, max_grad_norm: float | None, *, critic_only: bool) -> list[tuple[float, bool]]:
        """Clips each seed's norm and takes AdamW's step where it is finite (torch's formulas)."""
        part = self.part(seeds)
        roles = slice(CRITIC if critic_only else POLICY, 2)
        norms = [math.sqrt(float(g.dot(g))) for g in part.flat_gradients[roles.start]]
        stepped = [math.isfinite(norm) for norm in norms]
        limit = math.inf if max_grad_norm is None else max_grad_norm
        scales = np.array([min(1.0, limit / (norm + 1e-6)) if ok else 0.0 for norm, ok in zip(norms, stepped, strict=True)])
        if all(stepped):
            self._adamw(part, roles, seeds, scales)
        else:
            for i in np.flatnonzero(stepped):
                one = slice(seeds.start + int(i), seeds.start + int(i) + 1)
                self._adamw(self.part(one), roles, one, scales[i : i + 1])
        return list(zip(norms, stepped, strict=True))

    def _adamw(self, part: Part, roles: slice, seeds: slice, scales: Array) -> None:
        """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)."""
        (beta1, beta2), steps = self._betas, self._steps[seeds, roles]
        steps += 1
        second = np.sqrt(1 - beta2**steps)
        rate = (self._rates[seeds, roles] * second / (1 - beta1**steps)).astype(np.float32)[..., None]
        eps = (self._eps * second).astype(np.float32)[..., None]
        scale = scales.astype(np.float32)[:, None, None]
        w, g, m, v = part.memory[:, :, roles]
        a = part.scratch[:, roles]
        if self._decays.any():
            w *= (1 - self._rates[seeds, roles] * self._decays[seeds, roles]).astype(np.float32)[..., None]
        g *= scale
        np.subtract(g, m, out=a)
        a *= 1 - beta1
        m += a
        np.multiply(g, g, out=a)
        a *= 1 - beta2
        v *= beta2
        v += a
        np.sqrt(v, out=a)
        a += eps
        np.divide(m, a, out=a)
        a *= rate
        w -= a

    def close(self) -> None:
        for seed, optimizer in enumerate(self._optimizers):
            for name, weight in self._modules[seed].named_parameters():
                steps = self._steps[seed, _role(name)]
                if steps and "step" not in optimizer.state[weight]:
                    moments = {"exp_avg": self._view(2, seed, name), "exp_avg_sq": self._view(3, seed, name)}
                    optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}
                if steps:
                    optimizer.state[weight]["step"].fill_(steps)

    def _weights(self) -> Iterator[nn.Parameter]:
        return (weight for module in self._modules for weight in module.parameters())

    def _view(self, row: int, seed: int, name: str) -> Tensor:
        start, shape = self.places[name]
        return self.memory[row, seed, _role(name), start : start + math.prod(shape)].view(shape)

    def _roles(self, seed: int, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The optimiser's group of the policy and that of the critic; None where one is cut over groups or is not all there."""
        module = self._modules[seed]
        groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
        found = []
        for named in (module.named_policy_parameters(), module.named_critic_parameters()):
            weights = [weight for _, weight in named]
            group = groups.get(id(weights[0]))
            if group is None or any(groups.get(id(weight)) is not group for weight in weights):
                return None
            if len({float(optimizer.state.get(weight, {}).get("step", 0.0)) for weight in weights}) > 1:
                return None
            found.append(group)
        if any(found[0][key] != found[1][key] for key in ("betas", "eps")):
            return None
        return found[0], found[1]


class _Columns:
    """The seeds' rollouts, one below the other: observations [S*R, D], actions [S*R, A] (one-hot for Discrete), old dist.

    What stands in masked rows is emptied, because 0 * NaN is NaN in a gradient too.
    """

    def __init__(self, batches: Sequence[PPOBatch], num_actions: int, is_box: bool) -> None:
        self._rows = len(batches[0])
        valid = np.concatenate([batch.mask.numpy() for batch in batches])

        def joined(parts: Iterable[Any]) -> Array:
            joint = np.concatenate([part.numpy().reshape(self._rows, -1) for part in parts])
            return np.where(valid, joint, np.zeros_like(joint))

        states: list[Any] = [batch.states for batch in batches]
        olds: list[Any] = [batch.dist_old for batch in batches]
        self._observations = joined(each.observations for each in states)
        self._dist_old = None if any(old is None for old in olds) else joined(olds)
        actions = joined(batch.actions for batch in batches)
        self._actions = actions if is_box else np.eye(num_actions, dtype=np.float32)[actions[:, 0]]

    def take(self, seeds: slice, rows: Array) -> tuple[Array, Chosen]:
        """Observations [s, n, D], and what was done there, of rows [s, n]."""
        where = rows + np.arange(seeds.start, seeds.stop)[:, None] * self._rows
        actions = self._actions.take(where, axis=0).swapaxes(-1, -2)
        old = None
        if self._dist_old is not None:
            taken = self._dist_old.take(where, axis=0).swapaxes(-1, -2)
            width = actions.shape[1]
            old = tuple(taken[:, i : i + width] for i in range(0, taken.shape[1], width))
        return self._observations.take(where, axis=0), Chosen(actions, old)


def flat_head(actor_critic: MLPActorCritic) -> type[FlatHead] | None:
    """The hand-written twin of its head; None for other heads, subclasses included, and for another `forward`."""
    from .nets import CategoricalHead, GaussianHead, MLPActorCritic

    if type(actor_critic).forward is not MLPActorCritic.forward:
        return None
    twins: dict[type, type[FlatHead]] = {CategoricalHead: FlatCategorical, GaussianHead: FlatGaussian}
    return twins.get(type(actor_critic.policy_head))


def _names(actor_critic: MLPActorCritic) -> Names:
    body = tuple(f"policy_body.{i}" for i in range(0, len(actor_critic.policy_body), 2))
    policy = "policy_head." + ("logits" if flat_head(actor_critic) is FlatCategorical else "mean")
    return Names(body, policy, f"critic.{len(actor_critic.critic) - 1}", "policy_head.log_std")


def _places(actor_critic: MLPActorCritic) -> tuple[dict[str, Place], int]:
    """Where each weight stands in its role's row, and the length of a row. Equal layers of both roles stand at the same place."""
    places: dict[str, Place] = {}
    ends = [0, 0]
    for name, weight in sorted(actor_critic.named_parameters(), key=lambda each: each[0].endswith("log_std")):
        role = _role(name)
        places[name] = (ends[role], tuple(weight.shape))
        ends[role] += -(-weight.numel() // _ALIGNED) * _ALIGNED
    return places, max(ends)


def _shapes(actor_critic: MLPActorCritic) -> list[tuple[str, torch.Size]]:
    return [(name, weight.shape) for name, weight in actor_critic.named_parameters()]


def _role(name: str) -> int:
    return CRITIC if name.startswith("critic.") else POLICY


def _is_plain_adamw(optimizer: torch.optim.Optimizer) -> bool:
    unusual = ("amsgrad", "maximize", "capturable", "differentiable")
    return type(optimizer) is torch.optim.AdamW and not any(group[key] for group in optimizer.param_groups for key in unusual)
