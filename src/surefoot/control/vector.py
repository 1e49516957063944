"""Environments side by side, stepped with little overhead, for one seed or several: Gymnasium's VectorEnv, SAME_STEP autoreset.

`SteppedEnvs` steps any environments in a loop. `CartPoleEnvs` steps CartPole as arrays. Both hold the environments of S seeds
one below the other, and draw each seed's first states as a run of that seed alone would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..config import ControlConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    import gymnasium

Array = np.ndarray[Any, np.dtype[Any]]
Step = tuple[Array, Array, Array, Array, dict[str, Any]]


class Envs(Protocol):
    """What a collector needs of vector environments. `step` returns (observations, rewards, terminated, truncated, info).

    The observation of an environment whose episode ended is the next episode's first; the last one stands in
    `info["final_obs"]`, an object array that is there where an episode ended.
    """

    num_envs: int
    metadata: dict[str, Any]
    single_observation_space: Any
    single_action_space: Any

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, actions: Any) -> Any: ...

    def close(self) -> None: ...


def make_stepped_envs(cfg: ControlConfig, num_seeds: int = 1) -> SteppedEnvs | CartPoleEnvs:
    """`num_envs` environments of each seed. Raises ConfigError where Gymnasium is not there or does not know the environment."""
    try:
        import gymnasium
    except ImportError as missing:
        raise ConfigError("Control needs gymnasium 1.1 or newer: pip install surefoot[control].") from missing
    try:
        if cfg.env == "CartPole-v1":
            return CartPoleEnvs(cfg.num_envs, num_seeds)
        return SteppedEnvs([lambda: gymnasium.make(cfg.env)] * (cfg.num_envs * num_seeds), num_seeds)
    except gymnasium.error.Error as unknown:
        raise ConfigError(f"control.env = {cfg.env!r} cannot be made: {unknown}") from unknown


def _env_seeds(seed: int | Sequence[int] | None, num_seeds: int, num_envs: int) -> list[int | None]:
    """A seed for each environment: those of one seed count up from it, as in Gymnasium's vector environments."""
    if seed is None:
        return [None] * (num_seeds * num_envs)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if len(seeds) != num_seeds:
        raise ConfigError(f"{len(seeds)} seeds were given for the environments of {num_seeds}. Give one for each.")
    return [each + i for each in seeds for i in range(num_envs)]


class SteppedEnvs:
    """Any environments, one after the other in this process. Gymnasium's SyncVectorEnv does the same and copies more."""

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], num_seeds: int = 1) -> None:
        from gymnasium.vector import AutoresetMode

        self.envs = [make() for make in makers]
        self.num_envs, self._num_seeds = len(self.envs), num_seeds
        self.metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space: Any = self.envs[0].observation_space
        self.single_action_space: Any = self.envs[0].action_space

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        seeds = _env_seeds(seed, self._num_seeds, self.num_envs // self._num_seeds)
        observed = [env.reset(seed=each, options=options)[0] for env, each in zip(self.envs, seeds, strict=True)]
        return np.stack(observed), {}

    def step(self, actions: Array) -> Step:
        space = self.single_observation_space
        observed = np.empty((self.num_envs, *space.shape), space.dtype)
        rewards = np.empty(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        info: dict[str, Any] = {}
        for i, env in enumerate(self.envs):
            seen, reward, is_terminated, is_truncated, _ = env.step(actions[i])
            if is_terminated or is_truncated:
                terminated[i], truncated[i] = is_terminated, is_truncated
                info.setdefault("final_obs", np.full(self.num_envs, None, dtype=object))[i] = seen
                seen, _ = env.reset()
            observed[i], rewards[i] = seen, reward
        return observed, rewards, terminated, truncated, info

    def close(self) -> None:
        for env in self.envs:
            env.close()


class CartPoleEnvs:
    """CartPole-v1 by Gymnasium's own arrays (CartPoleVectorEnv), reset in the step that ends an episode, not the one after it."""

    def __init__(self, num_envs: int, num_seeds: int = 1) -> None:
        import gymnasium
        from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
        from gymnasium.vector import AutoresetMode

        limit = gymnasium.spec("CartPole-v1").max_episode_steps
        assert limit is not None
        self._physics: Any = CartPoleVectorEnv(num_envs * num_seeds, max_episode_steps=limit)
        self.num_envs, self._num_seeds = num_envs * num_seeds, num_seeds
        self.metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space: Any = self._physics.single_observation_space
        self.single_action_space: Any = self._physics.single_action_space
        self._draws: list[np.random.Generator] = []

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        each = self.num_envs // self._num_seeds
        self._draws = [np.random.default_rng(first) for first in _env_seeds(seed, self._num_seeds, each)[::each]]
        self._physics.reset(options=options)
        self._restart(np.arange(self.num_envs))
        return self._observations(), {}

    def step(self, actions: Array) -> Step:
        observed, rewards, terminated, truncated, _ = self._physics.step(actions)
        ended = terminated | truncated
        info: dict[str, Any] = {}
        if ended.any():
            where = np.flatnonzero(ended)
            info["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for i in where:
                info["final_obs"][i] = observed[i].copy()
            self._restart(where)
            observed = self._observations()
        return observed, rewards, terminated, truncated, info

    def _restart(self, where: Array) -> None:
        """New states for these environments, each from its own seed's numbers."""
        physics, each = self._physics, self.num_envs // self._num_seeds
        for i in where:
            physics.state[:, i] = self._draws[i // each].uniform(physics.low, physics.high, size=4)
        physics.steps[where] = 0
        physics.prev_done[:] = False  # it would reset them a second time in the next step

    def _observations(self) -> Array:
        observed: Array = self._physics.state.T.astype(np.float32)
        return observed

    def close(self) -> None:
        self._physics.close()
