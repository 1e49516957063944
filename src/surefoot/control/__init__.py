"""Agents in Gymnasium: a small actor-critic, and rollouts of vector environments as rows for the same PPO that trains tokens."""

from .collect import Collector, Rollout, collect_together, to_batch
from .environments import EnvFactory, make_env, make_envs
from .evaluate import Episodes, evaluate, likeliest, make_picture_env, record
from .flat import FlatNets
from .nets import ControlStates, MLPActorCritic, make_actor_critic
from .normalize import Normalizer, RunningMoments
from .sampler import FlatSampler
from .vector import Envs, SteppedEnvs

__all__ = [
    "Collector",
    "ControlStates",
    "EnvFactory",
    "Envs",
    "Episodes",
    "FlatNets",
    "FlatSampler",
    "MLPActorCritic",
    "Normalizer",
    "Rollout",
    "RunningMoments",
    "SteppedEnvs",
    "collect_together",
    "evaluate",
    "likeliest",
    "make_actor_critic",
    "make_env",
    "make_envs",
    "make_picture_env",
    "record",
    "to_batch",
]
