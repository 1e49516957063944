"""Episodes with the policy's likeliest actions and frozen statistics: evaluation, and pictures of one episode."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ConfigError
from .environments import EVALUATION, RECORDING, episode_seed, flat, for_envs, screenless
from .nets import MLPActorCritic
from .normalize import Normalizer

if TYPE_CHECKING:
    from .environments import Env, EnvFactory
    from .vector import Envs

MAX_RECORDED_STEPS = 1_000  # an episode without an end has to stop somewhere
MAX_WIDTH = 400  # pixels
MAX_FPS = 25.0


@dataclass(frozen=True, slots=True)
class Episodes:
    """What each episode paid, in the environment's own reward, and how long it was."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    def metrics(self) -> dict[str, float]:
        """Stable-Baselines3's keys, and how many episodes stand behind them. The deviation is that of the population."""
        return {
            "eval/mean_reward": float(np.mean(self.returns)),
            "eval/std_reward": float(np.std(self.returns)),
            "eval/mean_ep_length": float(np.mean(self.lengths)),
            "eval/episodes": float(len(self.returns)),
        }


@torch.no_grad()
def likeliest(actor_critic: MLPActorCritic, normalizer: Normalizer, raw: np.ndarray) -> np.ndarray:
    """The mode of the policy at raw observations [N, D]. Moves no statistics."""
    dist = actor_critic.policy_head(actor_critic.policy_body(torch.from_numpy(normalizer.observed(raw))))
    return actor_critic.policy_head.mode(dist).numpy()


def evaluate(
    actor_critic: MLPActorCritic,
    normalizer: Normalizer,
    envs: Envs,
    *,
    num_episodes: int,
    seed: int,
    heed: Callable[[], None] = lambda: None,
) -> Episodes:
    """`num_episodes` whole episodes. Number k begins with a seed of its own, the same at every evaluation of a run.

    `heed` is called at every step and may raise, to break off.
    """
    count = envs.num_envs
    playing = np.arange(count)  # the number of each environment's episode; those beyond num_episodes are played and not counted
    seeds = [episode_seed(seed, EVALUATION, 0, k) for k in range(num_episodes + count)]
    returns, lengths = np.zeros(num_episodes + count), np.zeros(num_episodes + count, dtype=int)
    left, following = set(range(num_episodes)), count
    raw = flat(envs.reset(seed=[seeds[k] for k in playing])[0])
    while True:
        heed()
        actions = likeliest(actor_critic, normalizer, raw)
        seen, rewards, terminated, truncated, _ = envs.step(for_envs(actions, envs.single_action_space))
        returns[playing] += rewards
        lengths[playing] += 1
        ended = terminated | truncated
        left -= set(playing[ended].tolist())
        if not left:
            return Episodes(tuple(returns[:num_episodes].tolist()), tuple(lengths[:num_episodes].tolist()))
        if ended.any():
            for i in np.flatnonzero(ended):
                playing[i] = following
                following = min(following + 1, len(seeds) - 1)
            again = [seeds[playing[i]] if ended[i] else None for i in range(count)]
            seen = envs.reset(seed=again, options={"reset_mask": ended})[0]
        raw = flat(seen)


def make_picture_env(name: str, factory: EnvFactory | None = None) -> Env:
    """An environment that renders, tried once: better before training than after it.

    Raises: ConfigError where pictures cannot be made.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures are made without a screen
    try:
        import gymnasium
        import PIL  # noqa: F401

        env: Env = gymnasium.make(name, render_mode="rgb_array") if factory is None else factory()
        env.reset(seed=0)
        picture = env.render()
    except Exception as problem:  # whatever a graphics library raises
        said = " ".join(str(problem).split())[:200]
        raise ConfigError(
            f"control.record: {name} cannot be rendered ({type(problem).__name__}: {said}). "
            f"Install what draws it (pip install 'surefoot[control]'); {screenless()}; or leave out --record."
        ) from problem
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise ConfigError(f"control.record: {name} renders {type(picture).__name__}, not pictures. Leave out --record.")
    return env


def record(
    actor_critic: MLPActorCritic, normalizer: Normalizer, env: Env, *, seed: int, heed: Callable[[], None] = lambda: None
) -> bytes:
    """One episode as a GIF, at most 1,000 steps of it, in real time where the environment says what that is.

    `heed` is called at every step and may raise, to break off.
    """
    from PIL import Image

    raw, _ = env.reset(seed=episode_seed(seed, RECORDING, 0, 0))
    fps = float(env.metadata.get("render_fps") or MAX_FPS)
    every = math.ceil(fps / MAX_FPS)
    pictures: list[Any] = []
    for step in range(MAX_RECORDED_STEPS + 1):
        heed()
        if step % every == 0:
            picture = Image.fromarray(np.asarray(env.render()))
            picture.thumbnail((MAX_WIDTH, MAX_WIDTH))
            pictures.append(picture.quantize(64))
        action = for_envs(likeliest(actor_critic, normalizer, flat(np.asarray(raw)[None])), env.action_space)[0]
        raw, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    target = io.BytesIO()
    pictures[0].save(
        target, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 * every / fps), loop=0, optimize=True
    )
    return target.getvalue()
