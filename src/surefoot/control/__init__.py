"""Agents in Gymnasium: a small actor-critic, and rollouts of vector environments as rows for the same PPO that trains tokens."""

from .collect import Collector, Rollout, make_envs, to_batch
from .nets import ControlStates, MLPActorCritic, make_actor_critic

__all__ = ["Collector", "ControlStates", "MLPActorCritic", "Rollout", "make_actor_critic", "make_envs", "to_batch"]
