"""Environments side by side, stepped with little overhead. Nobody resets them but who steps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium

Array = np.ndarray[Any, np.dtype[Any]]


class Envs(Protocol):
    """What a collector needs of vector environments. Gymnasium's SyncVectorEnv with AutoresetMode.DISABLED is one too."""

    num_envs: int
    metadata: dict[str, Any]
    single_observation_space: Any
    single_action_space: Any
    envs: Any

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode in every environment, or in those of `options["reset_mask"]`; `seed` is a list of one for each."""
        ...

    def step(self, actions: Any) -> Any:
        """(observations, rewards, terminated, truncated, {}). Where an episode ended, `reset` comes before the next."""
        ...

    def close(self) -> Any: ...


class SteppedEnvs:
    """Environments one after the other in this process, as Gymnasium's SyncVectorEnv, which copies more than a step is worth."""

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> None:
        from gymnasium.vector import AutoresetMode

        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space: Any = self.envs[0].observation_space
        self.single_action_space: Any = self.envs[0].action_space
        self._observations: list[Any] = [None] * self.num_envs

    def reset(
        self, *, seed: Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Every environment begins an episode, or those of `options["reset_mask"]`; the observations are those of all."""
        chosen = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        for i in np.flatnonzero(chosen).tolist():
            self._observations[i] = self.envs[i].reset(seed=None if seed is None else seed[i])[0]
        return np.array(self._observations), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        rewards = np.empty(self.num_envs)
        terminated, truncated = np.empty(self.num_envs, bool), np.empty(self.num_envs, bool)
        observations = self._observations
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observations[i], rewards[i], terminated[i], truncated[i], _ = env.step(action)
        return np.array(observations), rewards, terminated, truncated, {}

    def close(self) -> None:
        for env in self.envs:
            env.close()
