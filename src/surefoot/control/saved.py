"""An agent: policy, critic and frozen statistics, as one folder of safetensors and JSON, and back without an environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from .environments import flat, for_envs
from .evaluate import likeliest
from .nets import ActionHead, CategoricalHead, GaussianHead, MLPActorCritic
from .normalize import Normalizer

if TYPE_CHECKING:
    import gymnasium

FORMAT = 1
HEADS: dict[str, type[ActionHead]] = {"Discrete": CategoricalHead, "Box": GaussianHead}


@dataclass(frozen=True, slots=True)
class Agent:
    """What acts: networks, the statistics that observations are normalised by, and the spaces of its environment."""

    actor_critic: MLPActorCritic
    normalizer: Normalizer
    observation_shape: tuple[int, ...]
    action_space: gymnasium.Space[Any]

    @torch.no_grad()
    def act(self, observations: Any, *, deterministic: bool, generator: torch.Generator) -> np.ndarray:
        """Actions as the environment takes them, of one raw observation or of several [N, ...].

        Raises: ModelError where the observations have another shape, or one is not finite.
        """
        given = np.asarray(observations, dtype=np.float32)
        is_one = given.shape == self.observation_shape
        if not is_one and given.shape[1:] != self.observation_shape:
            wanted = f"{list(self.observation_shape)}, or several of them"
            raise ModelError(f"An observation of shape {list(given.shape)} was given; the agent wants {wanted}.")
        if not np.isfinite(given).all():
            raise ModelError("An observation that is not finite was given; no action follows from it.")
        raw = flat(given[None] if is_one else given)
        if deterministic:
            actions = likeliest(self.actor_critic, self.normalizer, raw)
        else:
            dist, _ = self.actor_critic(torch.from_numpy(self.normalizer.observed(raw)))
            actions = self.actor_critic.policy_head.sample(dist, generator).numpy()
        chosen = for_envs(actions, self.action_space)
        one: np.ndarray = chosen[0]
        return one if is_one else chosen


def save_agent(folder: Path, agent: Agent, optimizer: Mapping[str, Tensor]) -> None:
    """Writes weights, normalization and optimizer (what training goes on with) as safetensors, and agent.json, into `folder`.

    The bounds of a Box stand among the weights: JSON has no infinity.
    """
    from gymnasium.spaces import Box, Discrete
    from safetensors.torch import save_file

    space, normalizer = agent.action_space, agent.normalizer
    weights = {name: p.detach().clone() for name, p in agent.actor_critic.named_parameters()}
    about: dict[str, Any] = {
        "format": FORMAT,
        "observation_shape": list(agent.observation_shape),
        "hidden_sizes": list(agent.actor_critic.hidden_sizes),
        "normalize": {
            "observations": normalizer.observations is not None,
            "rewards": normalizer.rewards is not None,
            "gamma": normalizer.gamma,
            "clip": normalizer.clip,
        },
    }
    if isinstance(space, Discrete):
        about["action_space"] = {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    elif isinstance(space, Box):
        about["action_space"] = {"kind": "Box", "shape": list(space.shape), "dtype": str(space.dtype)}
        for name, bound in (("low", space.low), ("high", space.high)):
            weights[f"action_space.{name}"] = torch.from_numpy(np.array(bound))
    save_file(weights, folder / "weights.safetensors")
    save_file(normalizer.tensors(), folder / "normalization.safetensors")
    save_file({name: tensor.detach().clone() for name, tensor in optimizer.items()}, folder / "optimizer.safetensors")
    (folder / "agent.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_agent(folder: Path, *, num_envs: int = 1) -> tuple[Agent, dict[str, Tensor]]:
    """What `save_agent` wrote: the agent, and the state of the optimiser.

    Raises: ModelError where the folder holds no agent, or one that cannot be read.
    """
    from gymnasium.spaces import Box, Discrete
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        weights, moments = (load_file(folder / f"{name}.safetensors") for name in ("weights", "normalization"))
        optimizer = load_file(folder / "optimizer.safetensors")
        acted, shape = about["action_space"], tuple(about["observation_shape"])
        space: gymnasium.Space[Any]
        if acted["kind"] == "Discrete":
            space, size = Discrete(acted["n"], start=acted["start"]), acted["n"]
        else:
            low, high = (weights.pop(f"action_space.{name}").numpy() for name in ("low", "high"))
            space, size = Box(low, high, dtype=np.dtype(acted["dtype"]).type), low.size
        features = int(np.prod(shape, dtype=int))
        unused = torch.Generator()
        actor_critic = MLPActorCritic(features, HEADS[acted["kind"]], size, about["hidden_sizes"], unused)
        normalizer = Normalizer(features, num_envs, **about["normalize"])
        load_weights(actor_critic, weights)
        normalizer.load(moments)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as problem:
        said = " ".join(str(problem).split())
        raise ModelError(
            f"{folder} holds no agent that can be read ({said[:200]}). Name the folder that surefoot control or save wrote, "
            "for example runs/control/final."
        ) from problem
    return Agent(actor_critic, normalizer, shape, space), optimizer


@torch.no_grad()
def load_weights(actor_critic: MLPActorCritic, weights: dict[str, Tensor]) -> None:
    """Copies weights by name, all of them. Raises ValueError where names or shapes differ."""
    named = dict(actor_critic.named_parameters())
    if named.keys() != weights.keys() or any(named[name].shape != weights[name].shape for name in named):
        raise ValueError("its weights are those of other networks")
    for name, p in named.items():
        p.copy_(weights[name])
