"""Configuration to the parts of control. Apart from build.py, which loads language models: an agent starts without them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from surefoot.config import Config
from surefoot.control import Collector, EnvFactory, Normalizer, make_actor_critic, make_envs, make_picture_env
from surefoot.optim import make_optimizer
from surefoot.runtime.single import SingleRuntime
from surefoot.stages.control_course import Parts

ADAM_EPS = 1e-5  # of OpenAI's baselines and Stable-Baselines3, for networks of this kind
MAX_EVALUATION_ENVS = 8


def build_control(cfg: Config, say: Callable[[str], None], *, env: EnvFactory | None = None) -> Parts:
    """`env` makes an environment in place of the one that control.env names.

    Raises: ConfigError where the environment cannot be made, rendered, or has spaces that are not supported.
    """
    control = cfg.control
    envs = make_envs(control, env)
    picture = make_picture_env(control.env, env) if control.record else None
    generator = torch.Generator().manual_seed(cfg.seed)
    actor_critic = make_actor_critic(envs, control.hidden_sizes, generator)
    normalizer = Normalizer(
        actor_critic.observation_size,
        control.num_envs,
        observations=control.normalize_observations,
        rewards=control.normalize_rewards,
        gamma=cfg.ppo.gamma,
        clip=control.normalize_clip,
    )
    weights = sum(p.numel() for p in actor_critic.parameters())
    say(f"{control.env}: observations {envs.single_observation_space}, actions {envs.single_action_space}; {weights:,} weights")
    return Parts(
        Collector(envs, seed=cfg.seed, normalizer=normalizer),
        actor_critic,
        make_optimizer(actor_critic, cfg.ppo, eps=ADAM_EPS),
        SingleRuntime(),
        generator,
        make_envs(control, env, num_envs=min(control.eval_episodes, MAX_EVALUATION_ENVS)),
        picture,
    )


def control_memory(cfg: Config) -> list[tuple[str, int]]:
    """What a run will hold, in bytes by name. Makes one environment to see how large its observations are."""
    envs = make_envs(cfg.control, num_envs=1)
    actor_critic = make_actor_critic(envs, cfg.control.hidden_sizes, torch.Generator())
    weights = sum(p.numel() for p in actor_critic.parameters())
    row = actor_critic.observation_size + 2 * actor_critic.action_size + 12  # numbers of a step, in the rollout and as a batch
    return [
        ("networks with gradients and Adam moments", 16 * weights),
        ("a rollout and its batch", 2 * 4 * cfg.control.num_rows * row),
    ]
