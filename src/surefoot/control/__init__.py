"""Agents in Gymnasium: a small actor-critic, and rollouts of vector environments as rows for the same PPO that trains tokens."""

from .collect import Collector, Rollout, make_envs, to_batch
from .flat import FlatNets
from .flat_collect import FlatCollector, Sampler
from .nets import ControlStates, MLPActorCritic, make_actor_critic
from .vector import CartPoleEnvs, Envs, SteppedEnvs, make_stepped_envs

__all__ = [
    "CartPoleEnvs",
    "Collector",
    "ControlStates",
    "Envs",
    "FlatCollector",
    "FlatNets",
    "MLPActorCritic",
    "Rollout",
    "Sampler",
    "SteppedEnvs",
    "make_actor_critic",
    "make_envs",
    "make_stepped_envs",
    "to_batch",
]
