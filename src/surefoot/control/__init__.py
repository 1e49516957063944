"""Agents in Gymnasium: a small actor-critic, and rollouts of vector environments as rows for the same PPO that trains tokens."""

from .collect import Collector, Rollout, to_batch
from .environments import EnvFactory, make_env, make_envs
from .evaluate import Episodes, evaluate, likeliest, make_picture_env, record
from .nets import ControlStates, MLPActorCritic, make_actor_critic
from .normalize import Normalizer, RunningMoments

__all__ = [
    "Collector",
    "ControlStates",
    "EnvFactory",
    "Episodes",
    "MLPActorCritic",
    "Normalizer",
    "Rollout",
    "RunningMoments",
    "evaluate",
    "likeliest",
    "make_actor_critic",
    "make_env",
    "make_envs",
    "make_picture_env",
    "record",
    "to_batch",
]
