"""The actor-critic of control: two separate tanh networks, and a distribution over actions for Discrete or Box spaces."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import kl_categorical, kl_gaussian
from ..errors import ConfigError
from ..types import Evaluation
from .environments import observation_size
from .flat import FlatNets, flat_head

if TYPE_CHECKING:
    from .vector import Envs


@dataclass(frozen=True, slots=True)
class ControlStates:
    """Observations, and V of what followed each at the time of the rollout (PPO never differentiates it)."""

    observations: Float[Tensor, "R 1 D"]
    next_values: Float[Tensor, "R 1"]

    def __getitem__(self, rows: Tensor) -> ControlStates:
        return ControlStates(self.observations[rows], self.next_values[rows])


class ActionHead(nn.Module, ABC):
    """From features to a distribution over actions, kept as one tensor `dist` that is indexable by row."""

    @abstractmethod
    def log_prob(self, dist: Tensor, actions: Tensor) -> Float[Tensor, "*batch"]:
        """Nats; a density for Box."""

    @abstractmethod
    def entropy(self, dist: Tensor) -> Float[Tensor, "*batch"]: ...

    @abstractmethod
    def sample(self, dist: Tensor, generator: torch.Generator) -> Tensor: ...

    @abstractmethod
    def mode(self, dist: Tensor) -> Tensor: ...

    @abstractmethod
    def kl(self, dist_p: Tensor, dist_q: Tensor) -> Float[Tensor, "*batch"]: ...

    @abstractmethod
    def deviation(self) -> float | None:
        """Mean standard deviation of an action, in the action's unit; None where actions have none."""


class CategoricalHead(ActionHead):
    """For Discrete: `dist` are logits [..., A], actions are numbers from 0 to A - 1."""

    def __init__(self, width: int, num_actions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.logits = orthogonal_linear(width, num_actions, gain=0.01, generator=generator)

    def forward(self, features: Tensor) -> Float[Tensor, "*batch A"]:
        return self.logits(features)

    def log_prob(self, dist: Tensor, actions: Int[Tensor, "*batch"]) -> Tensor:
        return torch.log_softmax(dist, dim=-1).gather(-1, actions[..., None]).squeeze(-1)

    def entropy(self, dist: Tensor) -> Tensor:
        logp = torch.log_softmax(dist, dim=-1)
        return -(logp.exp() * logp).sum(-1)

    def sample(self, dist: Tensor, generator: torch.Generator) -> Tensor:
        return torch.multinomial(torch.softmax(dist, dim=-1), 1, generator=generator).squeeze(-1)

    def mode(self, dist: Tensor) -> Tensor:
        return dist.argmax(-1)

    def kl(self, dist_p: Tensor, dist_q: Tensor) -> Tensor:
        return kl_categorical(dist_p, dist_q)

    def deviation(self) -> None:
        return None


class GaussianHead(ActionHead):
    """For Box: independent normal dimensions; the deviation does not depend on the state. `dist` is [..., 2, D]: mean, log_std.

    Log-probabilities and entropies are summed over dimensions. Actions are those sampled; the box clips them for the environment.
    """

    def __init__(self, width: int, num_dimensions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mean = orthogonal_linear(width, num_dimensions, gain=0.01, generator=generator)
        self.log_std = nn.Parameter(torch.zeros(num_dimensions))

    def forward(self, features: Tensor) -> Float[Tensor, "*batch 2 D"]:
        mean = self.mean(features)
        return torch.stack((mean, self.log_std.expand_as(mean)), dim=-2)

    def log_prob(self, dist: Tensor, actions: Float[Tensor, "*batch D"]) -> Tensor:
        mean, log_std = dist.unbind(-2)
        return (-0.5 * ((actions - mean) * torch.exp(-log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, dist: Tensor) -> Tensor:
        return (dist.unbind(-2)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def sample(self, dist: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_std = dist.unbind(-2)
        return mean + torch.exp(log_std) * torch.randn(mean.shape, generator=generator, device=mean.device)

    def mode(self, dist: Tensor) -> Tensor:
        return dist.unbind(-2)[0]

    def kl(self, dist_p: Tensor, dist_q: Tensor) -> Tensor:
        return kl_gaussian(*dist_p.unbind(-2), *dist_q.unbind(-2))

    def deviation(self) -> float:
        return float(self.log_std.detach().exp().mean())


class MLPActorCritic(nn.Module):
    """Policy and critic share nothing. Orthogonal weights (gain sqrt 2; 0.01 before actions; 1 before V), zero biases, tanh."""

    def __init__(
        self,
        observation_size: int,
        head: type[ActionHead],
        action_size: int,
        hidden_sizes: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.observation_size, self.action_size, self.hidden_sizes = observation_size, action_size, tuple(hidden_sizes)
        self._nets: FlatNets | None = None
        self.policy_body = tanh_layers(observation_size, hidden_sizes, generator)
        self.policy_head = head(hidden_sizes[-1], action_size, generator)
        self.critic = tanh_layers(observation_size, hidden_sizes, generator)
        self.critic.append(orthogonal_linear(hidden_sizes[-1], 1, gain=1.0, generator=generator))

    def forward(self, observations: Float[Tensor, "*batch D"]) -> tuple[Tensor, Float[Tensor, "*batch 1"]]:
        return self.policy_head(self.policy_body(observations)), self.critic(observations)

    def evaluate(self, states: ControlStates, actions: Tensor) -> Evaluation:
        dist, values = self(states.observations)
        return Evaluation(
            logp=self.policy_head.log_prob(dist, actions),
            values=values.squeeze(-1),
            next_values=states.next_values,
            entropy=self.policy_head.entropy(dist),
            dist=dist,
        )

    def kl(self, dist_p: Tensor, dist_q: Tensor) -> Tensor:
        return self.policy_head.kl(dist_p, dist_q)

    def nets(self) -> FlatNets | None:
        """What computes and differentiates this module by hand, on its memory. None for another head, or another `forward`."""
        if flat_head(self) is None:
            return None
        if self._nets is None:
            self._nets = FlatNets([self])
        return self._nets

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_nets": None}  # a copy gets memory of its own

    def named_policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if name.startswith("policy_"))

    def named_critic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if name.startswith("critic."))


def make_actor_critic(envs: Envs, hidden_sizes: Sequence[int], generator: torch.Generator) -> MLPActorCritic:
    """The actor-critic that fits the spaces of `envs`. Raises ConfigError for spaces that have no head here."""
    from gymnasium.spaces import Box, Discrete

    size, acted = observation_size(envs.single_observation_space), envs.single_action_space
    if isinstance(acted, Discrete):
        return MLPActorCritic(size, CategoricalHead, int(acted.n), hidden_sizes, generator)
    if isinstance(acted, Box):
        return MLPActorCritic(size, GaussianHead, math.prod(acted.shape), hidden_sizes, generator)
    raise ConfigError(f"Actions are {acted}. Discrete and Box are supported; wrap the environment (FlattenObservation).")


def orthogonal_linear(width_in: int, width_out: int, *, gain: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(width_in, width_out)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def tanh_layers(width: int, hidden_sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in hidden_sizes:
        layers += [orthogonal_linear(width, hidden, gain=math.sqrt(2), generator=generator), nn.Tanh()]
        width = hidden
    return nn.Sequential(*layers)
